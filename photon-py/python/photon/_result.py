"""An answer: the dictionary that Moondream's clients know, with two things more."""

from __future__ import annotations

from typing import Any

from .types import FinishReason, Metrics


class Result(dict[str, Any]):
    """An answer's fields, as of a dictionary.

    >>> import photon
    >>> found = photon.vl().point("assets/shapes.png", "star")
    >>> list(found), found.finish_reason, found.metrics["output_tokens"] > 0
    (['points'], 'stop', True)
    """

    __slots__ = ("finish_reason", "metrics")

    finish_reason: FinishReason
    """``"stop"`` if the model ended the answer, ``"length"`` if a limit did."""
    metrics: Metrics
    """Sizes and times."""

    def __init__(self, fields: dict[str, Any], finish_reason: FinishReason, metrics: Metrics) -> None:
        super().__init__(fields)
        self.finish_reason = finish_reason
        self.metrics = metrics

    def __reduce__(self) -> tuple[Any, ...]:
        return Result, (dict(self), self.finish_reason, self.metrics)
