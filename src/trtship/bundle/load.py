"""`trtship.load`: a bundle, ready to be called with pictures or arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex, TypeAlias, get_args

import msgspec
import numpy as np
from PIL import Image

from trtship.bundle.bundle import Bundle, folder_of
from trtship.bundle.first_check import check_first, needs_first_check
from trtship.bundle.room import require_room
from trtship.bundle.runtime import PlanOptions, Runtime, open_session, start_cuda
from trtship.bundle.signature import Trust, open_trusted
from trtship.errors import DeviceError, InputError, SpecError
from trtship.family import check_family
from trtship.preprocess import preprocess_images
from trtship.progress import SILENT, Progress
from trtship.session.arrays import kind_of
from trtship.session.base import Array, Session, is_torch
from trtship.session.mapping import in_turn
from trtship.session.memory import Memory
from trtship.spec import batch_range

Pictures: TypeAlias = Any
"""A path, a PIL image, or a sequence of them."""


class Guess(msgspec.Struct, frozen=True):
    """One class that a picture may be: its index, its label (the index, where the bundle has no labels) and its
    probability, the softmax of the logits."""

    index: int
    label: str
    probability: float


class BundleSession(Session):
    """A bundle's model, running. Call it with arrays (`[B, C, H, W]`; numpy, torch, CuPy, JAX, or what else speaks
    DLPack or `__cuda_array_interface__`), or with pictures.

    `runtime` says what runs and why; `bundle` is what was loaded. Inputs, outputs and the sizes that are taken are
    those of the bundle's plan, whatever runs: what works here works where the plan does.
    """

    def __init__(self, bundle: Bundle, session: Session, why: str) -> None:
        self.bundle, self._session = bundle, session
        m = bundle.manifest
        self.inputs, self.outputs, self.ranges, self.rules = m.plan_inputs, m.plan_outputs, m.ranges, m.rules
        self.runtime = f"{session.runtime}: {why}"
        self.steady_after, self.workers = session.steady_after, session.workers
        same = (session.inputs, session.outputs) == (self.inputs, self.outputs)
        self._checks = not (same and dict(session.ranges) == dict(self.ranges))
        """Whether the arrays are to be checked here: else what runs them does so."""

    def __call__(self, images: Pictures | Array | Mapping[str, Array], *, out: Any = None) -> Any:
        """Arrays in the order and kind they came in: one array for a model of one output, else a dict by name.

        Takes an array for a model of one input, a mapping of arrays for any, or pictures (paths, PIL images, or a
        sequence of them), which are preprocessed and run in batches that the plan takes. `out` is where to write the
        results of arrays, as in `infer`. Raises InputError, ImageError, OutputError.
        """
        if kind_of(images) is not None:
            return self._unwrap(self.infer(self._named(images), out=out))
        if isinstance(images, Mapping):
            return self._unwrap(self.infer(images, out=out))
        if out is not None:
            raise InputError(
                "out= is for arrays", why="these are pictures", do="preprocess them first, or leave it out"
            )
        return self._run_pictures(self._listed(images))

    def infer(self, feeds: Mapping[str, Array], *, out: Array | Mapping[str, Array] | None = None) -> dict[str, Array]:
        return super().infer(feeds, out=out) if self._checks else self._session.infer(feeds, out=out)

    async def ainfer(self, images: Pictures | Array | Mapping[str, Array], *, out: Any = None) -> Any:
        """As calling it, without keeping the event loop from its other work: pictures are read and preprocessed in a
        thread too. Cancelling it forgets the results; a run that has begun comes to its end."""
        if kind_of(images) is None and not isinstance(images, Mapping):
            work = partial(self, images, out=out)
            return await self._in_thread(work)
        feeds = images if isinstance(images, Mapping) else self._named(images)
        running = super().ainfer(feeds, out=out) if self._checks else self._session.ainfer(feeds, out=out)
        return self._unwrap(await running)

    def map(self, batches: Iterable[Any], *, ahead: int = 2) -> Iterator[Any]:
        """What calling it gives for each of `batches` (arrays, mappings of arrays, or lists of pictures), in order,
        while up to `ahead` more are taken and run. What an item raises is raised in its turn."""
        feeds = (self._feeds(batch) for batch in in_turn(batches))
        found = super().map(feeds, ahead=ahead) if self._checks else self._session.map(feeds, ahead=ahead)
        for outputs in found:
            yield self._unwrap(outputs)

    def _warm(self, feeds: Sequence[dict[str, Array]]) -> None:
        super()._warm(feeds) if self._checks else self._session._warm(feeds)

    @property
    def memory(self) -> Memory:
        return self._session.memory

    def _feeds(self, images: Pictures | Array | Mapping[str, Array]) -> Mapping[str, Array]:
        if isinstance(images, Mapping):
            return images
        return self._named(images if kind_of(images) is not None else self.preprocess(images))

    def _named(self, array: Array) -> dict[str, Array]:
        if len(self.inputs) != 1:
            names = ", ".join(spec.name for spec in self.inputs)
            raise InputError("this model has several inputs", why=names, do="pass a dict of arrays by name")
        return {self.inputs[0].name: array}

    def preprocess(self, images: Pictures) -> Any:
        """Pictures as the model's input, float32 [B, C, H, W] (the plan's own dtype where that is another)."""
        return self._preprocessed(self._listed(images))

    def _preprocessed(self, images: Sequence[Any]) -> Any:
        spec, wanted = self.bundle.manifest.preprocess, self.inputs[0]
        assert spec is not None
        shape = wanted.shape[1:]
        if len(shape) != 3 or any(isinstance(d, int) and d != n for d, n in zip(shape, spec.output_shape, strict=True)):
            raise InputError(
                "the bundle's preprocessing does not fit its model",
                why=f"it makes {list(spec.output_shape)} of a picture, and the model takes {wanted}",
                do="call the session with arrays, or deploy the model again with the preprocessing that it needs",
            )
        return preprocess_images(images, spec).astype(wanted.dtype, copy=False)

    def _listed(self, images: Pictures) -> list[Any]:
        """Pictures as a list. Raises InputError for what is none, and for a bundle that has no preprocessing."""
        spec = self.bundle.manifest.preprocess
        if spec is None:
            raise InputError(
                "this bundle has no preprocessing",
                why="its source did not tell how pictures become inputs",
                do="call the session with arrays, or deploy a model that tells it (trtship_preprocess, see README)",
            )
        one = not isinstance(images, Sequence) or isinstance(images, (str, bytes, memoryview))
        many = [images] if one else images
        if not many:
            raise InputError("there are no pictures", why="the list is empty", do="pass one, or more")
        for image in many:
            if not isinstance(image, (str, os.PathLike, Image.Image)):
                raise InputError(
                    f"a {type(image).__name__} is no picture",
                    why="pictures are paths or PIL images",
                    do="pass arrays as one array, [B, C, H, W], or in a dict by name",
                )
        return list(many)

    def classify(self, images: Pictures, *, top: int = 5) -> list[list[Guess]]:
        """The `top` likeliest classes of each picture, likeliest first. Raises InputError for a model that is no
        classifier (its output is not [B, classes])."""
        if not isinstance(top, SupportsIndex) or (top := index(top)) < 1:
            raise InputError(
                f"top={top!r} asks for nothing", why="it is how many classes to name", do="ask for 1 or more"
            )
        logits = _on_host(self(images))
        if not isinstance(logits, np.ndarray) or logits.ndim != 2:
            raise InputError(
                "this model is no classifier",
                why=f"its outputs are {', '.join(map(str, self.outputs))}",
                do="call the session itself (trtship.load), which returns the outputs",
            )
        wide = logits.astype(np.float64)
        odds = np.exp(wide - wide.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        labels = self.bundle.labels
        names = [labels[i] if labels and i < len(labels) else str(i) for i in range(odds.shape[1])]
        order = np.argsort(-odds, axis=1, kind="stable")[:, :top]
        return [[Guess(int(i), names[i], float(row[i])) for i in best] for row, best in zip(odds, order, strict=True)]

    def _run_pictures(self, images: Sequence[Any]) -> Any:
        """Read, preprocess and run in chunks of at most the plan's largest batch, so that memory is bounded by it; a
        chunk smaller than its smallest is filled up and cut."""
        limits = batch_range(self.inputs, self.ranges)
        require_room(self.bundle, batch=min(max(len(images), limits.min), limits.max))
        parts: list[dict[str, Any]] = []
        for begin in range(0, len(images), limits.max):
            chunk = self._preprocessed(images[begin : begin + limits.max])
            short = max(0, limits.min - len(chunk))
            filled = np.concatenate([chunk, np.repeat(chunk[-1:], short, axis=0)]) if short else chunk
            found = self.infer({self.inputs[0].name: filled})
            parts.append({name: value[: len(chunk)] for name, value in found.items()})
        return self._unwrap({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _unwrap(self, outputs: dict[str, Array]) -> Any:
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._session.infer(feeds)

    def _release(self) -> None:
        self._session.close()


def _on_host(array: Any) -> Any:
    """An array as numpy's, from wherever it is."""
    if is_torch(array):
        return array.float().cpu().numpy()
    return array.get() if hasattr(array, "get") and hasattr(array, "device") else np.asarray(array)


def _check_place(runtime: str, device: int, family: str | None) -> None:
    if runtime not in get_args(Runtime):
        raise SpecError(
            f"{runtime!r} is no runtime", why=f"there are {', '.join(get_args(Runtime))}", do="name one of them"
        )
    if family is not None:
        check_family(family)
    if not isinstance(device, int):
        raise SpecError(f"{device!r} is no GPU", why="GPUs are counted from 0", do="pass its number, such as device=1")
    if device < 0:
        raise DeviceError(
            f"there is no GPU {device} here", why="they are counted from 0", do="trtship doctor lists them"
        )


def _options(**given: float | None) -> PlanOptions:
    try:
        return msgspec.convert(given, PlanOptions)
    except msgspec.ValidationError as error:
        raise SpecError(
            "this is no way to run a plan",
            why=str(error),
            do="max_contexts is 1 or more, graphs 0 or more, memory_limit MiB above 0",
        ) from None


def load(
    bundle: str | Path | Bundle,
    *,
    runtime: Runtime = "auto",
    family: str | None = None,
    device: int = 0,
    rebuild: bool = True,
    max_contexts: int = 2,
    memory_limit: float | None = None,
    graphs: int = 64,
    verify_key: str | Path | None = None,
    verify_certificates: str | Path | Sequence[str | Path] | None = None,
    progress: Progress = SILENT,
) -> BundleSession:
    """Open a bundle on the best runtime of this machine; every hash is checked before anything native reads a byte.

    `runtime` forces `"tensorrt"` or `"onnxruntime"`; `family` one of the TensorRT families; `device` is the GPU's
    index, as CUDA counts: any but 0 must be there, whatever runs. A plan that does not fit this GPU or TensorRT is
    rebuilt from the bundle's ONNX graph into the user's cache, which takes minutes, unless `rebuild=False`. Where that
    fails, or there is no TensorRT, onnxruntime runs the graph. `progress` tells both, and a RuntimeWarning where it is
    silent. Where memory runs out, or the GPU has failed for good, nothing else is tried. A plan that is not known to be
    right on this machine runs the bundle's reference rows once before it is yours (`needs_first_check`).

    A plan runs at most `max_contexts` calls at once, each with activation memory of its own. `memory_limit` bounds the
    GPU memory that it takes, in MiB (`session.memory` tells it); where memory runs out, fewer calls run at once, or
    batches in smaller parts, and a RuntimeWarning says so. `graphs` is how many CUDA graphs a context keeps, 0 for
    none. onnxruntime heeds `memory_limit` alone, on a GPU, for its arena.

    With `verify_key`, the PEM file of a public key, or `verify_certificates`, the bundle must bear a valid signature
    (`trtship sign`), which is checked before anything else. An empty list of certificates is an error.

    Raises BundleError and MachineError (and their subclasses: GpuMemoryError where the GPU's memory, or `memory_limit`,
    has no room for the plan), GateError where the plan's outputs are not the model's, SpecError for an argument that
    cannot be.
    """
    given = bundle if isinstance(bundle, Bundle) else folder_of(bundle)
    _check_place(runtime, device, family)
    options = _options(max_contexts=max_contexts, memory_limit=memory_limit, graphs=graphs)
    trust = Trust.of(verify_key, verify_certificates)
    if runtime != "onnxruntime":
        start_cuda(device)
    if trust is not None or not isinstance(given, Bundle):
        given = open_trusted(given.folder if isinstance(given, Bundle) else given, trust, progress=progress)
    opened = given
    if failed := [f"{v.subject}, {v.gate.replace('_', ' ')}" for v in opened.manifest.verdicts if v.state == "failed"]:
        progress.note(f"this bundle has failed a check ({'; '.join(failed)}): trtship inspect shows it")
    chosen = open_session(
        opened, runtime=runtime, family=family, device=device, rebuild=rebuild, options=options, progress=progress
    )
    if needs_first_check(opened, chosen):
        check_first(opened, chosen.session, progress=progress)
    return BundleSession(opened, chosen.session, chosen.why)
