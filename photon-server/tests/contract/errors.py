"""What the server says when something is wrong, and what else a program may rely on."""

from checks import MODEL, check, done, get, picture_base64, picture_bytes, picture_uri, post

IMAGE = {"image_url": picture_uri()}


def cases():
    """(path, body, status, what the message says)."""
    yield "/v1/query", b"{", 400, "Invalid JSON body"
    yield "/v1/query", [], 400, "Request body must be an object"
    yield "/v1/query", b"\xff\xfe", 400, "Invalid JSON body"
    yield "/v1/query", b"[" * 100_000, 400, "nested deeper"
    yield "/v1/query", {}, 400, "Field 'question' must be a non-empty string"
    yield "/v1/query", {"question": 1}, 400, "Field 'question' must be a string"
    yield "/v1/query", {"question": "x", "reasoning": "yes"}, 400, "Field 'reasoning' must be a boolean"
    yield "/v1/query", {"question": "x", "stream": 1}, 400, "Field 'stream' must be a boolean"
    yield "/v1/query", {"question": "x", "settings": 1}, 400, "Field 'settings' must be an object"
    yield "/v1/query", {"question": "x", "settings": {"top_p": 0}}, 400, "top_p"
    yield "/v1/query", {"question": "x", "settings": {"temperature": "hot"}}, 400, "settings.temperature"
    yield "/v1/query", {"question": "x", "settings": {"max_tokens": 0}}, 400, "Field 'settings.max_tokens' must be >= 1"
    yield "/v1/query", {"question": "x", "settings": {"max_tokens": True}}, 400, "Field 'settings.max_tokens' must be an integer"
    yield "/v1/query", {"question": "x" * 9000, **IMAGE}, 400, "question"
    yield "/v1/query", {"question": "x", "spatial_refs": [[0.1, 0.2, 0.3]], **IMAGE}, 400, "spatial_refs[0] must contain 2 (point) or 4 (bbox) values"
    yield "/v1/query", {"question": "x", "spatial_refs": [[2, 0]], **IMAGE}, 400, "between 0 and 1"
    yield "/v1/query", {"question": "x", "spatial_refs": [[0.1, 0.2]]}, 400, "image"
    yield "/v1/query", {"question": "x", "image_url": "%%%"}, 400, "base64"
    yield "/v1/query", {"question": "x", "image_url": "data:image/png;base64,AAAA"}, 400, "image"
    yield "/v1/query", {"question": "x", "image_url": "http://127.0.0.1/x.png"}, 400, "does not fetch"
    yield "/v1/query", {"question": "x", "model": "other"}, 404, "other"
    yield "/v1/caption", {}, 400, "needs an image"
    yield "/v1/caption", {**IMAGE, "length": "huge"}, 400, "Field 'length'"
    yield "/v1/detect", {**IMAGE, "object": "  "}, 400, "Field 'object' must be a non-empty string"
    yield "/v1/detect", {**IMAGE, "object": "x", "settings": {"max_objects": 5000}}, 400, "max_objects"
    yield "/v1/fly", {}, 404, "no skill"
    yield "/v1/chat/completions", {"messages": "x"}, 400, "messages"
    yield "/api/chat", {"model": MODEL, "messages": [{"role": "x", "content": "y"}]}, 400, "role"


for path, body, status, message in cases():
    @check
    def error(path=path, body=body, status=status, message=message):
        got, headers, answer = post(path, body)
        said = answer["error"] if isinstance(answer["error"], str) else answer["error"]["message"]
        assert got == status and message in said, (path, got, answer, message)
        assert headers["x-request-id"]
        assert "/home" not in said and ".rs" not in said


@check
def a_stream_that_cannot_begin_is_an_error_with_a_status():
    got, headers, answer = post("/v1/query", {"question": "x", "stream": True, "image_url": "data:image/png;base64,AAAA"})
    assert got == 400 and "error" in answer and "json" in headers["Content-Type"], answer


@check
def null_settings_are_none():
    assert post("/v1/detect", {**IMAGE, "object": "star", "settings": None})[0] == 200


@check
def bare_base64():
    assert post("/v1/detect", {"image_url": picture_base64(), "object": "star"})[0] == 200


@check
def forms():
    boundary = "x7b1"
    def part(name, value, more=""):
        return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"
    body = part("image", picture_bytes(), '; filename="a.png"') + part("question", b"What color is the star?") \
        + part("temperature", b"0") + f"--{boundary}--\r\n".encode()
    got, _, answer = post("/v1/query", body, kind=f"multipart/form-data; boundary={boundary}")
    assert got == 200 and answer["answer"] == "Blue", answer
    got, _, answer = post("/v1/query", b"question=Hello&max_tokens=2", kind="application/x-www-form-urlencoded")
    assert got == 200, answer


@check
def answers_hold_what_is_promised():
    _, headers, answer = post("/v1/detect", {**IMAGE, "object": "star"}, {"x-request-id": "mine-1"})
    assert headers["x-request-id"] == "mine-1" == answer["request_id"]
    assert answer["finish_reason"] == "stop"
    for name in ("input_tokens", "output_tokens", "prefill_time_ms", "decode_time_ms", "ttft_ms"):
        assert name in answer["metrics"], answer
    _, _, answer = post("/v1/point", {**IMAGE, "object": "star"})
    assert answer["count"] == len(answer["points"]) == 1


@check
def a_trace_is_handed_on():
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert get("/health", {"traceparent": trace})[1]["traceparent"] == trace


@check
def surroundings():
    assert get("/health")[2]["status"] == get("/healthz")[2]["status"] == get("/readiness")[2]["status"] == "ok"
    models = get("/v1/models")[2]
    assert models["data"][0]["id"] == models["models"][0]["id"] == MODEL
    assert post("/v1/count_tokens", {"text": "hello"})[2]["count"] > 0
    assert get("/v1/stats")[2]["requests_processed"] > 0
    text = get("/metrics")[2]
    for name in ('photon_cache_config_info{block_size="16",num_gpu_blocks="', "photon_num_requests_waiting", "photon_kv_cache_usage_perc", "photon_time_to_first_token_seconds_bucket",
                 "photon_prefix_cache_hits_total", 'photon_requests_total{skill="detect",outcome="ok"}',
                 'photon_requests_rejected_total{reason="invalid_request"}'):
        assert name in text, name


@check
def tokens_as_llama_cpp_shows_them():
    tokens = post("/tokenize", {"content": " Hello, wörld"})[2]["tokens"]
    assert len(tokens) > 1 and all(isinstance(token, int) for token in tokens)
    assert post("/detokenize", {"tokens": tokens})[2]["content"] == " Hello, wörld"
    pieces = post("/tokenize", {"content": "Hello", "with_pieces": True})[2]["tokens"]
    assert "".join(piece["piece"] for piece in pieces) == "Hello"
    assert post("/tokenize", {"content": 1})[0] == post("/detokenize", {"tokens": [-1]})[0] == 400


@check
def pages_of_others_may_not_ask():
    got, _, answer = post("/v1/query", {"question": "x"}, {"Origin": "https://evil.example"})
    assert got == 403, answer


@check
def every_route_is_described():
    paths = get("/openapi.json")[2]["paths"]
    for path in ("/v1/query", "/v1/segment", "/v1/route_key", "/v1/chat/completions", "/api/chat", "/v2/models/{model}/infer", "/metrics"):
        assert path in paths, path
    assert get("/nowhere")[0] == 404 and get("/v1/query")[0] == 405


done()
