"""A model, and what it can be asked.

A method's arguments become a dictionary, in the words of Moondream's API, and what comes back is made into the shapes
that Moondream's clients know; everything between is the engine's. Types are in ``_model.pyi``.
"""

from __future__ import annotations

import os
import warnings

from . import _batch
from ._photon import Engine
from ._progress import bar, show
from ._skill import answer, skill
from ._stream import Mailbox, outline, place, text

_OPTIONS = (
    "model",
    "device",
    "threads",
    "dtype",
    "quant",
    "kv_dtype",
    "kv_memory",
    "max_seqs",
    "max_waiting",
    "adapter",
    "adapters",
    "adapter_slots",
    "adapter_rank",
    "speculate",
    "preprocess",
)
"""Arguments of :func:`vl` that a model is made of."""

_RENAMED = {"max_batch_size": "max_seqs", "cpu_threads": "threads"}
"""Arguments of ``moondream.vl(local=True)`` that are called otherwise here."""

_NOT_HERE = {
    "decode_path",
    "enable_cuda_graphs",
    "enable_prefix_cache",
    "kv_cache_pages",
    "page_size",
    "service_name",
    "single_pass_batch_capacity",
}
"""Those that stand for nothing here."""


def vl(
    *,
    model=None,
    device="auto",
    threads=None,
    dtype=None,
    quant=None,
    kv_dtype=None,
    kv_memory=None,
    max_seqs=None,
    max_waiting=None,
    adapter=None,
    adapters=None,
    adapter_slots=None,
    adapter_rank=None,
    speculate=0,
    preprocess="pil",
    progress=None,
    local=True,
    api_key=None,
    endpoint=None,
    **others,
):
    """Loads a model into this process. Models made with the same arguments share one engine.

    >>> import photon
    >>> model = photon.vl(max_seqs=8)
    >>> model.caption("assets/shapes.png", length="short")["caption"]
    'A yellow triangle, a blue star and a red circle.'

    Args:
        model: ``"demo"`` (what ``None`` means) or ``"demo3"``, which are inside this package; a folder with
            ``config.json``, safetensors and ``tokenizer.json``; or the name of a model that was pulled
            (:func:`photon.pull`). ``/ID@STEP`` behind it names an adapter in ``adapters``.
        device: ``"auto"``, ``"cpu"``, and in builds that have them ``"cuda"``, ``"cuda:N"`` or ``"metal"`` (``"mps"``
            means the same).
        threads: of the processor; one per core by default.
        dtype: type of the weights; the model's own by default.
        quant: matrices to quantize: ``"int8"``, ``"int4"``, ``"fp8"``, ``"text=int4,vision=int8,head=int8"``.
        kv_dtype: type of keys and values; 8 bits take half the memory of 16 and change answers a little.
        kv_memory: bytes for keys and values; chosen by the machine's memory by default.
        max_seqs: most requests computed at once; 16 by default, 64 on a GPU.
        max_waiting: most requests that wait; what comes then raises ``BusyError``. 65,536 by default.
        adapter: a file with an adapter (LoRA) to answer with, or the name of one in ``adapters``.
        adapters: the folder of adapters that requests can name, ``ID@STEP``.
        adapter_slots: adapters there is room for at the same time.
        adapter_rank: the largest rank there is room for.
        speculate: most tokens guessed ahead in a step; answers stay the same.
        preprocess: which way pictures are resized first.
        progress: a bar while the model loads: ``True`` (needs tqdm), ``False``, or ``None`` for one on a terminal if
            tqdm is installed.
        local: for programs written for ``moondream``; must be true.
        api_key: likewise; not used.
        endpoint: likewise; must not be given, for nothing is asked over a network.

    Raises:
        ModelNotFoundError: there is no such model on this machine.
        ModelError, DeviceError, AdapterError: it could not be made ready, and why.
    """
    if not local or endpoint is not None:
        raise ValueError(
            "photon runs the model in this process; to ask a server, `photon serve` for one, use the moondream package"
        )
    given = locals()
    options = {name: given[name] for name in _OPTIONS if given[name] is not None}
    for name, value in others.items():
        if name in _RENAMED:
            options[_RENAMED[name]] = value
        elif name in _NOT_HERE:
            warnings.warn(f"photon has no {name}, and does without it", stacklevel=2)
        else:
            raise TypeError(f"vl() got an unexpected keyword argument {name!r}")
    return Model(options, progress=progress)


def _restore(options):
    return Model(options)


class Model:
    """A model in this process; made by :func:`photon.vl`.

    Any number of threads may use one: requests under way run together, and what they have in common is computed once.
    Waiting lets other threads run, and Ctrl-C ends it. A model is pickled as the arguments it was made of. ``with``
    closes it at the end.

    Every method that asks has a twin for asyncio, ``acaption`` for ``caption``: the same arguments, and the same result
    when awaited; streams in it are for ``async for``. What is cancelled is cancelled in the engine, too.

    Methods that ask take ``settings``: ``temperature``, ``top_p``, ``top_k``, ``min_p``, ``seed``, ``max_tokens``,
    ``max_objects``, ``stop`` and ``adapter``; what is left out is as usual for the skill. ``timeout`` is in seconds,
    after which ``DeadlineError`` is raised. An image may be a path, the bytes of a file, a PIL image, an array of bytes
    ``[height, width, 3]`` or what :meth:`encode_image` gave. Places are fractions of the picture's width and height.
    """

    def __init__(self, options, *, progress=False):
        self._options = options
        rest = dict(options)
        name, device = rest.pop("model", None), rest.pop("device", None)
        self._name = os.fspath(name or "demo")
        with bar(progress, f"loading {self._name}", None) as shown:
            told = None if progress is False else lambda done, total: show(shown, done, total)
            self._engine = Engine(self._name, device or "auto", rest, told)
        self._tasks = tuple(self._engine.skills())

    def __reduce__(self):
        return _restore, (self._options,)

    def __repr__(self):
        return f"<photon.Model {self._name!r}>"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Lets go of the engine, which ends when its last model is closed or dropped; requests under way end with
        ``ClosedError`` then."""
        self._engine.close()

    @property
    def model_id(self):
        """What the model was called when it was loaded."""
        return self._name

    @property
    def tasks(self):
        """The skills that the model has.

        >>> import photon
        >>> photon.vl().tasks
        ('query', 'caption', 'detect', 'point', 'gaze', 'chat')
        """
        return self._tasks

    def supports(self, task):
        """Whether the model has a skill.

        >>> import photon
        >>> photon.vl().supports("segment"), photon.vl(model="demo3").supports("segment")
        (False, True)
        """
        return task in self._tasks

    @property
    def device(self):
        """Where the model runs, for people."""
        return self._engine.device_name()

    @property
    def dtype(self):
        """The type of its weights."""
        return self._engine.dtype()

    @property
    def adapters(self):
        """The adapters that can be named, as they are in the folder now."""
        return self._engine.adapters()

    def stats(self):
        """What the engine has done: requests, steps, tokens, hits of the cache.

        >>> import photon
        >>> photon.vl().stats()["blocks"] > 0
        True
        """
        return self._engine.stats()

    def count_tokens(self, text):
        """How many tokens the model makes of a text."""
        return self._engine.count_tokens(text)

    @skill("caption", text)
    def caption(self, image, length="normal", stream=False, settings=None, *, timeout=None):
        """Describes a picture: ``{"caption": str}``, or with ``stream`` a stream of pieces in its place.

        ``length`` is ``"short"``, ``"normal"`` or ``"long"``.

        >>> import photon
        >>> model = photon.vl()
        >>> model.caption("assets/shapes.png", length="short")["caption"]
        'A yellow triangle, a blue star and a red circle.'
        >>> for piece in model.caption("assets/shapes.png", length="short", stream=True)["caption"]:
        ...     print(piece, end="")
        A yellow triangle, a blue star and a red circle.
        """
        return locals()

    @skill("answer", text)
    def query(
        self,
        image=None,
        question=None,
        stream=False,
        settings=None,
        reasoning=False,
        spatial_refs=None,
        *,
        json_schema=None,
        regex=None,
        timeout=None,
    ):
        """Answers a question about a picture, a list of pictures, or none: ``{"answer": str}``, and with ``reasoning``
        ``"reasoning"``, what was thought before: a text, and what its parts point at.

        ``spatial_refs`` are places the question is about: ``[x, y]`` or ``[x_min, y_min, x_max, y_max]``. An answer
        follows ``json_schema`` or ``regex``, where one is given.

        >>> import photon
        >>> model = photon.vl()
        >>> model.query("assets/shapes.png", "How many circles are there?")
        {'answer': '1'}
        >>> model.query("assets/shapes.png", "What color is the star?", regex="Red|Blue")
        {'answer': 'Blue'}
        """
        return locals()

    @skill("message", text)
    def chat(self, messages, stream=False, settings=None, reasoning=None, *, json_schema=None, regex=None, timeout=None):
        """Goes on with a conversation: ``{"message": {"role": "assistant", "content": str}, "finish_reason": str}``.

        Messages are those of OpenAI's clients; a part of one may also be ``{"type": "image", "image": image}`` with an
        image of any kind. Models that reason do, unless ``reasoning`` is false.

        >>> import photon
        >>> look = {"type": "image", "image": "assets/shapes.png"}
        >>> ask = {"type": "text", "text": "What color is the star?"}
        >>> said = photon.vl().chat([{"role": "user", "content": [look, ask]}])
        >>> said["message"]
        {'role': 'assistant', 'content': 'Blue'}
        """
        return locals()

    @skill("objects", place)
    def detect(self, image, object, settings=None, *, stream=False, timeout=None):
        """Finds every instance of something, as boxes: ``{"objects": [{"x_min": float, ...}]}``.

        >>> import photon
        >>> [box] = photon.vl().detect("assets/shapes.png", "circle")["objects"]
        >>> sorted(box), 0 < box["x_min"] < box["x_max"] < 1
        (['x_max', 'x_min', 'y_max', 'y_min'], True)
        """
        return locals()

    @skill("points", place)
    def point(self, image, object, settings=None, spatial_refs=None, *, stream=False, timeout=None):
        """Finds every instance of something, as points: ``{"points": [{"x": float, "y": float}]}``.

        >>> import photon
        >>> len(photon.vl().point("assets/shapes.png", "triangle")["points"])
        1
        """
        return locals()

    @skill(None, outline)
    def segment(self, image, object, spatial_refs=None, stream=False, settings=None, *, timeout=None):
        """Outlines something, as an SVG path inside of its box: ``{"path": str, "bbox": {...}}``.

        With ``stream``, a stream of dictionaries: ``{"bbox": ...}``, many ``{"chunk": ...}``, and at the end
        ``{"path": ..., "bbox": ..., "completed": True}``.

        >>> import photon
        >>> model = photon.vl(model="demo3")
        >>> model.segment("assets/shapes.png", "star")["path"].startswith("M")
        True
        >>> [sorted(piece) for piece in model.segment("assets/shapes.png", "star", stream=True)][-1]
        ['bbox', 'completed', 'path']
        """
        return locals()

    @skill(None, place)
    def gaze(self, image, eye, settings=None, *, timeout=None):
        """Finds what somebody looks at whose eyes are at ``eye``, ``[x, y]``: ``{"gaze": {"x": float, "y": float}}``,
        or ``None`` in its place if that is not in the picture.

        >>> import photon
        >>> list(photon.vl().gaze("assets/shapes.png", [0.5, 0.5]))
        ['gaze']
        """
        return locals()

    acaption = caption.twin
    aquery = query.twin
    achat = chat.twin
    adetect = detect.twin
    apoint = point.twin
    asegment = segment.twin
    agaze = gaze.twin

    def encode_image(self, image):
        """Decodes a picture once and has the model look at it: what is asked about the result begins at the words.

        Photon remembers pictures anyway, as long as there is room. What is saved here is decoding, and the time of the
        first question.

        >>> import photon
        >>> model = photon.vl()
        >>> image = model.encode_image("assets/shapes.png")
        >>> image.size
        (516, 495)
        >>> asked = model.query(image, "What color is the star?")
        >>> asked.metrics["cached_tokens"] > 60, asked.metrics["vision_time_ms"]
        (True, 0.0)
        """
        image, ticket = self._engine.encode(image)
        ticket.wait()
        return image

    async def aencode_image(self, image):
        """:meth:`encode_image` for asyncio."""
        image, ticket = self._engine.encode(image)
        await answer(ticket, Mailbox(ticket, False))
        return image

    def batch(self, requests, *, progress=None):
        """Answers many requests, as many at once as is of use; a list of results in the same order.

        A request is a dictionary of a method's arguments, with ``"skill"``, the method's name. What goes wrong with one
        takes its place as an exception, and no other request with it. ``requests`` may be a generator: no more is taken
        from it than is under way. ``progress`` is as for :func:`photon.vl`.

        >>> import photon
        >>> requests = [
        ...     {"skill": "query", "image": "assets/shapes.png", "question": "What color is the circle?"},
        ...     {"skill": "point", "image": "no/such.png", "object": "star"},
        ...     {"skill": "detect", "image": "assets/shapes.png", "object": "star"},
        ... ]
        >>> answers = photon.vl().batch(requests)
        >>> answers[0]["answer"], type(answers[1]).__name__, len(answers[2]["objects"])
        ('Red', 'ImageNotFoundError', 1)
        """
        return _batch.run(self._engine, requests, progress)

    async def abatch(self, requests, *, progress=None):
        """:meth:`batch` for asyncio.

        >>> import asyncio, photon
        >>> requests = [{"skill": "caption", "image": "assets/shapes.png", "length": "short"}] * 3
        >>> len(asyncio.run(photon.vl().abatch(requests)))
        3
        """
        return await _batch.arun(self._engine, requests, progress)
