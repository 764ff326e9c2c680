"""Downloading models."""

from __future__ import annotations

from . import _photon
from ._progress import bar, show


def pull(name: str, *, progress: bool | None = None) -> None:
    """Downloads a model from the Hugging Face hub, where ``photon pull`` and ``huggingface_hub`` keep theirs.

    What is on this machine is not fetched again; a download that was cut off goes on where it stopped. Needs a
    network, which nothing else in this package does.

    >>> pull("demo")  # Inside this package.

    Raises:
        ModelNotFoundError: no model of that name is known.
        DownloadError: and why.
    """
    with bar(progress, f"pulling {name}", None) as shown:
        last = None

        def told(file: str, done: int, total: int) -> None:
            nonlocal last
            if file != last:
                last, shown.n = file, 0
                if hasattr(shown, "set_description"):
                    shown.set_description(file)
            show(shown, done, total)

        _photon.pull(name, told)
