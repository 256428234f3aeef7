"""Every row of the table in bep-facts 5.6."""

from __future__ import annotations

import pytest

from stnode.errors import ProtocolError
from stnode.protocol.agreement import Terms, agree
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.messages import ClusterDevice

ONE, TWO = b"1" * 32, b"2" * 32


def entry(token: bytes) -> ClusterDevice:
    return ClusterDevice(DeviceID(bytes(32)), encryption_password_token=token)


@pytest.mark.parametrize(
    ("terms", "theirs", "ours", "kept"),
    [
        (Terms(), b"", b"", b""),
        (Terms(password_token=ONE), ONE, b"", b""),
        (Terms(password_token=ONE), b"", ONE, b""),  # two trusted devices that use the password between them
        (Terms(password_token=ONE, untrusted=True), ONE, b"", b""),
        (Terms(encrypted=True), b"", ONE, ONE),
        (Terms(encrypted=True), ONE, b"", ONE),  # from another untrusted device
        (Terms(encrypted=True, stored_token=ONE), b"", ONE, b""),
        (Terms(encrypted=True, stored_token=ONE, untrusted=True), ONE, b"", b""),
    ],
)
def test_they_agree(terms: Terms, theirs: bytes, ours: bytes, kept: bytes) -> None:
    assert agree(terms, entry(theirs), entry(ours)) == kept


@pytest.mark.parametrize(
    ("terms", "theirs", "ours", "why"),
    [
        (Terms(untrusted=True), b"", b"", "untrusted"),
        (Terms(untrusted=True), ONE, b"", "untrusted"),
        (Terms(password_token=ONE, encrypted=True), ONE, b"", "one of them"),
        (Terms(), ONE, ONE, "two"),
        (Terms(encrypted=True), ONE, ONE, "two"),
        (Terms(password_token=ONE), b"", b"", "plain data"),
        (Terms(encrypted=True), b"", b"", "plain data"),
        (Terms(encrypted=True, stored_token=ONE), b"", b"", "plain data"),
        (Terms(), ONE, b"", "encrypted data"),
        (Terms(), b"", ONE, "encrypted data"),
        (Terms(password_token=ONE), TWO, b"", "another"),
        (Terms(password_token=ONE), b"", TWO, "another"),
        (Terms(encrypted=True, stored_token=ONE), b"", TWO, "another"),
        (Terms(encrypted=True, stored_token=ONE), ONE[:31], b"", "another"),
    ],
)
def test_they_do_not(terms: Terms, theirs: bytes, ours: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        agree(terms, entry(theirs), entry(ours))
