"""TCP ports: free ones to use, and who holds one that is taken."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

# Below the range that the kernel hands to outgoing connections, so that none of these takes a port between the moment
# it is found free and the moment it is used.
SPAN = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Ports free on the loopback address now. Another process can still be faster: be ready to ask again."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in random.sample(SPAN, len(SPAN)):
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"fewer than {count} ports are free between {SPAN.start} and {SPAN.stop}")


def holder(port: int) -> str:
    """Who listens on `port`, such as "process 4711 (nginx)"; "" when nobody does."""
    inodes = {
        fields[9]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for fields in (line.split() for line in Path(table).read_text().splitlines()[1:])
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
    }
    if not inodes:
        return ""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()) in wanted:
                process = descriptor.parent.parent
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return "a process that this user may not see"
