"""Skills, settings, errors, batches, threads."""

import concurrent.futures
import copy
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import PICTURE

import photon

GREEDY = {"temperature": 0}
LONG = {"temperature": 0, "max_tokens": 768}


def test_every_skill_has_its_shape(model, experts, picture):
    caption = model.caption(picture, "short")
    assert list(caption) == ["caption"] and caption["caption"].startswith("A yellow triangle")
    assert model.query(picture, "What color is the star?") == {"answer": "Blue"}
    [box] = model.detect(picture, "star")["objects"]
    assert set(box) == {"x_min", "y_min", "x_max", "y_max"} and 0 < box["x_min"] < box["x_max"] < 1
    [point] = model.point(picture, "star")["points"]
    assert box["x_min"] < point["x"] < box["x_max"]
    assert set(model.gaze(picture, [0.5, 0.5])) == {"gaze"}
    outline = experts.segment(picture, "star")
    assert set(outline) == {"path", "bbox"} and outline["path"].startswith("M")
    said = model.chat([{"role": "user", "content": "Which shapes are there?"}])
    assert set(said) == {"message", "finish_reason"} and said["message"]["role"] == "assistant"


def test_results_say_how_they_came_about(model, picture):
    result = model.query(picture, "What color is the star?")
    assert isinstance(result, dict) and result.finish_reason == "stop"
    assert result.metrics["input_tokens"] > result.metrics["cached_tokens"] >= 0
    for same in [pickle.loads(pickle.dumps(result)), copy.copy(result)]:
        assert same == result and same.metrics == result.metrics


def test_reasoning_and_places(experts, picture):
    thought = experts.query(picture, "What color is the star?", reasoning=True, settings={"max_tokens": 20})
    assert set(thought["reasoning"]) == {"text", "grounding"}
    for refs in [[[0.5, 0.5]], [(0.1, 0.2, 0.3, 0.4)], []]:
        assert "answer" in experts.query(picture, "What is this?", spatial_refs=refs)
        assert "points" in experts.point(picture, "star", spatial_refs=refs)
    with pytest.raises(ValueError, match=r"spatial_refs\[0\] must contain 2"):
        experts.query(picture, "What is this?", spatial_refs=[[0.1, 0.2, 0.3]])


def test_settings_are_followed(model, picture):
    assert model.caption(picture, settings={"max_tokens": 2}).finish_reason == "length"
    assert model.caption(picture, "short", settings={"stop": ["blue"]})["caption"] == "A yellow triangle, a "
    hot = {"temperature": 3.0, "top_p": 1.0, "seed": 5}
    assert model.caption(picture, settings=hot) == model.caption(picture, settings=dict(hot))
    assert model.caption(picture, settings=hot) != model.caption(picture, settings=dict(hot, seed=6))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = model.query(picture, "How many stars?", json_schema=schema, settings={"max_tokens": 30})
    assert answer["answer"].startswith('{"n": ')


def test_numbers_of_numpy_are_numbers(model, picture):
    np = pytest.importorskip("numpy")
    settings = {"temperature": np.float32(0), "max_tokens": np.int64(3), "top_p": np.float64(0.5)}
    assert model.caption(picture, settings=settings).finish_reason == "length"
    assert "answer" in model.query(picture, "What is this?", spatial_refs=np.array([[0.5, 0.5]]))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda m: m.query(PICTURE), "'question' must be a non-empty string"),
        (lambda m: m.query(PICTURE, 3), "'question' must be a string"),
        (lambda m: m.detect(PICTURE, " "), "'object' must be a non-empty string"),
        (lambda m: m.caption(PICTURE, "tiny"), "'length' must be 'short'"),
        (lambda m: m.caption(PICTURE, settings={"temperature": -1}), "temperature is -1"),
        (lambda m: m.caption(PICTURE, settings={"temperature": "hot"}), "must be a number"),
        (lambda m: m.caption(PICTURE, settings={"temperature": float("nan")}), "finite"),
        (lambda m: m.caption(PICTURE, settings={"max_tokens": object()}), "no request can carry"),
        (lambda m: m.caption(PICTURE, timeout=-1), "timeout must be seconds"),
        (lambda m: m.query(PICTURE, "?", regex="("), "regular expression"),
        (lambda m: m.query(PICTURE, "?", regex="a", json_schema={}), "give one of"),
        (lambda m: m.segment(PICTURE, "star"), "such as model demo3"),
        (lambda m: m.chat([]), "no messages"),
        (lambda m: m.chat([{"role": "robot", "content": "hi"}]), "not one of system"),
        (lambda m: m.chat([{"role": "user", "content": [{"type": "video"}]}]), "cannot be of type"),
        (lambda m: m.chat(["hi"]), "must be a dictionary"),
    ],
)
def test_what_makes_no_sense_is_said(model, wrong, why):
    with pytest.raises(photon.errors.InvalidRequestError, match=why.replace("(", r"\(")) as error:
        wrong(model)
    assert isinstance(error.value, ValueError) and isinstance(error.value, photon.PhotonError)


def test_pictures_in_conversations(model, picture):
    uri = model.encode_image(picture).image_url
    for part in [
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "image_url", "image_url": uri},
        {"type": "image", "image": picture},
    ]:
        words = {"type": "text", "text": "What color is the star?"}
        said = model.chat([{"role": "user", "content": [part, words]}])
        assert said["message"]["content"] == "Blue"


def test_streams_are_the_answer_in_pieces(model, experts, picture):
    whole = model.caption(picture, settings=GREEDY)["caption"]
    stream = model.caption(picture, stream=True, settings=GREEDY)["caption"]
    pieces = list(stream)
    assert len(pieces) > 2 and "".join(pieces) == whole
    assert stream.result() == {"caption": whole} and next(stream, None) is None
    answer = model.query(picture, "What color is the star?", stream=True)["answer"]
    assert "".join(answer) == "Blue"
    messages = [{"role": "user", "content": "Hello"}]
    assert "".join(model.chat(messages, stream=True)["message"]) == model.chat(messages)["message"]["content"]
    places = model.detect(picture, "circle", stream=True)["objects"]
    assert list(places) == model.detect(picture, "circle")["objects"]
    updates = list(experts.segment(picture, "star", stream=True, settings=GREEDY))
    assert "bbox" in updates[0] and not updates[0].get("completed")
    chunks = "".join(update["chunk"] for update in updates if "chunk" in update)
    assert updates[-1]["completed"] and updates[-1]["path"] == chunks
    thinking = experts.query(
        picture, "What is this?", stream=True, reasoning=True, settings={"max_tokens": 12}
    )["answer"]
    assert thinking.result()["reasoning"]["text"] == thinking.reasoning


def test_streams_fail_where_they_are_read(model):
    stream = model.caption("no/such.png", stream=True)["caption"]
    with pytest.raises(FileNotFoundError):
        next(stream)
    assert list(stream) == []


def idle(model):
    """Waits until the engine has nothing to do."""
    for _ in range(200):
        if model.stats()["running"] == 0 and model.stats()["waiting"] == 0:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("how", ["close", "drop", "with"])
def test_a_stream_that_is_left_is_cancelled(picture, how):
    # One at a time, so that a machine that pauses this test finishes some of the line and not all of it.
    with photon.vl(max_seqs=1) as model:
        regex = {"regex": "(a|b|c|d){700}", "settings": LONG}
        streams = [model.query(picture, "?", stream=True, **regex)["answer"] for _ in range(12)]
        assert next(streams[0])
        assert model.stats()["running"] + model.stats()["waiting"] > 0
        if how == "close":
            [stream.close() for stream in streams]
            with pytest.raises(photon.errors.ClosedError):
                streams[0].result()
        elif how == "with":
            for stream in streams:
                with stream:
                    next(stream)
        else:
            del streams
        assert idle(model)
        assert model.stats()["finished"] < 12


def test_errors_in_a_batch_are_values(model, picture):
    requests = [
        {"skill": "query", "image": picture, "question": "What color is the star?"},
        {"skill": "query", "image": picture},
        {"skill": "dance"},
        {"skill": "caption", "image": "no/such.png"},
        {"skill": "caption", "image": 3},
        {"skill": "caption", "imge": picture},
        "caption",
        {"skill": "chat", "messages": [{"role": "user", "content": "Hi"}]},
        {"skill": "point", "image": picture, "object": "star", "timeout": 0},
    ]
    answers = model.batch(requests)
    kinds = [type(answer).__name__ for answer in answers]
    assert kinds == [
        "Result",
        "InvalidRequestError",
        "InvalidRequestError",
        "ImageNotFoundError",
        "ImageTypeError",
        "InvalidRequestError",
        "InvalidRequestError",
        "Result",
        "DeadlineError",
    ]
    assert answers[0] == {"answer": "Blue"} and "'imge'" in str(answers[5]).replace('"', "'")


def test_a_batch_takes_no_more_than_is_under_way(picture):
    with photon.vl(max_seqs=2, max_waiting=3) as model:
        taken = 0

        def requests():
            nonlocal taken
            for _ in range(30):
                taken += 1
                assert taken - model.stats()["finished"] < 12
                yield {"skill": "point", "image": picture, "object": "star"}

        answers = model.batch(requests())
        assert all(answer == answers[0] for answer in answers) and len(answers) == 30


def test_progress_is_shown_if_asked_for(model, picture, capsys):
    pytest.importorskip("tqdm")
    model.batch([{"skill": "point", "image": picture, "object": "star"}] * 2, progress=True)
    assert "2/2" in capsys.readouterr().err
    model.batch([{"skill": "point", "image": picture, "object": "star"}])
    assert capsys.readouterr().err == ""


def test_threads_share_a_model(model, picture):
    colors = {"circle": "Red", "star": "Blue", "triangle": "Yellow"}

    def ask(shape):
        return model.query(picture, f"What color is the {shape}?")["answer"] == colors[shape]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, list(colors) * 8))


def test_waiting_lets_other_threads_run(model, picture):
    counted, done = 0, threading.Event()

    def count():
        nonlocal counted
        while not done.is_set():
            counted += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()

    def counted_during_a_query():
        before = counted
        model.query(picture, "?", regex="[ab]{700}", settings=LONG)
        return counted - before

    # Between two queries it could count once; a busy machine may let it wait for a query or two.
    assert any(counted_during_a_query() > 3 for _ in range(20))
    done.set()
    thread.join()


def test_models_of_the_same_arguments_share_an_engine(model, picture):
    steps = model.stats()["steps"]
    again = pickle.loads(pickle.dumps(model))
    again.point(picture, "star")
    assert model.stats()["steps"] > steps
    again.close()
    with pytest.raises(RuntimeError, match="closed"):
        again.point(picture, "star")
    assert model.point(picture, "star")["points"], "the other is still open"
    other = photon.vl(max_seqs=2)
    assert other.stats()["steps"] == 0
    other.close()


def test_what_closes_while_somebody_waits(picture):
    # One at a time: the last of the line wait for as long as all others take.
    model = photon.vl(max_seqs=1)
    long = {"regex": "[ab]{700}", "settings": LONG}
    failed = []

    def ask():
        try:
            model.query(picture, "?", **long)
        except photon.errors.ClosedError as error:
            failed.append(error)

    streams = [model.query(picture, "?", stream=True, **long)["answer"] for _ in range(20)]
    next(streams[0])
    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(1000):
        if sum(model.stats()[state] for state in ("running", "waiting", "finished")) == 21:
            break
        time.sleep(0.001)
    model.close()
    thread.join(10)
    assert len(failed) == 1
    with pytest.raises(photon.errors.ClosedError):
        list(streams[-1])


def test_models_and_devices_that_are_not_there_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"photon\.models\(\)"):
        photon.vl(model="no-such-model")
    with pytest.raises(photon.errors.DeviceError, match="no device"):
        photon.vl(device="abacus")
    with pytest.raises(photon.errors.ModelError):
        photon.vl(model=tmp_path)
    with pytest.raises(ValueError, match="quant"):
        photon.vl(quant="int3")
    with pytest.raises(ValueError, match="f32, f16, bf16"):
        photon.vl(dtype="float32")
    with pytest.raises(photon.errors.AdapterError, match="adapters"):
        photon.vl(model="demo/cats@100")
    with pytest.raises(TypeError, match="devce"):
        photon.vl(devce="cpu")
    with pytest.raises(ValueError, match="in this process"):
        photon.vl(endpoint="http://localhost:2020/v1")
    assert photon.models()["demo"] and photon.doctor()["cpu"][0]


def test_a_fork_is_told_to_make_its_own_and_can():
    program = f"""
import asyncio, os, photon, threading
picture = {str(PICTURE)!r}
model = photon.vl()
asyncio.run(model.apoint(picture, "star"))
if os.fork() == 0:
    try:
        model.point(picture, "star")
    except photon.errors.ClosedError as error:
        assert "forked" in str(error)
        del model
        own = photon.vl()
        answer = own.query(picture, "What color is the star?")
        assert asyncio.run(own.aquery(picture, "What color is the star?")) == answer
        print(answer["answer"], flush=True)
    os._exit(0)
os.wait()
print(model.query(picture, "What color is the circle?")["answer"])
"""
    if sys.platform != "linux":
        pytest.skip("forks are otherwise")
    printed = subprocess.check_output([sys.executable, "-W", "ignore", "-c", program], text=True, timeout=60)
    assert printed == "Blue\nRed\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are otherwise")
@pytest.mark.parametrize("call", ["query", "stream", "batch", "asyncio"])
def test_ctrl_c_ends_a_call(call):
    program = f"""
import photon, asyncio, signal
# What runs in the background of a shell may have been told to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
model = photon.vl()
asked = dict(image={str(PICTURE)!r}, question="?", regex="[ab]{{760}}", settings={{"max_tokens": 768}})
def stream():
    for _ in model.query(stream=True, **asked)["answer"]: pass
calls = {{
    "query": lambda: [model.query(**asked) for _ in range(100)],
    "stream": lambda: [stream() for _ in range(100)],
    "batch": lambda: model.batch([dict(asked, skill="query")] * 1000),
    "asyncio": lambda: asyncio.run(model.abatch([dict(asked, skill="query")] * 1000)),
}}
print("ready", flush=True)
try:
    calls[{call!r}]()
except KeyboardInterrupt:
    print("interrupted", model.stats()["waiting"] >= 0, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.3)
    begun = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=20)[0] == "interrupted True\n"
    assert time.monotonic() - begun < 15
