"""What kubectl says to people when it fails."""

from __future__ import annotations

import re

_LOG = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ ")  # as klog begins a line


def words(stderr: str) -> str:
    """Without the lines of its log, unless there are no others: of a cluster that does not answer it has several."""
    lines = stderr.strip().splitlines()
    return "\n".join([line for line in lines if not _LOG.match(line)] or lines)
