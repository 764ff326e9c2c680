"""Moondream 2 and 3 in this process: captions, answers, boxes, points and outlines.

>>> import photon
>>> model = photon.vl()  # The small model inside this package; photon.vl(model="moondream2") once it is pulled.
>>> model.query("assets/shapes.png", "What color is the star?")["answer"]
'Blue'

Programs written for ``moondream.vl(local=True)`` run with ``import photon as moondream``. What differs: nothing is
sent anywhere, ``model`` may be left out, pictures may be paths, bytes and arrays, and every method has a twin for
asyncio, whose name begins with ``a``.
"""

from __future__ import annotations

import os as _os

# Compiled kernels for NVIDIA's GPUs, in wheels that have them.
_kernels = _os.path.join(_os.path.dirname(__file__), "cuda-kernels")
if _os.path.isdir(_kernels):
    _os.environ.setdefault("PHOTON_CUDA_KERNELS", _kernels)

from . import errors, types
from ._model import Model, vl
from ._photon import EncodedImage, __version__, doctor, models, route_key
from ._pull import pull
from ._result import Result
from ._stream import AsyncStream, Stream
from .errors import PhotonError

__all__ = [
    "AsyncStream",
    "EncodedImage",
    "Model",
    "PhotonError",
    "Result",
    "Stream",
    "__version__",
    "doctor",
    "errors",
    "models",
    "photon",
    "photon_models",
    "pull",
    "route_key",
    "types",
    "vl",
]


def photon(model: str | None = None, **options: object) -> Model:
    """The same as :func:`vl`, as newer versions of ``moondream`` call it.

    >>> photon("demo").model_id
    'demo'
    """
    return vl(model=model, **options)  # type: ignore[arg-type]


def photon_models() -> list[str]:
    """The names of the models Photon knows; :func:`models` says which of them are on this machine.

    >>> photon_models()[:2]
    ['demo', 'demo3']
    """
    return list(models())
