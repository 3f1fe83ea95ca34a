"""Asks a served model about a file: python client.py HOST:8001 MODEL INPUT FILE."""

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

address, model, name, file = sys.argv[1:]
tensor = triton.InferInput(name, [1, 1], "BYTES")
tensor.set_data_from_numpy(np.array([[Path(file).read_bytes()]], np.object_))
answer = triton.InferenceServerClient(address).infer(model, [tensor])
for output in answer.get_response().outputs:
    print(output.name, answer.as_numpy(output.name).tolist())
