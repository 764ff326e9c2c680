"""Progress bars: those of tqdm, where it is installed and somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _NoBar:
    total: float | None = None
    n: float = 0

    def update(self, n: float = 1) -> None:
        pass

    def refresh(self) -> None:
        pass


@contextmanager
def bar(progress: bool | None, what: str, total: float | None, unit: str = "B") -> Iterator[Any]:
    """A bar. ``progress`` is ``True`` for one in any case, ``False`` for none, ``None`` for one on a terminal."""
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield _NoBar()
        return
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        if progress:
            raise
        yield _NoBar()
        return
    is_bytes = unit == "B"
    with tqdm(desc=what, total=total, unit=unit, unit_scale=is_bytes, unit_divisor=1024, leave=not is_bytes) as shown:
        yield shown


def show(shown: Any, done: float, total: float) -> None:
    """Sets a bar to what is done of what there is."""
    shown.total = total
    shown.update(done - shown.n)
