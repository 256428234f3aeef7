"""Certificates, keys and addresses."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from stnode.clock import SystemClock
from stnode.errors import ConfigError, Invalid, NotFound, Refused
from stnode.net import identity
from stnode.net.base import parse_address
from stnode.net.identity import KeyType
from stnode.protocol import deviceid


@pytest.mark.parametrize("kind", list(KeyType))
def test_generated_pairs_load_again(kind: KeyType) -> None:
    made = identity.generate(SystemClock(), kind)
    assert identity.from_pem(made.certificate_pem(), made.key_pem()).device_id == made.device_id
    assert made.certificate.subject.rfc4514_string() == "CN=syncthing,OU=Automatically Generated,O=Syncthing"


def test_home_keeps_the_identity(tmp_path: Path) -> None:
    first = identity.load_or_generate(tmp_path / "home", SystemClock())
    assert identity.load_or_generate(tmp_path / "home", SystemClock()).device_id == first.device_id
    assert stat.S_IMODE((tmp_path / "home" / "key.pem").stat().st_mode) == 0o600
    with pytest.raises(Refused, match="exists already"):
        identity.save(tmp_path / "home", first)
    assert deviceid.format(first.device_id) in repr(first)


def test_half_an_identity_is_never_replaced(tmp_path: Path) -> None:
    identity.load_or_generate(tmp_path, SystemClock())
    (tmp_path / "key.pem").unlink()
    with pytest.raises(NotFound, match=r"key\.pem is missing"):
        identity.load_or_generate(tmp_path, SystemClock())


def test_damaged_and_foreign_pairs_are_told_apart() -> None:
    one, two = (identity.generate(SystemClock(), KeyType.ED25519) for _ in range(2))
    with pytest.raises(ConfigError, match="do not belong together"):
        identity.from_pem(one.certificate_pem(), two.key_pem())
    with pytest.raises(ConfigError, match="cannot be read"):
        identity.from_pem(b"nonsense", one.key_pem())


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("tcp://192.0.2.7:22001", ("tcp", "192.0.2.7", 22001)),
        ("tcp://host.example", ("tcp", "host.example", 22000)),
        ("tcp6://[2001:db8::7]:1", ("tcp6", "2001:db8::7", 1)),
        ("tcp://:22000", ("tcp", "", 22000)),
        ("QUIC://a:0/", ("quic", "a", 0)),
    ],
)
def test_addresses(text: str, result: tuple[str, str, int]) -> None:
    address = parse_address(text)
    assert (address.scheme, address.host, address.port) == result


@pytest.mark.parametrize(
    "text", ["", "dynamic", "host:22000", "tcp://", "tcp://a:b", "tcp://a:99999", "tcp://u@h:1", "tcp://h:1/path", "tcp://a b:1"]
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(Invalid):
        parse_address(text)
