"""What the models' processes (tap.py) and the agent (sampling.py) tell each other, over a Unix socket of the pod.

The agent writes a byte for each input that it wants. A process answers with a frame: its length, uint32, big-endian,
and a GoldenCase without outputs, as JSON; length 0: it was too large.
"""

from __future__ import annotations

import struct

INPUT_BYTES = 1 << 20  # of an input, without its encoding
FRAME_BYTES = 2 * INPUT_BYTES  # of one in JSON
SOCKET = "inputs.sock"  # its name is all that is on the disk
LENGTH = struct.Struct(">I")
