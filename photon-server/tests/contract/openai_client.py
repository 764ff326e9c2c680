"""OpenAI's Python client: chat with pictures, streams, schemas, skills, errors."""

import json

import openai
from openai import OpenAI

from checks import MODEL, SKILLS, URL, check, done, picture_uri

client = OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
NO_THOUGHT = {"reasoning": False}


def user(text, *images):
    parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in images]
    return {"role": "user", "content": parts + [{"type": "text", "text": text}]}


def ask(messages, body=None, **more):
    extra = {**NO_THOUGHT, **(body or {})}
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, extra_body=extra, **more)


STAR = [user("What color is the star?", picture_uri())]


@check
def models():
    assert MODEL in [model.id for model in client.models.list()]


@check
def chat():
    got = ask(STAR)
    choice = got.choices[0]
    assert choice.message.content == "Blue" and choice.finish_reason == "stop", got
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    again = ask(STAR)
    assert again.usage.prompt_tokens_details.cached_tokens > 0, again.usage


@check
def chat_streams_the_same():
    chunks = list(ask(STAR, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Blue", text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices


@check
def a_second_turn():
    first = ask(STAR).choices[0].message.content
    turns = STAR + [{"role": "assistant", "content": first}, user("How many shapes are there?")]
    got = ask(turns)
    assert got.choices[0].message.content is not None
    assert got.usage.prompt_tokens_details.cached_tokens > 0, got.usage


@check
def text_may_come_before_the_picture():
    parts = STAR[0]["content"][::-1]
    assert ask([{"role": "user", "content": parts}]).choices[0].message.content == "Blue"


@check
def a_system_message():
    assert ask([{"role": "system", "content": "Be brief."}] + STAR).choices[0].message.content is not None


@check
def max_tokens_ends_with_length():
    for name in ("max_tokens", "max_completion_tokens"):
        got = ask([user("Describe.", picture_uri())], **{name: 1})
        assert got.usage.completion_tokens == 1, got
    assert got.choices[0].finish_reason in ("length", "stop")


@check
def stop_strings():
    got = ask(STAR, stop=["ue"])
    assert got.choices[0].message.content == "Bl", got


@check
def logprobs():
    got = ask(STAR, logprobs=True).choices[0]
    assert "".join(token.token for token in got.logprobs.content) == "Blue", got.logprobs
    assert all(token.logprob <= 0 for token in got.logprobs.content)


@check
def json_schema():
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "color", "strict": True, "schema": schema}}
    got = ask(STAR, response_format=form)
    assert json.loads(got.choices[0].message.content)["color"] in ("red", "blue"), got


@check
def skills():
    got = ask([user("star", picture_uri())], body={"skill": "detect"})
    objects = json.loads(got.choices[0].message.content)["objects"]
    assert len(objects) == 1 and got.moondream["objects"] == objects, got
    got = ask([user("", picture_uri())], body={"skill": "point", "object": "red circle"})
    assert len(json.loads(got.choices[0].message.content)["points"]) == 1, got
    got = ask([user("", picture_uri())], body={"skill": "caption", "length": "short"})
    assert got.choices[0].message.content, got
    if "segment" in SKILLS:
        got = ask([user("", picture_uri())], body={"skill": "segment", "object": "star"})
        assert got.moondream["path"].startswith("M "), got


@check
def reasoning():
    got = ask(STAR, body={"reasoning": True}, max_tokens=8).choices[0].message
    assert isinstance(got.reasoning_content, str), got


@check
def a_wrong_model_is_not_found():
    try:
        client.chat.completions.create(model="gpt-4o", messages=STAR)
        raise AssertionError("no error")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error


@check
def bad_requests():
    for body in ({"messages": []}, {"messages": [{"role": "user", "content": 1}]}, {"messages": STAR, "n": 2},
                 {"messages": STAR, "temperature": -1}, {"messages": [user("x", "data:image/png;base64,AAAA")]},
                 {"messages": STAR, "extra_body": {"tools": [{"type": "function"}]}},
                 {"messages": [{"role": "alien", "content": "x"}]}):
        try:
            client.chat.completions.create(**{"model": MODEL, **body})
            raise AssertionError(f"no error for {list(body)}")
        except openai.BadRequestError as error:
            assert error.message and error.body["type"] == "invalid_request_error", error


done()
