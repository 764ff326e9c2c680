"""Triton's Python client over HTTP, with binary and with JSON tensors."""

import json

import numpy as np
import tritonclient.http as triton

from checks import MODEL, URL, check, done, picture_bytes, picture_base64

client = triton.InferenceServerClient(URL.removeprefix("http://"))


def tensor(name, values, kind, binary=True):
    values = np.array(values, dtype={"BYTES": object, "BOOL": bool, "FP32": np.float32, "INT32": np.int32}[kind])
    own = triton.InferInput(name, list(values.shape), kind)
    own.set_data_from_numpy(values, binary_data=binary)
    return own


def infer(*inputs):
    got = client.infer("moondream", list(inputs))
    return json.loads(got.as_numpy("TEXT_OUTPUT")[0])


@check
def health():
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("moondream")


@check
def metadata():
    assert client.get_server_metadata()["name"] == "photon"
    names = [own["name"] for own in client.get_model_metadata("moondream")["inputs"]]
    assert "SKILL" in names and "IMAGE" in names


@check
def query():
    inputs = [tensor("SKILL", [b"query"], "BYTES"), tensor("QUESTION", [b"What color is the star?"], "BYTES"),
              tensor("IMAGE", [picture_bytes()], "BYTES"), tensor("TEMPERATURE", [0], "FP32"), tensor("MAX_TOKENS", [16], "INT32"),
              tensor("REASONING", [False], "BOOL")]
    assert infer(*inputs)["answer"] == "Blue"


@check
def json_tensors():
    inputs = [tensor("SKILL", ["detect"], "BYTES", False), tensor("OBJECT", ["star"], "BYTES", False),
              tensor("IMAGE", [picture_base64()], "BYTES", False), tensor("MAX_OBJECTS", [3], "INT32", False)]
    assert len(infer(*inputs)["objects"]) == 1


@check
def spatial_references():
    inputs = [tensor("SKILL", [b"point"], "BYTES"), tensor("OBJECT", [b"star"], "BYTES"),
              tensor("IMAGE", [picture_bytes()], "BYTES"), tensor("SPATIAL_REFS", [[0.5, 0.5]], "FP32")]
    assert "points" in infer(*inputs)


@check
def errors():
    for inputs in ([tensor("SKILL", [b"fly"], "BYTES")], [tensor("WHAT", [b"x"], "BYTES")], [tensor("SKILL", [b"detect"], "BYTES")]):
        try:
            infer(*inputs)
            raise AssertionError("no error")
        except triton.InferenceServerException as error:
            assert str(error), error


done()
