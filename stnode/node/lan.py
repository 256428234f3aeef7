"""The node on the local network: announced by mDNS, and siblings of the same store heard of there. The one door to zeroconf.

    _stnode._tcp   where the node takes BEP connections; TXT `store` (store id), `id` (device ID)
    _http._tcp     its status page, where other machines reach that

What is heard is a hint: who gets in is decided by heartbeats and by TLS. A network without multicast costs a line in the log, nothing else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from zeroconf import Error, InterfaceChoice, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from stnode.clock import Env, Tasks
from stnode.errors import StnodeError
from stnode.net.base import join_host_port, parse_address
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.telemetry import get_logger

NODE_TYPE: Final = "_stnode._tcp.local."
PAGE_TYPE: Final = "_http._tcp.local."
_ASK_MS = 3000
_LABEL_BYTES = 63

_log = get_logger(__name__)


class Lan:
    """`heard(device, addresses)` is told of nodes of the same store, again when they changed. `interfaces` are IP addresses of the
    interfaces to use; all by default."""

    def __init__(
        self,
        env: Env,
        store_id: str,
        device: DeviceID,
        name: str,
        heard: Callable[[DeviceID, tuple[str, ...]], None],
        interfaces: Sequence[str] | None = None,
    ) -> None:
        self._store_id = store_id
        self._device = deviceid.format(device)
        self._name = name
        self._heard = heard
        self._interfaces = interfaces
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._tasks = Tasks(env, self._crashed)

    def open(self, addresses: Sequence[str], page: str) -> None:
        """Announces the node at these BEP addresses (IP addresses of one port count) and its page, and listens for others, in the
        background."""
        self._tasks.spawn(self._open(tuple(addresses), page), "lan")

    async def close(self) -> None:
        """Says goodbye on the network."""
        await self._tasks.close()
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zeroconf is not None:
            try:
                await self._zeroconf.async_unregister_all_services()
                await self._zeroconf.async_close()
            except (OSError, Error) as exc:
                _log.info("the local network was not told of the end", error=str(exc))
        self._browser = self._zeroconf = None

    async def _open(self, addresses: tuple[str, ...], page: str) -> None:
        try:
            self._zeroconf = AsyncZeroconf(interfaces=list(self._interfaces) if self._interfaces else InterfaceChoice.All)
            for service in (self._node_service(addresses), self._page_service(page)):
                if service is not None:
                    await (await self._zeroconf.async_register_service(service, allow_name_change=True))
            self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, NODE_TYPE, handlers=[self._changed])
        except (OSError, Error) as exc:
            _log.info("the node is not announced on the local network", error=str(exc) or type(exc).__name__)
            return
        _log.info("announced on the local network", service=NODE_TYPE, page=page)

    def _node_service(self, addresses: Sequence[str]) -> AsyncServiceInfo | None:
        found = [(ip, address.port) for address in map(parse_address, addresses) if (ip := _ip(address.host)) is not None]
        if not found:
            return None
        port = found[0][1]
        return AsyncServiceInfo(
            NODE_TYPE,
            f"{self._device[:7]}.{NODE_TYPE}",
            addresses=[ip.packed for ip, at in found if at == port],
            port=port,
            properties={"store": self._store_id, "id": self._device},
            server=f"stnode-{self._device[:7].lower()}.local.",
        )

    def _page_service(self, page: str) -> AsyncServiceInfo | None:
        parts = urlsplit(page)
        ip = _ip(parts.hostname or "")
        if ip is None:
            return None
        title = f"{self._name} (stnode {self._device[:7]})".encode()[:_LABEL_BYTES].decode(errors="ignore").replace(".", "-")
        return AsyncServiceInfo(
            PAGE_TYPE,
            f"{title}.{PAGE_TYPE}",
            addresses=[ip.packed],
            port=parts.port or 80,
            properties={"path": "/"},
            server=f"stnode-{self._device[:7].lower()}.local.",
        )

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed:
            self._tasks.spawn(self._ask(zeroconf, service_type, name), f"lan {name}")

    async def _ask(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        if not await info.async_request(zeroconf, _ASK_MS):
            return
        told = {key: value or "" for key, value in info.decoded_properties.items()}
        if told.get("store") != self._store_id or told.get("id") == self._device:
            return
        try:
            device = deviceid.parse(told.get("id", ""))
        except StnodeError:
            return
        hosts = [host for host in info.parsed_addresses() if (ip := _ip(host)) is not None and not ip.is_link_local]
        self._heard(device, tuple(f"tcp://{join_host_port(host, info.port or 0)}" for host in hosts))

    def _crashed(self, name: str, exc: Exception) -> None:
        _log.error("local network task ended by a bug", task=name, exc_info=exc)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
