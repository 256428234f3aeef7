"""Which addresses a listener stands for."""

from __future__ import annotations

import pytest

from stnode.net.interfaces import interface_addresses, is_loopback, page_url, reachable

MACHINE = ("127.0.0.1", "::1", "192.0.2.2", "2001:db8::2", "fe80::1", "169.254.7.7")


def test_this_machine_has_loopback() -> None:
    assert "127.0.0.1" in interface_addresses()


@pytest.mark.parametrize(
    ("listening", "expected"),
    [
        ("tcp://0.0.0.0:22000", ("tcp://192.0.2.2:22000", "tcp://[2001:db8::2]:22000")),
        ("tcp://[::]:22000", ("tcp://192.0.2.2:22000", "tcp://[2001:db8::2]:22000")),
        ("tcp4://0.0.0.0:22000", ("tcp4://192.0.2.2:22000",)),
        ("tcp6://[::]:1", ("tcp6://[2001:db8::2]:1",)),
        ("tcp://127.0.0.1:5", ("tcp://127.0.0.1:5",)),
        ("tcp://host.example:5", ("tcp://host.example:5",)),
        ("memory://node:22000", ("memory://node:22000",)),
    ],
)
def test_a_listener_on_all_interfaces_stands_for_each(listening: str, expected: tuple[str, ...]) -> None:
    assert reachable([listening], MACHINE) == expected


def test_loopback_counts_where_there_is_nothing_else() -> None:
    assert reachable(["tcp4://0.0.0.0:1"], ["127.0.0.1", "::1"]) == ("tcp4://127.0.0.1:1",)


def test_the_page_is_named_only_where_others_reach_it() -> None:
    assert page_url("127.0.0.1", "http://127.0.0.1:8384", MACHINE) == ""
    assert page_url("localhost", "http://localhost:8384", MACHINE) == ""
    assert page_url("0.0.0.0", "http://127.0.0.1:8384", MACHINE) == "http://192.0.2.2:8384/"
    assert page_url("0.0.0.0", "http://127.0.0.1:8384", ["127.0.0.1"]) == ""
    assert page_url("2001:db8::2", "http://[2001:db8::2]:1", MACHINE) == "http://[2001:db8::2]:1/"
    assert not is_loopback("host.example")
