"""Ollama's Python client: lists, chat, generate, formats."""

import json

import ollama

from checks import MODEL, PICTURE, URL, check, done, get

client = ollama.Client(host=URL)
GREEDY = {"temperature": 0}
QUESTION = "What color is the star?"


@check
def lists():
    assert MODEL in [model.model for model in client.list().models]
    assert client.ps().models[0].model == MODEL
    assert "vision" in client.show(MODEL).capabilities
    assert client.pull("moondream").status == "success"


@check
def chat():
    turn = {"role": "user", "content": QUESTION, "images": [PICTURE]}
    for name in (MODEL, "moondream", "moondream:latest", "moondream:1.8b"):
        got = client.chat(name, messages=[turn], options=GREEDY)
        assert got.message.content == "Blue" and got.done_reason == "stop", got
    assert got.prompt_eval_count > 0 and got.eval_count > 0 and got.total_duration > 0


@check
def chat_streams_the_same():
    turn = {"role": "user", "content": QUESTION, "images": [PICTURE]}
    lines = list(client.chat(MODEL, messages=[turn], options=GREEDY, stream=True))
    assert "".join(line.message.content for line in lines) == "Blue", lines
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]


@check
def a_picture_in_a_message_of_its_own():
    turns = [{"role": "user", "content": "", "images": [PICTURE]}, {"role": "user", "content": QUESTION}]
    assert client.chat(MODEL, messages=turns, options=GREEDY).message.content == "Blue"


@check
def generate():
    got = client.generate(MODEL, QUESTION, images=[PICTURE], options=GREEDY)
    assert got.response == "Blue" and got.done, got
    lines = list(client.generate(MODEL, QUESTION, images=[PICTURE], options=GREEDY, stream=True))
    assert "".join(line.response for line in lines) == "Blue", lines


@check
def loading():
    assert client.generate(MODEL).done_reason == "load"


@check
def json_format():
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": False}
    got = client.chat(MODEL, messages=[{"role": "user", "content": "How many?", "images": [PICTURE]}], format=schema, options=GREEDY)
    assert 0 <= json.loads(got.message.content)["n"] <= 9, got


@check
def limits():
    got = client.generate(MODEL, "Describe.", images=[PICTURE], options={"temperature": 0, "num_predict": 1})
    assert got.eval_count == 1, got


@check
def errors():
    for call in (lambda: client.chat("llama3", messages=[{"role": "user", "content": "x"}]), lambda: client.show("llama3"), lambda: client.pull("llama3")):
        try:
            call()
            raise AssertionError("no error")
        except ollama.ResponseError as error:
            assert error.status_code == 404 and "llama3" in error.error, error


@check
def greeting():
    assert get("/")[2] == "Ollama is running"
    assert get("/api/version")[2]["version"]


done()
