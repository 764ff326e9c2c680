"""A program whose types `mypy --strict` must find to be what it says: run by `cargo xtask wheel`, never for what it does."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import photon
from photon.types import Region, Request, Settings


def ask(model: photon.Model, picture: Path) -> list[Region]:
    settings: Settings = {"temperature": 0.0, "max_tokens": 5}
    caption: str = model.caption(picture, "short", settings=settings)["caption"]
    result: photon.Result = model.query(picture, caption, reasoning=True, timeout=2.5)
    reason: str = result.finish_reason
    tokens: int = result.metrics["output_tokens"]
    pieces: Iterator[str] = model.caption(picture, stream=True)["caption"]
    update = next(model.segment(picture, "star", stream=True))
    path: str = update["path"]
    stream: photon.Stream[Region] = model.detect(picture, "star", stream=True)["objects"]
    print(reason, tokens, list(pieces), path)
    return list(stream)


def many(model: photon.Model, requests: list[Request]) -> int:
    answers = model.batch(requests, progress=False)
    return sum(isinstance(answer, photon.PhotonError) for answer in answers)


async def asked(model: photon.Model, image: photon.EncodedImage) -> str:
    answer = await model.aquery([image, image.image_url], "What has changed?", regex="yes|no")
    stream: AsyncIterator[str] = (await model.aquery(image, "?", stream=True))["answer"]
    text: str = answer["answer"]
    return text + "".join([piece async for piece in stream])


def wrong(model: photon.Model) -> None:
    model.caption("a.jpg", "tiny")  # type: ignore[call-overload]
    model.detect("a.jpg", 3)  # type: ignore[call-overload]
    photon.vl(dtype="float32")  # type: ignore[arg-type]
    settings: Settings = {"temprature": 1.0}  # type: ignore[typeddict-unknown-key]
    print(settings)
