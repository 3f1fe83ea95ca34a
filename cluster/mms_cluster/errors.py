"""The one error of this package."""

from __future__ import annotations


class ClusterError(Exception):
    """Something the user can act on. The message is one paragraph that ends with the remedy; the exit code is 2."""
