"""The twins for asyncio."""

import asyncio

import pytest

import photon

LONG = {"temperature": 0, "max_tokens": 768}


def test_awaited_results_are_those_of_calls(model, experts, picture):
    async def main():
        both = [
            (model.caption, model.acaption, (picture, "short")),
            (model.query, model.aquery, (picture, "What color is the star?")),
            (model.detect, model.adetect, (picture, "circle")),
            (model.point, model.apoint, (picture, "circle")),
            (model.gaze, model.agaze, (picture, [0.5, 0.5])),
            (model.chat, model.achat, ([{"role": "user", "content": "Hello"}],)),
            (experts.segment, experts.asegment, (picture, "star")),
        ]
        greedy = {"settings": {"temperature": 0}}
        answers = await asyncio.gather(*(twin(*args, **greedy) for _, twin, args in both))
        for (call, _, args), answer in zip(both, answers):
            assert answer == call(*args, **greedy) and answer.metrics["output_tokens"] > 0
        image = await model.aencode_image(picture)
        assert (await model.aquery(image, "What color is the star?")).metrics["vision_time_ms"] == 0

    asyncio.run(main())


def test_streams_are_iterated(model, experts, picture):
    async def main():
        answer = await model.acaption(picture, stream=True, settings={"temperature": 0})
        stream = answer["caption"]
        pieces = [piece async for piece in stream]
        whole = await model.acaption(picture, settings={"temperature": 0})
        assert len(pieces) > 2 and "".join(pieces) == whole["caption"]
        assert await stream.result() == whole
        places = [place async for place in (await model.adetect(picture, "circle", stream=True))["objects"]]
        assert places == model.detect(picture, "circle")["objects"]
        updates = [update async for update in await experts.asegment(picture, "star", stream=True)]
        assert updates[-1]["completed"]

    asyncio.run(main())


def test_the_loop_goes_on_meanwhile(model, picture):
    async def turns():
        asked = asyncio.ensure_future(model.aquery(picture, "?", regex="[ab]{700}", settings=LONG))
        turns = 0
        while not asked.done():
            await asyncio.sleep(0.001)
            turns += 1
        return turns

    # A busy machine may let the loop wait for a query or two.
    assert any(asyncio.run(turns()) > 3 for _ in range(20))


def test_hundreds_at_once(model, picture):
    async def main():
        asked = (model.apoint(picture, "star") for _ in range(700))
        answers = await asyncio.gather(*asked)
        assert all(answer == answers[0] for answer in answers)

    asyncio.run(main())


def test_errors_come_out_of_await(model):
    async def main():
        with pytest.raises(FileNotFoundError):
            await model.acaption("no/such.png")
        with pytest.raises(ValueError):
            await model.adetect("no/such.png", " ")
        with pytest.raises(TimeoutError):
            await model.aquery(None, "Hello", timeout=0)
        stream = (await model.acaption("no/such.png", stream=True))["caption"]
        with pytest.raises(FileNotFoundError):
            await stream.__anext__()
        assert [piece async for piece in stream] == []

    asyncio.run(main())


async def idle(model):
    for _ in range(200):
        if model.stats()["running"] == 0 and model.stats()["waiting"] == 0:
            return True
        await asyncio.sleep(0.02)
    return False


def test_what_is_cancelled_is_cancelled_in_the_engine(picture):
    long = {"regex": "[ab]{700}", "settings": LONG}

    async def main(model):
        stream = (await model.aquery(picture, "?", stream=True, **long))["answer"]
        asked = [asyncio.ensure_future(model.aquery(picture, "?", **long)) for _ in range(20)]
        await stream.__anext__()
        assert model.stats()["running"] > 0
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.aquery(picture, "?", **long), 0.1)
        for task in asked[10:]:
            task.cancel()
        ends = await asyncio.gather(*asked[10:], return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        async with stream:
            pass
        left = (await model.aquery(picture, "?", stream=True, **long))["answer"]
        del left
        for task in asked[:10]:
            task.cancel()
        assert await idle(model)
        # Of 23 as many as were done in a tenth of a second, or in the pauses of a busy machine.
        assert model.stats()["finished"] < 13

    # One at a time: what is asked last waits for as long as all others take.
    with photon.vl(max_seqs=1) as model:
        asyncio.run(main(model))


def test_a_loop_that_ends_takes_its_requests_with_it(picture):
    async def main(model):
        long = {"regex": "[ab]{700}", "settings": LONG, "stream": True}
        streams = [(await model.aquery(picture, "?", **long))["answer"] for _ in range(12)]
        await streams[0].__anext__()
        return streams

    with photon.vl(max_seqs=1) as model:
        streams = asyncio.run(main(model))
        asyncio.run(idle(model))
        assert model.stats()["running"] + model.stats()["waiting"] == 0 and model.stats()["finished"] < 12
        del streams


def test_batches(model, picture):
    requests = [{"skill": "point", "image": picture, "object": "star"}] * 40 + [{"skill": "caption"}]
    answers = asyncio.run(model.abatch(iter(requests)))
    assert answers[:-1] == model.batch(requests)[:-1]
    assert isinstance(answers[-1], photon.errors.InvalidRequestError)
