"""What is kept of what was made."""

from __future__ import annotations

from mms_workloads.recent import Recent


def test_what_was_used_last_is_kept_up_to_a_weight() -> None:
    made: list[str] = []
    recent: Recent[str, str] = Recent(4, len)

    def make(key: str) -> str:
        made.append(key)
        return key

    for key in ("aa", "b", "aa", "cc", "aa", "b"):
        assert recent.get(key, make) == key
    assert made == ["aa", "b", "cc", "b"], "b was used before aa"
    assert recent.get("much more", make) == "much more"
    assert recent.get("much more", make) == "much more"
    assert made.count("much more") == 1, "one is kept, whatever its weight"
