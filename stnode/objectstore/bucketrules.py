"""What the bucket's own rules would do to a store in it, in words: lifecycle rules, versioning. Pure, no SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HINT = "take the prefix out of the rule"
_ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


def lifecycle_warnings(rules: Sequence[Mapping[str, Any]], prefix: str) -> tuple[str, ...]:
    """Warnings for S3 lifecycle rules (as the API answers them) that touch keys below `prefix` and take objects away or out of reach."""
    found: list[str] = []
    for rule in rules:
        name = rule.get("ID") or "without a name"
        if rule.get("Status") != "Enabled" or not _touches(rule, prefix):
            continue
        if "Expiration" in rule and not rule["Expiration"].get("ExpiredObjectDeleteMarker"):
            found.append(f"the bucket's lifecycle rule {name} deletes objects of this store: data will be lost; {_HINT}")
        classes = {str(move.get("StorageClass", "")) for move in rule.get("Transitions", ())} & _ARCHIVES
        if classes:
            found.append(
                f"the bucket's lifecycle rule {name} archives objects of this store ({', '.join(sorted(classes))}): they cannot be read then; {_HINT}"
            )
    return tuple(found)


def versioning_warnings(status: str) -> tuple[str, ...]:
    """What it costs that the bucket keeps versions."""
    if status != "Enabled":
        return ()
    return ("the bucket keeps versions: what is deleted or overwritten goes on costing until a lifecycle rule ends old versions",)


def _touches(rule: Mapping[str, Any], prefix: str) -> bool:
    """Whether keys of the store can be among those of the rule. A rule by tags or sizes may touch any of them."""
    where = rule.get("Filter", {})
    of_rule = str(rule.get("Prefix") or where.get("Prefix") or where.get("And", {}).get("Prefix") or "")
    return of_rule.startswith(prefix) or prefix.startswith(of_rule)
