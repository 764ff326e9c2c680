"""Triton's Python client over gRPC: one answer, answers in pieces, and what is wrong."""

import json
import os
import queue
import time

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as messages

from checks import MODEL, SKILLS, check, done, get, in_unit, picture_base64, picture_bytes

client = triton.InferenceServerClient(os.environ["PHOTON_GRPC"])


def tensor(name, values, kind):
    values = np.array(values, dtype={"BYTES": object, "BOOL": bool, "FP32": np.float32, "INT32": np.int32}[kind])
    own = triton.InferInput(name, list(values.shape), kind)
    own.set_data_from_numpy(values)
    return own


def text(name, value):
    return tensor(name, [value], "BYTES")


def image():
    return text("IMAGE", picture_bytes())


def output(result):
    return json.loads(result.as_numpy("TEXT_OUTPUT")[0])


def infer(*inputs, model="moondream"):
    return output(client.infer(model, list(inputs)))


def is_final(result):
    return result.get_response().parameters["triton_final_response"].bool_param


def stream(*requests, last=None):
    """All (result, error) of requests on one stream, each a list of inputs by its id."""
    answers, got = queue.Queue(), []
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for name, inputs in requests:
        client.async_stream_infer("moondream", inputs, request_id=name)
    missing = len(requests)
    while missing:
        result, error = answers.get(timeout=60)
        got.append((result, error))
        missing -= error is not None or is_final(result)
    client.stop_stream()
    assert answers.empty()
    return got


def refused(code, *inputs, model="moondream", **more):
    try:
        client.infer(model, list(inputs), **more)
    except triton.InferenceServerException as error:
        assert error.status() == f"StatusCode.{code}", error
        return error.message()
    raise AssertionError("it was answered")


@check
def health():
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("moondream") and client.is_model_ready(MODEL)
    assert not client.is_model_ready("other")


@check
def metadata():
    assert client.get_server_metadata().name == "photon"
    own = client.get_model_metadata("moondream")
    kinds = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in own.inputs}
    assert kinds["IMAGE"] == ("BYTES", [1]) and kinds["SPATIAL_REFS"] == ("FP32", [-1, -1]), kinds
    assert [tensor.name for tensor in own.outputs] == ["TEXT_OUTPUT"]


@check
def query():
    answer = infer(text("SKILL", b"query"), text("QUESTION", "What color is the star?"), image(),
                   tensor("TEMPERATURE", [0], "FP32"), tensor("MAX_TOKENS", [16], "INT32"), tensor("REASONING", [False], "BOOL"))
    assert answer["answer"] == "Blue" and answer["finish_reason"] == "stop" and answer["metrics"]["output_tokens"] > 0, answer


@check
def the_same_as_over_http():
    import tritonclient.http as http
    inputs = [("SKILL", [b"caption"], "BYTES"), ("LENGTH", [b"short"], "BYTES"), ("TEMPERATURE", [0], "FP32"), ("IMAGE", [picture_bytes()], "BYTES")]
    own = [http.InferInput(name, [1], kind) for name, _, kind in inputs]
    for input_, (_, values, kind) in zip(own, inputs):
        input_.set_data_from_numpy(np.array(values, dtype=object if kind == "BYTES" else np.float32))
    over_http = http.InferenceServerClient(os.environ["PHOTON_URL"].removeprefix("http://")).infer("moondream", own)
    assert infer(*(tensor(*input_) for input_ in inputs))["caption"] == json.loads(over_http.as_numpy("TEXT_OUTPUT")[0])["caption"]


@check
def boxes_and_points():
    found = infer(text("SKILL", "detect"), text("OBJECT", "star"), image(), tensor("MAX_OBJECTS", [3], "INT32"))["objects"]
    assert len(found) == 1
    in_unit(*found[0].values())
    refs = tensor("SPATIAL_REFS", [[0.5, 0.5], [0.1, 0.2]], "FP32")
    assert "points" in infer(text("SKILL", "point"), text("OBJECT", "star"), image(), refs)


@check
def pictures_in_base64():
    assert len(infer(text("SKILL", "detect"), text("OBJECT", "star"), text("IMAGE", picture_base64()))["objects"]) == 1


@check
def contents_that_are_not_raw():
    """Clients made from KServe's own definition list elements by type, and read them so."""
    request = messages.ModelInferRequest(model_name="moondream", id="7")
    for name, kind, contents in [
        ("SKILL", "BYTES", {"bytes_contents": [b"detect"]}), ("OBJECT", "BYTES", {"bytes_contents": [b"star"]}),
        ("IMAGE", "BYTES", {"bytes_contents": [picture_bytes()]}), ("MAX_OBJECTS", "INT32", {"int_contents": [2]}),
        ("TEMPERATURE", "FP32", {"fp32_contents": [0.0]}), ("REASONING", "BOOL", {"bool_contents": [False]}),
    ]:
        request.inputs.add(name=name, datatype=kind, shape=[1], contents=messages.InferTensorContents(**contents))
    answer = client._client_stub.ModelInfer(request)
    assert answer.id == "7" and not answer.raw_output_contents
    answer = json.loads(answer.outputs[0].contents.bytes_contents[0])
    assert len(answer["objects"]) == 1 and answer["request_id"] == "7"


@check
def a_stream_gives_an_answer_in_pieces():
    inputs = [text("SKILL", "caption"), text("LENGTH", "long"), image(), tensor("STREAM", [True], "BOOL"), tensor("TEMPERATURE", [0], "FP32")]
    results = [result for result, error in stream(("a", inputs)) if not error]
    pieces = [output(result) for result in results]
    assert len(pieces) > 3 and [piece["completed"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece.get("chunk", "") for piece in pieces).strip() == pieces[-1]["caption"].strip()
    assert all(result.get_response().id == "a" for result in results)


@check
def without_stream_it_comes_whole():
    [(result, error)] = stream(("a", [text("QUESTION", "What color is the star?"), image(), tensor("TEMPERATURE", [0], "FP32")]))
    assert not error and output(result)["answer"] == "Blue"


@check
def requests_of_a_stream_run_together_and_fail_alone():
    good = lambda: [text("SKILL", "detect"), text("OBJECT", "star"), image()]
    got = stream(("a", good()), ("b", [text("SKILL", "detect"), image()]), ("c", good()), ("d", [text("SKILL", "caption"), text("IMAGE", b"\xff")]))
    answers = {result.get_response().id: output(result)["objects"] for result, error in got if not error}
    assert sorted(answers) == ["a", "c"] and answers["a"] == answers["c"]
    errors = sorted(error.message() for _, error in got if error)
    assert len(errors) == 2 and any("Field 'object'" in error for error in errors), errors


if "segment" in SKILLS:
    @check
    def outlines_in_pieces():
        pieces = [output(result) for result, _ in stream(("a", [text("SKILL", "segment"), text("OBJECT", "star"), image(), tensor("STREAM", [True], "BOOL")]))]
        assert pieces[0]["type"] == "bbox" and pieces[-1]["type"] == "final"


@check
def errors():
    assert "fly" in refused("INVALID_ARGUMENT", text("SKILL", "fly"))
    assert "no input 'WHAT'".replace("'", '"') in refused("INVALID_ARGUMENT", text("WHAT", "x"))
    assert "Field 'object'" in refused("INVALID_ARGUMENT", text("SKILL", "detect"), image())
    assert "picture" in refused("INVALID_ARGUMENT", text("SKILL", "caption"), text("IMAGE", b"\xff\xd8\xff"))
    assert "max_objects" in refused("INVALID_ARGUMENT", text("SKILL", "detect"), text("OBJECT", "x"), image(), tensor("MAX_OBJECTS", [5000], "INT32"))
    assert "spatial_refs[0]" in refused("INVALID_ARGUMENT", text("SKILL", "point"), text("OBJECT", "x"), image(), tensor("SPATIAL_REFS", [[0.1, 0.2, 0.3]], "FP32"))
    assert "other" in refused("NOT_FOUND", text("QUESTION", "x"), model="other")
    assert "Field 'question'" in refused("INVALID_ARGUMENT", text("SKILL", "query"), text("QUESTION", ""), image())
    request = messages.ModelInferRequest(model_name="moondream", raw_input_contents=[b"", b""])
    try:
        client._client_stub.ModelInfer(request)
        raise AssertionError("it was answered")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "raw" in error.details(), error


@check
def what_triton_has_beyond_it_is_unimplemented():
    for ask in (client.get_model_repository_index, client.get_cuda_shared_memory_status):
        try:
            ask()
            raise AssertionError("it was answered")
        except triton.InferenceServerException as error:
            assert error.status() == "StatusCode.UNIMPLEMENTED", error


@check
def a_client_that_gives_up_is_forgotten():
    """Its deadline passes while the answer is drawn: the engine has nothing left to do."""
    refused("DEADLINE_EXCEEDED", text("SKILL", "caption"), text("LENGTH", "long"), image(), client_timeout=0.001)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        engine = get("/v1/status")[2]["engine"]
        if engine["running"] == engine["waiting"] == 0:
            return
    raise AssertionError(engine)


done()
