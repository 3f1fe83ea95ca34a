"""Decisions: pure functions of (custom resource, observed, settings, now)."""
