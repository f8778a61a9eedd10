"""`bench`: a bundle's plan and the peers on the same inputs, the same GPU, in one run, interleaved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from trtship.bench.build import Builders, builds_on_gpu
from trtship.bench.field import Field
from trtship.bench.peers import Peer, choose
from trtship.bench.race import race
from trtship.bench.report import BenchReport
from trtship.bench.timing import ROUNDS
from trtship.bundle.bundle import Bundle
from trtship.bundle.given_inputs import reference_of, rows_given
from trtship.errors import DeviceError, SpecError
from trtship.files import temporary_folder
from trtship.gpu import list_gpus
from trtship.input_files import source_of
from trtship.input_samples import rows_of
from trtship.progress import SILENT, Progress
from trtship.session.torch import TorchSession
from trtship.sources import LoadedModel
from trtship.sources.options import SourceOptions
from trtship.verify import Reference

WITHIN = 1800.0


def bench(
    bundle: Bundle,
    original: LoadedModel,
    options: SourceOptions,
    *,
    against: Sequence[str],
    batches: Sequence[int],
    builds: int = 1,
    peer_paths: Mapping[str, Path] | None = None,
    within: float = WITHIN,
    together: bool = False,
    rounds: int = ROUNDS,
    inputs: Any = None,
    device: str = "cuda",
    progress: Progress = SILENT,
) -> BenchReport:
    """Time the bundle's plan (and `builds` plans built for each batch alone) against the peers.

    `original` must be the model that the bundle was made of: the caller checks that; `options` are how it was loaded.
    `against` names peers, or one variant of a peer (`compile:reduce-overhead`). Everybody runs in processes of their
    own, a peer in `peer_paths` with that folder ahead on its import path.
    `within` is how many seconds the preparation may take: see `prepare_all`. One batch is prepared and timed after the
    other; `together` prepares all of them first, which is quicker and takes the memory of all at once.
    `inputs` are real inputs, as `trtship.deploy` takes them, on which all are timed and compared with `original`
    (default: the bundle's reference rows). `device="cpu"` is for trying this out.

    Raises DeviceError without a GPU, SpecError for an unknown peer or variant; a peer that fails is a row with its
    reason.
    """
    peers, variants = choose(against)
    paths = _checked_paths(peer_paths or {}, peers)
    gpus = list_gpus()
    if not gpus and device == "cuda":
        raise DeviceError(
            "no NVIDIA GPU here", why="timings of a GPU need one", do="run it on the machine with the GPU"
        )
    m = bundle.manifest
    reference = _given(bundle, original, inputs)
    with temporary_folder("trtship-bench-") as folder, closing(Builders(m.family)) as builders:
        field = Field(
            bundle,
            original,
            options,
            builders=builders,
            builds=builds,
            folder=folder,
            reference=reference,
            progress=progress,
        )
        heats = [field.heat(batch, peers, variants, paths) for batch in batches]
        outcomes = race(
            [heats] if together else [[heat] for heat in heats],
            folder=folder,
            device=device,
            within=within,
            rounds=rounds,
            meanwhile=field.beside,
            builds_on_gpu=builds_on_gpu(m.family),
            progress=progress,
        )
    return BenchReport(
        model=m.source.source,
        precision=m.precision.value,
        gpu=gpus[0] if gpus else None,
        states=tuple(state for outcome in outcomes for state in outcome.states),
        rows=tuple(row for outcome in outcomes for row in outcome.rows),
    )


def _given(bundle: Bundle, original: LoadedModel, inputs: Any) -> Reference | None:
    """The user's rows of the sizes of which there are most, with what the original makes of them; None without any.

    Raises InputError, ImageError.
    """
    source, m = source_of(inputs), bundle.manifest
    if source is None:
        return None
    samples = source.read(m.inputs, ranges=m.ranges, preprocess=m.preprocess)
    feeds = max(rows_given(samples, m.inputs), key=lambda rows: rows_of(rows, m.inputs))
    with TorchSession(original.module, inputs=m.inputs, outputs=m.outputs) as session:
        return reference_of(session, feeds, m.inputs)


def _checked_paths(paths: Mapping[str, Path], peers: Mapping[str, Peer]) -> dict[str, Path]:
    for name, path in paths.items():
        if name not in peers:
            raise SpecError(
                f"--peer-path {name}=...: that peer takes no part",
                why=f"--against names {', '.join(peers)}",
                do="add it to --against, or leave the path away",
            )
        if not path.is_dir():
            raise SpecError(
                f"--peer-path {name}={path} is no folder",
                why="it must be one that packages can be imported from",
                do="name a site-packages folder, or one that pip install --target filled",
            )
    return {name: path.absolute() for name, path in paths.items()}
