"""Rules of a bucket that would hurt a store are warned about, others are not."""

from __future__ import annotations

from typing import Any

import pytest

from stnode.objectstore.bucketrules import lifecycle_warnings, versioning_warnings

EXPIRES: dict[str, Any] = {"ID": "tidy", "Status": "Enabled", "Expiration": {"Days": 30}}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (EXPIRES | {"Filter": {"Prefix": ""}}, "deletes"),
        (EXPIRES | {"Prefix": "store/packs/"}, "deletes"),
        (EXPIRES | {"Filter": {"And": {"Prefix": "sto", "Tags": []}}}, "deletes"),
        (EXPIRES | {"Filter": {"Prefix": "other/"}}, ""),
        (EXPIRES | {"Status": "Disabled"}, ""),
        (EXPIRES | {"Expiration": {"ExpiredObjectDeleteMarker": True}}, ""),
        ({"ID": "cold", "Status": "Enabled", "Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]}, "archives"),
        ({"ID": "warm", "Status": "Enabled", "Transitions": [{"Days": 1, "StorageClass": "STANDARD_IA"}]}, ""),
        ({"ID": "old", "Status": "Enabled", "NoncurrentVersionExpiration": {"NoncurrentDays": 1}}, ""),
    ],
)
def test_lifecycle(rule: dict[str, Any], said: str) -> None:
    found = lifecycle_warnings([rule], "store/")
    assert [said in text and str(rule["ID"]) in text for text in found] == [True] * bool(said)


def test_versioning() -> None:
    assert versioning_warnings("Enabled")
    assert not versioning_warnings("Suspended")
    assert not versioning_warnings("")
