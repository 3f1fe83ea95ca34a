"""A peer that transfers without end, until it is killed: python victim.py PORT send|receive [FOLDER]."""

from __future__ import annotations

import sys

from mms_workloads.transport.channel import Abort, Fence, Greeting, Security, connect

HOST, SECONDS = "127.0.0.1", 60.0
GREETING = Greeting(Fence("uid", 1, 1, 7), "worker", 3, 2, "test")


def main(port: str, what: str, folder: str) -> None:
    security = Security.mutual(folder) if folder else Security.plain()
    channel = connect(HOST, int(port), security, GREETING, Abort(), SECONDS)
    buffer = bytearray(8 << 20)
    while True:
        if what == "send":
            channel.send(buffer)
        else:
            channel.receive_into(buffer)


if __name__ == "__main__":
    main(*sys.argv[1:])
