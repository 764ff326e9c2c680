"""The shapes of what goes in and what comes out, for type checkers and readers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Union

__all__ = [
    "CaptionLength",
    "ChatMessage",
    "ChatReasoningDetails",
    "ChatResponseMessage",
    "FinishReason",
    "ImageLike",
    "Metrics",
    "Point",
    "Reasoning",
    "ReasoningGrounding",
    "Region",
    "Request",
    "SegmentUpdate",
    "Settings",
    "SpatialRef",
]

CaptionLength = Literal["short", "normal", "long"]
FinishReason = Literal["stop", "length"]

ImageLike = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, Any]
"""A path, the bytes of a file, a PIL image, an array of bytes ``[height, width, 3]`` (also ``[height, width]`` and
with 1 or 4 channels), a file that is open, a data URI, or an ``EncodedImage``. Checkers take anything: arrays and
images have no type without the packages that make them."""

SpatialRef = Sequence[float]
"""``[x, y]`` or ``[x_min, y_min, x_max, y_max]``, in fractions of the picture's width and height."""


class Settings(TypedDict, total=False):
    """How tokens are drawn, and how many. What is left out is as usual for the skill."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    max_tokens: int
    max_objects: int
    stop: str | list[str]
    adapter: str


class Region(TypedDict):
    """A box, in fractions of the picture's width and height."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


class Point(TypedDict):
    """A point, in fractions of the picture's width and height."""

    x: float
    y: float


class ReasoningGrounding(TypedDict):
    """A part of a thought, and the points it speaks of."""

    start_idx: int
    end_idx: int
    points: list[list[float]]


class Reasoning(TypedDict):
    """What the model thought before it answered."""

    text: str
    grounding: list[ReasoningGrounding]


class ChatMessage(TypedDict):
    """A part of a conversation. Content is a text, or a list of parts: ``{"type": "text", "text": ...}``,
    ``{"type": "image_url", "image_url": {"url": "data:..."}}`` or ``{"type": "image", "image": ...}``."""

    role: Literal["system", "user", "assistant"]
    content: object


class ChatReasoningDetails(TypedDict, total=False):
    """What a thought points at."""

    grounding: list[ReasoningGrounding]


class ChatResponseMessage(TypedDict, total=False):
    """The model's part of a conversation."""

    role: Literal["assistant"]
    content: str
    reasoning: str
    reasoning_details: ChatReasoningDetails


class SegmentUpdate(TypedDict, total=False):
    """A piece of an outline: first the box, then parts of the path, at last all of it, ``completed``."""

    bbox: Region | None
    chunk: str
    path: str
    completed: bool


class Metrics(TypedDict):
    """Sizes and times of a request; times in milliseconds."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    crops: int
    queue_time_ms: float
    preprocess_time_ms: float
    vision_time_ms: float
    prefill_time_ms: float
    decode_time_ms: float
    ttft_ms: float


class Request(TypedDict, total=False):
    """One of many, for ``Model.batch``; ``skill`` must be there."""

    skill: Literal["query", "caption", "detect", "point", "segment", "gaze", "chat"]
    id: object
    image: ImageLike | list[ImageLike] | None
    images: list[ImageLike]
    image_url: str
    question: str
    object: str
    length: CaptionLength
    eye: Sequence[float]
    messages: Sequence[Mapping[str, object]]
    reasoning: bool | None
    spatial_refs: Sequence[SpatialRef] | None
    settings: Settings | None
    json_schema: Mapping[str, object] | bool | None
    regex: str | None
    adapter: str | os.PathLike[str] | None
    timeout: float | None
    priority: int
