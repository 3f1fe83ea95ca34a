"""The members of a ring, each in a process of its own: python member.py FOLDER MEMBERS SIZE.

They reduce until somebody is lost. The folder tells who is which process, who is running, and why each one ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from mms_workloads.transport.channel import Abort, Fence, Listener, PeerLost, Security
from mms_workloads.transport.ring import RingTransport

HOST, SECONDS = "127.0.0.1", 60.0


def main(folder: Path, members: int, size: int) -> None:
    torch.set_num_threads(1)
    listeners = [Listener(HOST, Security.plain()) for _ in range(members)]
    processes = []
    for position in range(members):
        # The import of torch, which takes seconds, is done once.
        if (process := os.fork()) == 0:
            member(folder, position, listeners, size)
            os._exit(0)
        (folder / f"process-{position}").write_text(str(process))
        processes.append(process)
    for process in processes:
        os.waitpid(process, 0)


def member(folder: Path, position: int, listeners: list[Listener], size: int) -> None:
    ring = RingTransport.form(
        position,
        [(HOST, listener.port) for listener in listeners],
        listeners[position],
        Security.plain(),
        Fence("uid", 1, 1, 7),
        rank=position,
        incarnation=0,
        abort=Abort(),
        timeout=SECONDS,
    )
    tensor = torch.zeros(size)
    try:
        while True:
            ring.all_reduce(tensor)
            (folder / f"running-{position}").touch()
    except PeerLost as error:
        (folder / f"ended-{position}").write_text(str(error))
    ring.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
