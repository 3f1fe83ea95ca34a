"""Settings of the tests without a cluster."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says nothing on processors that other work keeps busy.
settings.register_profile("mms", deadline=None)
settings.load_profile("mms")
