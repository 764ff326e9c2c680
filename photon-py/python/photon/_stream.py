"""Answers in pieces, as soon as they are certain: for a thread, and for an event loop.

A stream that is closed, left by ``with`` or dropped cancels its request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import errors
from ._result import Result

if TYPE_CHECKING:
    from asyncio import Future

    from ._photon import Ticket

T = TypeVar("T")

Pick = Callable[[str, Any], "T | None"]
"""What becomes of a piece's kind and value; ``None`` for what does not belong to the stream."""


def text(kind: str, value: Any) -> str | None:
    """Pieces of an answer or a caption."""
    return value if kind == "text" else None


def place(kind: str, value: Any) -> Any:
    """Boxes and points."""
    return value if kind in ("object", "point") else None


def outline(kind: str, value: Any) -> Any:
    """Pieces of an outline."""
    if kind == "box":
        return {"bbox": value}
    if kind == "path":
        return {"chunk": value}
    if kind == "done":
        return {"path": value["path"], "bbox": value.get("bbox"), "completed": True}
    return None


class _Pieces(Generic[T]):
    """What both kinds of stream keep: the request, what was thought, and the whole answer at the end."""

    def __init__(self, ticket: Ticket, pick: Pick[T]) -> None:
        self._ticket = ticket
        self._pick = pick
        self._thought: list[str] = []
        self._result: Result | None = None
        self._over = False

    @property
    def reasoning(self) -> str:
        """What has been thought so far, if the model was asked to reason."""
        return "".join(self._thought)

    def _take(self, kind: str, value: Any) -> T | None:
        if kind == "reasoning":
            self._thought.append(value)
        elif kind == "done":
            self._over = True
            self._result = value = Result(*value)
        elif kind == "error":
            self._over = True
            raise value
        return self._pick(kind, value)

    def _whole(self) -> Result:
        if self._result is None:
            raise errors.ClosedError("the stream was closed before the answer was complete")
        return self._result


class Stream(_Pieces[T], Iterator[T]):
    """An answer in pieces, for ``for``.

    >>> import photon
    >>> stream = photon.vl().caption("assets/shapes.png", length="short", stream=True)["caption"]
    >>> "".join(stream)
    'A yellow triangle, a blue star and a red circle.'
    >>> stream.result().finish_reason
    'stop'
    """

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        while not self._over:
            try:
                kind, value = self._ticket.next()
            except BaseException:
                self._over = True
                raise
            piece = self._take(kind, value)
            if piece is not None:
                return piece
        raise StopIteration

    def result(self) -> Result:
        """The whole answer; waits for it, and passes over pieces that were not taken."""
        for _ in self:
            pass
        return self._whole()

    def close(self) -> None:
        """Cancels the request, unless it has been answered."""
        self._over = True
        self._ticket.close()

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Mailbox:
    """What an event loop was told about a request, in order. Knows nothing of the request, so that dropping that
    drops all."""

    def __init__(self, ticket: Ticket, pieces: bool) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        self._new_future = loop.create_future
        self._told: deque[tuple[str, Any]] = deque()
        self._waiting: Future[None] | None = None
        ticket.watch(loop, self._tell, pieces)

    def _tell(self, kind: str, value: Any) -> None:
        self._told.append((kind, value))
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def next(self) -> tuple[str, Any]:
        """The next piece."""
        while not self._told:
            self._waiting = self._new_future()
            await self._waiting
        return self._told.popleft()


class AsyncStream(_Pieces[T], AsyncIterator[T]):
    """An answer in pieces, for ``async for``.

    >>> import asyncio, photon
    >>> async def main():
    ...     model = photon.vl()
    ...     answer = await model.aquery("assets/shapes.png", "What color is the star?", stream=True)
    ...     return [piece async for piece in answer["answer"]]
    >>> "".join(asyncio.run(main()))
    'Blue'
    """

    def __init__(self, ticket: Ticket, pick: Pick[T]) -> None:
        super().__init__(ticket, pick)
        self._mailbox = Mailbox(ticket, True)

    def __aiter__(self) -> AsyncStream[T]:
        return self

    async def __anext__(self) -> T:
        while not self._over:
            kind, value = await self._mailbox.next()
            piece = self._take(kind, value)
            if piece is not None:
                return piece
        raise StopAsyncIteration

    async def result(self) -> Result:
        """The whole answer; waits for it, and passes over pieces that were not taken."""
        async for _ in self:
            pass
        return self._whole()

    async def aclose(self) -> None:
        """Cancels the request, unless it has been answered."""
        self._over = True
        self._ticket.close()

    async def __aenter__(self) -> AsyncStream[T]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
