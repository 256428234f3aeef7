"""Under which addresses this machine's listeners can be reached: a listener on all interfaces stands for each of them. The one door to
ifaddr."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

import ifaddr

from stnode.net.base import join_host_port, parse_address

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def interface_addresses() -> tuple[str, ...]:
    """The IP addresses of this machine's interfaces."""
    found = [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    return tuple(dict.fromkeys(found))


def is_everywhere(host: str) -> bool:
    """Whether a listener on this host listens on all interfaces."""
    return host in {"", "0.0.0.0", "::"}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable(listening: Sequence[str], interfaces: Sequence[str]) -> tuple[str, ...]:
    """The addresses to dial for listeners at `listening` on a machine that has `interfaces`. Those on all interfaces become one address
    for each interface of their family; loopback counts where there is nothing else, link-local IPv6 addresses, which need a zone, never."""
    usable = _usable([ipaddress.ip_address(text) for text in interfaces])
    found: list[str] = []
    for text in listening:
        address = parse_address(text)
        if not is_everywhere(address.host):
            found.append(str(address))
            continue
        family = {"tcp4": 4, "tcp6": 6}.get(address.scheme)
        found += [str(replace(address, host=str(ip))) for ip in usable if family in (None, ip.version)]
    return tuple(dict.fromkeys(found))


def page_url(host: str, url: str, interfaces: Sequence[str]) -> str:
    """Where other machines find what a server on `host` shows here at `url`; "" where only this one reaches it."""
    if is_everywhere(host):
        host = next((str(ip) for ip in _usable([ipaddress.ip_address(text) for text in interfaces])), "127.0.0.1")
    return "" if is_loopback(host) else f"http://{join_host_port(host, urlsplit(url).port or 80)}/"


def _usable(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """IPv4 first, loopback only where nothing else is left."""
    plain = [ip for ip in addresses if not (ip.is_link_local or ip.is_unspecified or ip.is_multicast)]
    outer = [ip for ip in plain if not ip.is_loopback]
    return sorted(outer or plain, key=lambda ip: ip.version)
