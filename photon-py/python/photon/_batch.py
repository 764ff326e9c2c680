"""Many requests, as many under way as the engine makes use of; errors are values."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from ._photon import Engine, Ticket
from ._progress import bar
from ._result import Result
from ._skill import answer
from ._stream import Mailbox
from .errors import BusyError, InvalidRequestError, PhotonError

_PAUSE = 0.002
"""Seconds until a request is tried again that others left no room for."""


Requests = Iterable[Mapping[str, Any]]
Answers = list[Any]
"""Results, and errors in the place of some."""


def _submit(engine: Engine, request: Mapping[str, Any]) -> Ticket | PhotonError | None:
    """A ticket, an error, or ``None`` if there is no room."""
    if not isinstance(request, Mapping):
        return InvalidRequestError(f"a request of a batch is a dictionary, and no {type(request).__name__}")
    try:
        return engine.submit(dict(request))
    except BusyError:
        return None
    except PhotonError as error:
        return error


def _total(requests: Requests) -> int | None:
    return len(requests) if isinstance(requests, Sized) else None


def run(engine: Engine, requests: Requests, progress: bool | None) -> Answers:
    results: Answers = []
    under_way: deque[Ticket | PhotonError] = deque()
    with bar(progress, "photon", _total(requests), "request") as shown:

        def settle() -> None:
            asked = under_way.popleft()
            try:
                results.append(asked if isinstance(asked, PhotonError) else Result(*asked.wait()))
            except PhotonError as error:
                results.append(error)
            shown.update(1)

        for request in requests:
            if len(under_way) >= engine.window:
                settle()
            while (asked := _submit(engine, request)) is None:
                settle() if under_way else time.sleep(_PAUSE)
            under_way.append(asked)
        while under_way:
            settle()
    return results


async def arun(engine: Engine, requests: Requests, progress: bool | None) -> Answers:
    import asyncio

    results: Answers = []
    under_way: deque[tuple[Ticket, Mailbox] | PhotonError] = deque()
    with bar(progress, "photon", _total(requests), "request") as shown:

        async def settle() -> None:
            asked = under_way.popleft()
            try:
                results.append(asked if isinstance(asked, PhotonError) else await answer(*asked))
            except PhotonError as error:
                results.append(error)
            shown.update(1)

        for request in requests:
            if len(under_way) >= engine.window:
                await settle()
            while (asked := _submit(engine, request)) is None:
                await (settle() if under_way else asyncio.sleep(_PAUSE))
            under_way.append(asked if isinstance(asked, PhotonError) else (asked, Mailbox(asked, False)))
        while under_way:
            await settle()
    return results
