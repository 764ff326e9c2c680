"""Moondream's Python client, unchanged: every method, at once and streamed."""

import inspect
import urllib.error

import moondream as md
from PIL import Image

from checks import MODEL, PICTURE, SKILLS, URL, check, done, in_unit

image = Image.open(PICTURE)
model = md.vl(endpoint=URL + "/v1")
GREEDY = {"temperature": 0.0}
TAKES_REFS = "spatial_refs" in inspect.signature(model.query).parameters


@check
def caption():
    for length in ("short", "normal", "long"):
        text = model.caption(image, length=length, settings=GREEDY)["caption"]
        assert isinstance(text, str) and text, text


@check
def caption_streams_the_same():
    whole = model.caption(image, length="short", settings=GREEDY)["caption"]
    pieces = list(model.caption(image, length="short", stream=True, settings=GREEDY)["caption"])
    assert len(pieces) > 1 and "".join(pieces) == whole, (pieces, whole)


@check
def query():
    answer = model.query(image, "How many shapes are there?", settings=GREEDY)["answer"]
    assert answer == "3", answer


@check
def query_streams_the_same():
    question = "What color is the star?"
    whole = model.query(image, question, settings=GREEDY)["answer"]
    pieces = list(model.query(image, question, stream=True, settings=GREEDY)["answer"])
    assert "".join(pieces) == whole == "Blue", (pieces, whole)


@check
def query_without_a_picture():
    assert isinstance(model.query(question="Hello", settings={"temperature": 0.0, "max_tokens": 4})["answer"], str)


@check
def query_with_reasoning():
    got = model.query(image, "What color is the star?", reasoning=True, settings={"temperature": 0.0, "max_tokens": 8})
    assert set(got["reasoning"]) == {"text", "grounding"}, got


@check
def query_about_a_place():
    if TAKES_REFS:
        got = model.query(image, "What is this?", spatial_refs=[[0.5, 0.5], [0.1, 0.1, 0.9, 0.9]], settings={"max_tokens": 4})
        assert isinstance(got["answer"], str)


@check
def detect():
    objects = model.detect(image, "star")["objects"]
    assert len(objects) == 1, objects
    for box in objects:
        in_unit(*(box[k] for k in ("x_min", "y_min", "x_max", "y_max")))
        assert box["x_min"] < box["x_max"] and box["y_min"] < box["y_max"], box
    assert len(model.detect(image, "star", settings={"max_objects": 1})["objects"]) == 1


@check
def point():
    points = model.point(image, "red circle")["points"]
    assert len(points) == 1, points
    in_unit(points[0]["x"], points[0]["y"])


@check
def an_encoded_image_can_be_used_again():
    encoded = model.encode_image(image)
    assert model.detect(encoded, "star") == model.detect(image, "star")


@check
def segment():
    if "segment" not in SKILLS:
        return
    got = model.segment(image, "star")
    assert got["path"].startswith("M "), got
    pieces = list(model.segment(image, "star", stream=True))
    assert pieces[0]["bbox"] == got["bbox"], pieces[0]
    assert pieces[-1]["completed"] and pieces[-1]["path"] == got["path"]
    assert "".join(piece.get("chunk", "") for piece in pieces) == got["path"]


@check
def chat():
    if not hasattr(model, "chat"):
        return
    url = model.encode_image(image).image_url
    turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}},
                                        {"type": "text", "text": "What color is the star?"}]}
    got = model.chat([turn], reasoning=False, settings=GREEDY)
    assert got["finish_reason"] == "stop" and got["message"]["content"] == "Blue", got
    pieces = list(model.chat([turn], stream=True, reasoning=False, settings=GREEDY)["message"])
    assert "".join(pieces) == "Blue", pieces


@check
def a_named_model():
    named = md.vl(endpoint=URL + "/v1", model=MODEL)
    assert named.detect(image, "star") == model.detect(image, "star")
    assert md.vl(endpoint=URL + "/v1", model="moondream3-preview").detect(image, "star")


@check
def errors_are_http_errors():
    for ask in (lambda: model.detect(image, "  "), lambda: model.query(image, " "),
                lambda: model.caption(image, length="huge"),
                lambda: model.detect(image, "star", settings={"max_objects": 0}),
                lambda: md.vl(endpoint=URL + "/v1", model="gpt-4o").detect(image, "star")):
        try:
            ask()
        except urllib.error.HTTPError as error:
            assert error.code in (400, 404), error
        else:
            raise AssertionError("no error")


done()
