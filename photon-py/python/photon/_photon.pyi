"""The engine."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, final

from .types import FinishReason, ImageLike, Metrics

__all__ = ["EncodedImage", "Engine", "Ticket", "__version__", "doctor", "models", "pull", "route_key"]

__version__: str

@final
class Engine:
    def __new__(
        cls,
        model: str | PathLike[str],
        device: str,
        options: dict[str, Any],
        progress: Callable[[int, int], object] | None,
    ) -> Engine: ...
    def submit(self, fields: dict[str, Any]) -> Ticket: ...
    def encode(self, image: ImageLike) -> tuple[EncodedImage, Ticket]: ...
    def measure(self, requests: Sequence[dict[str, Any]], threads: int) -> float: ...
    def close(self) -> None: ...
    @property
    def window(self) -> int: ...
    def skills(self) -> list[str]: ...
    def adapters(self) -> list[str]: ...
    def device_name(self) -> str: ...
    def dtype(self) -> str: ...
    def count_tokens(self, text: str) -> int: ...
    def stats(self) -> dict[str, int]: ...

@final
class Ticket:
    def wait(self) -> tuple[dict[str, Any], FinishReason, Metrics]: ...
    def next(self) -> tuple[str, Any]: ...
    def watch(self, event_loop: AbstractEventLoop, callback: Callable[[str, Any], object], pieces: bool) -> None: ...
    def close(self) -> None: ...

@final
class EncodedImage:
    """A picture that was decoded once and is in the engine's cache: what is asked about it next begins at the words.
    Made by ``Model.encode_image``."""

    @staticmethod
    def from_rgb(width: int, height: int, pixels: bytes) -> EncodedImage:
        """From 3 bytes per pixel, row by row."""
    @property
    def width(self) -> int:
        """In pixels."""
    @property
    def height(self) -> int:
        """In pixels."""
    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
    @property
    def image_url(self) -> str:
        """The picture as a data URI, for clients of servers; PNG, so that nothing is lost."""

def doctor() -> dict[str, tuple[bool, str]]:
    """What every backend of this build finds on this machine, by the backend's name: whether it can be used, and what
    there is, or why not."""

def models() -> dict[str, bool]:
    """The models Photon knows, by name, and whether they are on this machine."""

def route_key(image: ImageLike | None = None, text: str = "") -> str:
    """The key by which a request is routed where several engines share the work: that of its first picture's file, or
    without pictures of what the user says first. Servers compute the same."""

def pull(name: str, progress: Callable[[str, int, int], object] | None) -> None: ...
