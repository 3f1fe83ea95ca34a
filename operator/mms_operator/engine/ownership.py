"""Which fields of an object are ours, as server-side apply keeps it (fieldsV1 of managedFields). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOT_OWNED = frozenset({"apiVersion", "kind", "name", "namespace"})  # what says which object it is


def covers(fields: Mapping[str, Any], planned: Mapping[str, Any]) -> bool:
    """Whether all that is planned is ours. Maps are looked into, as far as they are not owned as a whole; lists not."""
    for key, value in planned.items():
        if key in _NOT_OWNED or value is None or value in ({}, []):
            continue
        below = fields.get(f"f:{key}")
        if below is None:
            return False
        if below and isinstance(value, dict) and not covers(below, value):
            return False
    return True
