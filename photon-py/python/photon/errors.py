"""What can go wrong: every exception is a :class:`PhotonError`, and what Python has for the same, where it has it.

>>> import photon
>>> try:
...     photon.vl().detect("no/such.png", "cat")
... except FileNotFoundError as error:
...     print(error.filename, isinstance(error, photon.PhotonError))
no/such.png True
"""

__all__ = [
    "AdapterError",
    "BusyError",
    "ClosedError",
    "DeadlineError",
    "DeviceError",
    "DownloadError",
    "GrammarError",
    "ImageError",
    "ImageFileError",
    "ImageNotFoundError",
    "ImageTypeError",
    "InternalError",
    "InvalidRequestError",
    "ModelError",
    "ModelNotFoundError",
    "PhotonError",
]


class PhotonError(Exception):
    """Everything that Photon raises."""


class InvalidRequestError(PhotonError, ValueError):
    """A request that makes no sense: an empty question, a setting out of range, a name that no request has."""


class GrammarError(InvalidRequestError):
    """A JSON schema or a regular expression that cannot be followed."""


class ImageError(PhotonError, ValueError):
    """A picture that cannot be used: damaged, too large, of an unknown format."""


class ImageTypeError(ImageError, TypeError):
    """Something that is no picture."""


class ImageFileError(PhotonError, OSError):
    """A picture's file that cannot be read."""


class ImageNotFoundError(ImageFileError, FileNotFoundError):
    """A picture's file that is not there."""


class AdapterError(PhotonError, ValueError):
    """An adapter that is not there, does not fit the model, or for which there is no room."""


class ModelError(PhotonError, ValueError):
    """A model whose files are damaged or incomplete, or an engine that cannot be set up as asked for."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """A model that is not on this machine."""


class DownloadError(PhotonError, OSError):
    """A model that could not be downloaded."""


class DeviceError(PhotonError, RuntimeError):
    """A device that is not there or failed."""


class BusyError(PhotonError, RuntimeError):
    """More requests wait than were allowed: see ``max_waiting``."""


class DeadlineError(PhotonError, TimeoutError):
    """The request's ``timeout`` passed before the answer was complete."""


class ClosedError(PhotonError, RuntimeError):
    """The model or the stream was closed."""


class InternalError(PhotonError, RuntimeError):
    """A bug in Photon; please report it."""
