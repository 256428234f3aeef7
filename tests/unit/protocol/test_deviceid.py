"""Device IDs, with the vectors of bep-facts 1.3."""

from __future__ import annotations

import hashlib

import pytest

from stnode.errors import Invalid
from stnode.protocol import deviceid

TEXT = "P56IOI7-MZJNU2Y-IQGDREY-DM2MGTI-MGL3BXN-PQ6W5BM-TBBZ4TJ-XZWICQ2"
OLD_STYLE = "P56IOI7MZJNU2IQGDREYDM2MGTMGL3BXNPQ6W5BTBBZ4TJXZWICQ"


@pytest.mark.parametrize(
    "typed",
    [
        TEXT,
        OLD_STYLE,
        OLD_STYLE + "====",
        TEXT.lower(),
        TEXT.replace("-", ""),
        TEXT.replace("-", " "),
        OLD_STYLE[:5].lower() + "-" + OLD_STYLE[5:],
        TEXT.replace("O", "0").replace("I", "1").replace("B", "8"),
        f"  {TEXT}\n",
    ],
)
def test_all_ways_of_typing_it_are_the_same_device(typed: str) -> None:
    assert deviceid.format(deviceid.parse(typed)) == TEXT


@pytest.mark.parametrize("typed", ["", "P56IOI7", TEXT[:-1], TEXT + "A", TEXT[:-1] + "3", "Q" + TEXT[1:], OLD_STYLE[:-1] + "!", "9" * 52])
def test_what_is_no_id_is_refused_with_a_hint(typed: str) -> None:
    with pytest.raises(Invalid) as raised:
        deviceid.parse(typed)
    assert raised.value.hint


def test_a_certificate_gives_the_id() -> None:
    device = deviceid.from_certificate(b"certificate")
    assert device == hashlib.sha256(b"certificate").digest()
    assert deviceid.parse(deviceid.format(device)) == device


def test_the_short_id_is_the_start_of_both_forms() -> None:
    device = deviceid.parse(TEXT)
    assert deviceid.short_id(device).to_bytes(8, "big") == device[:8]
    assert deviceid.format_short(deviceid.short_id(device)) == TEXT[:7]


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33)])
def test_raw_ids_have_32_bytes(raw: bytes) -> None:
    with pytest.raises(Invalid):
        deviceid.from_bytes(raw)
