"""The key that requests are routed by: what the server says of a request, what it answers it with, and what a client
computes by itself are the same."""

import base64
import pathlib
import sys

from checks import check, done, get, picture_base64, picture_bytes, picture_uri, post

sys.path.append(str(pathlib.Path(__file__).parents[3] / "scale"))
import route_key

ANOTHER = "https://pictures.example/1.jpg"
OWN = route_key.route_key(picture_bytes())


def user(*parts):
    return {"role": "user", "content": list(parts)}


def text(said):
    return {"type": "text", "text": said}


def picture(url):
    return {"type": "image_url", "image_url": {"url": url}}


REQUESTS = {
    "base64": ({"image_url": picture_base64(), "object": "star"}, OWN),
    "a data URI, and another question": ({"image_url": picture_uri(), "question": "What color is the star?"}, OWN),
    "no padding": ({"image": picture_base64().rstrip("=")}, OWN),
    "the first of several": ({"images": [picture_uri(), ANOTHER]}, OWN),
    "an address, which is not fetched": ({"image_url": ANOTHER}, route_key.route_key(ANOTHER)),
    "a question without a picture": ({"question": " Why? "}, route_key.route_key("Why?")),
    "nothing": ({}, route_key.route_key("")),
    "a chat": ({"messages": [user(text("Hello"), picture(picture_uri()))]}, OWN),
    "a picture later on": (
        {"messages": [user(text("Hello")), {"role": "assistant", "content": "Hi"}, user(picture(picture_uri()))]}, OWN),
    "a chat without pictures": (
        {"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "A "}, user(text("B"), text("C")),
                      {"role": "assistant", "content": "Hi"}, user(text("D"))]},
        route_key.route_key("A \nB\nC")),
}

for name, (body, expected) in REQUESTS.items():
    @check
    def the_server_says_what_a_client_computes(name=name, body=body, expected=expected):
        got, _, answer = post("/v1/route_key", body)
        assert got == 200 and answer == {"route_key": expected}, (name, answer, expected)
        assert route_key.of_request(body) == expected, name


@check
def the_definition_is_sha_256():
    assert route_key.route_key(b"abc") == "ba7816bf8f01cfea414140de5dae2223"


@check
def every_answer_has_it():
    asked = {
        "/v1/detect": {"image_url": picture_uri(), "object": "star"},
        "/v1/caption": {"image_url": picture_base64(), "stream": True},
        "/v1/chat/completions": {"messages": [user(text("What is it?"), picture(picture_uri()))], "max_tokens": 2},
        "/api/chat": {"messages": [{"role": "user", "content": "Hi", "images": [picture_base64()]}], "stream": False},
        "/api/generate": {"prompt": "Hi", "images": [picture_base64()], "options": {"num_predict": 2}},
        "/v2/models/demo/infer": {"inputs": [
            {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]}
            for name, value in (("SKILL", "caption"), ("IMAGE", picture_base64()))]},
    }
    for path, body in asked.items():
        got, headers, answer = post(path, body)
        assert got == 200 and headers[route_key.HEADER] == OWN, (path, got, headers, answer)
    assert route_key.HEADER not in get("/health")[1]


@check
def a_form_and_ollama_s_bodies_have_the_same():
    boundary = "x7b1"
    form = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode() \
        + picture_bytes() + f"\r\n--{boundary}--\r\n".encode()
    assert post("/v1/route_key", form, kind=f"multipart/form-data; boundary={boundary}")[2]["route_key"] == OWN
    chat = {"messages": [{"role": "user", "content": "Hi", "images": [base64.b64encode(picture_bytes()).decode()]}]}
    assert post("/v1/route_key", chat)[2]["route_key"] == OWN
    assert post("/v1/route_key", {"prompt": "Hi"})[2]["route_key"] == route_key.route_key("Hi")


@check
def what_is_no_request_has_none():
    got, headers, answer = post("/v1/route_key", {"image_url": "%%%"})
    assert got == 400 and "base64" in answer["error"], answer
    assert post("/v1/route_key", {"messages": 1})[0] == 400


done()
