"""Asks a served model: python ask.py MODEL NAME=VALUE ... [--url=HOST:8000]

VALUE is a file's path for IMAGE, VIDEO and AUDIO, else the text or number itself. Needs tritonclient[http] and numpy.
"""

import sys

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput

model, *given = [one for one in sys.argv[1:] if not one.startswith("--url")]
url = next((one.removeprefix("--url=") for one in sys.argv if one.startswith("--url=")), "localhost:8000")
inputs = []
for one in given:
    name, _, value = one.partition("=")
    if name in {"K", "SEED"}:
        datatype = "INT32" if name == "K" else "INT64"
        array = np.array([[int(value)]], datatype.lower())
    else:
        data = open(value, "rb").read() if name in {"IMAGE", "VIDEO", "AUDIO"} else value.encode()
        array, datatype = np.array([[data]], np.object_), "BYTES"
    inputs.append(InferInput(name, array.shape, datatype))
    inputs[-1].set_data_from_numpy(array)
answer = InferenceServerClient(url).infer(model, inputs)
for output in answer.get_response()["outputs"]:
    print(output["name"], answer.as_numpy(output["name"]).tolist())
