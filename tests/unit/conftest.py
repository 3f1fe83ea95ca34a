"""Settings of the tests without a cluster."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes, or is made, says nothing on processors that other work keeps busy.
settings.register_profile("mms", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mms")
