"""How a method asks: for a thread, and for an event loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ._photon import Ticket
from ._result import Result
from ._stream import AsyncStream, Mailbox, Pick, Stream

Method = Callable[..., Any]


async def answer(ticket: Ticket, mailbox: Mailbox) -> Result:
    """The answer of a request that an event loop is told of. What is cancelled while it waits is cancelled."""
    try:
        kind, value = await mailbox.next()
    except BaseException:
        ticket.close()
        raise
    if kind == "error":
        raise value
    return Result(*value)


def skill(key: str | None, pick: Pick[Any]) -> Callable[[Method], Method]:
    """Makes a method of a function that gives its arguments. ``key`` is where in the result a stream stands, ``pick`` what
    it consists of. The method's ``twin`` is for asyncio."""

    def decorate(arguments: Method) -> Method:
        name = arguments.__name__

        def submit(self: Any, args: Any, kwargs: Any) -> tuple[Ticket, bool]:
            fields = arguments(self, *args, **kwargs)
            del fields["self"]
            streams = fields.pop("stream", False)
            fields["skill"] = name
            return self._engine.submit(fields), streams

        def placed(stream: Any) -> Any:
            return stream if key is None else {key: stream}

        @functools.wraps(arguments)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            ticket, streams = submit(self, args, kwargs)
            return placed(Stream(ticket, pick)) if streams else Result(*ticket.wait())

        @functools.wraps(arguments)
        async def twin(self: Any, *args: Any, **kwargs: Any) -> Any:
            ticket, streams = submit(self, args, kwargs)
            if streams:
                return placed(AsyncStream(ticket, pick))
            return await answer(ticket, Mailbox(ticket, False))

        twin.__name__ = f"a{name}"
        twin.__qualname__ = f"Model.a{name}"
        twin.__doc__ = f""":meth:`{name}` for asyncio: await it; streams in the result are for ``async for``."""
        setattr(method, "twin", twin)
        return method

    return decorate
