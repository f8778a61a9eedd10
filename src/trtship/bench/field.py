"""A bundle, spread out for the workers, and who takes part beside it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from functools import cached_property, partial
from pathlib import Path

import msgspec

from trtship.bench.build import Builders
from trtship.bench.entrants import Entrant
from trtship.bench.exact import exact_reference
from trtship.bench.peers import Peer
from trtship.bench.peers.onnx_tensorrt import OnnxTensorRT
from trtship.bench.plan import PlanFile, PlanGraph, Plans
from trtship.bench.protocol import Work
from trtship.bench.race import Heat, Truth
from trtship.bench.reasons import reason_of
from trtship.bench.timing import RunnerFailed
from trtship.bundle.bundle import Bundle
from trtship.bundle.graph_files import copy_graph
from trtship.progress import Progress
from trtship.sources import LoadedModel
from trtship.sources.options import SourceOptions
from trtship.spec import ShapeRange, batch_letter
from trtship.verify import Reference

OURS = "trtship"
OWN_PLAN = f"{OURS}, the bundle's plan"


def work_of(
    bundle: Bundle, options: SourceOptions | None, folder: Path, *, graph: Path, reference: Reference | None = None
) -> Work:
    """A bundle for the workers; the reference rows, the bundle's own unless others are given, go into `folder`. `graph`
    is a private copy of its graph."""
    m = bundle.manifest
    rows = (bundle.reference() if reference is None else reference).cases[0]  # timed at the usual sizes
    rows.save(folder)
    return Work(
        source=options,
        inputs=m.inputs,
        outputs=m.outputs,
        precision=m.precision,
        graph=str(graph.absolute()),
        reference=str(folder),
        sizes=rows.sizes,
    )


def ranges_at(bundle: Bundle, batch: int) -> dict[str, ShapeRange]:
    """The bundle's ranges, with this one batch: what a user gets from `--batch N`."""
    letter = batch_letter(bundle.manifest.inputs)
    one = {letter: ShapeRange(min=batch, opt=batch, max=batch)} if letter else {}
    return {**bundle.manifest.ranges, **one}


def our_graph(bundle: Bundle, batch: int, *, graph: Path) -> PlanGraph:
    """The bundle's graph in its precision, to build plans from for one batch. `graph` is a private copy of it."""
    m = bundle.manifest
    return PlanGraph(
        name=f"{OURS}, built for this batch",
        graph=str(graph.absolute()),
        inputs=m.plan_inputs,
        outputs=m.plan_outputs,
        ranges=ranges_at(bundle, batch),
        precision=m.precision,
        family=m.family,
    )


class Field:
    """The bundle, spread out in a folder for the workers, and who takes part."""

    def __init__(
        self,
        bundle: Bundle,
        original: LoadedModel,
        options: SourceOptions,
        *,
        builders: Builders,
        builds: int,
        folder: Path,
        reference: Reference | None = None,
        progress: Progress,
    ) -> None:
        self._bundle, self._original, self._builders, self._builds = bundle, original, builders, builds
        self._folder, self._progress = folder, progress
        self._reference = bundle.reference() if reference is None else reference
        own = folder / "graph"
        own.mkdir()
        self._graph = copy_graph(bundle, bundle.manifest.precision_graph, own)
        self._work = work_of(bundle, options, folder / "reference", graph=self._graph, reference=self._reference)
        self._own = folder / "bundle.plan"
        self._own.write_bytes(bundle.read(bundle.manifest.plan))
        self._promised: list[tuple[int, Path | None, list[Future[PlanFile]]]] = []

    def heat(
        self,
        batch: int,
        peers: Mapping[str, Peer],
        variants: Mapping[str, tuple[str, ...]],
        paths: Mapping[str, Path],
    ) -> Heat:
        """Everybody at one batch, of each peer these variants. Our plans begin to be built here."""
        left_out: list[str] = []
        ours = self._our_plans(batch)
        entrants = [Entrant(name=OURS, peer=Plans.name, batch=batch, ours=True, plans=ours)] if ours else []
        for name, peer in peers.items():
            if isinstance(peer, OnnxTensorRT):
                promised: list[Future[PlanFile]] = [Future() for _ in range(self._builds)]
                self._promised.append((batch, paths.get(name), promised))
                plans = [(name, promise) for promise in promised]
                entrants.append(Entrant(name=name, peer=Plans.name, batch=batch, path=paths.get(name), plans=plans))
                continue
            for variant in peer.variants:
                if variant not in variants[name]:
                    left_out.append(f"{name}, {variant}")
                    continue
                entrants.append(
                    Entrant(
                        name=", ".join(filter(None, (name, variant))),
                        peer=name,
                        variant=variant,
                        batch=batch,
                        measures=peer.measures,
                        path=paths.get(name),
                    )
                )
        return Heat(work=self._work, batch=batch, entrants=entrants, left_out=tuple(left_out), truth=lambda: self.truth)

    def _our_plans(self, batch: int) -> list[tuple[str, Future[PlanFile]]]:
        m = self._bundle.manifest
        letter = batch_letter(m.inputs)
        found: list[tuple[str, Future[PlanFile]]] = []
        if letter is None or batch in m.ranges[letter]:
            own: Future[PlanFile] = Future()
            own.set_result(
                PlanFile(
                    name=OWN_PLAN,
                    build=0,
                    path=str(self._own),
                    inputs=m.plan_inputs,
                    outputs=m.plan_outputs,
                    family=m.family,
                    tf32=m.precision.tf32,
                    dynamic=batch not in m.profiles and any(r.min < r.max for r in m.ranges.values()),
                )
            )
            found.append((OWN_PLAN, own))
        graph = our_graph(self._bundle, batch, graph=self._graph)
        built = self._builders.submit(graph, count=self._builds, folder=self._folder / f"ours-{batch}")
        return found + [(graph.name, plan) for plan in built]

    def beside(self) -> None:
        """The work for the CPU that the preparation leaves room for."""
        self._build_the_peers()
        _ = self.truth

    def _build_the_peers(self) -> None:
        """Export the graph of the peer that goes through ONNX, once, and have its plans built."""
        if not self._promised:
            return
        m = self._bundle.manifest
        target = self._folder / "plain" / "model.onnx"
        target.parent.mkdir()
        try:
            plain = OnnxTensorRT().export(
                self._original.module,
                target,
                inputs=m.inputs,
                outputs=m.outputs,
                precision=m.precision,
                feeds=self._reference.inputs,
                ranges=m.ranges,
            )
        except Exception as error:
            for _, _, promised in self._promised:
                for promise in promised:
                    promise.set_exception(RunnerFailed(f"the export failed: {reason_of(error)}"))
            return
        for batch, path, promised in self._promised:
            graph = msgspec.structs.replace(plain, ranges=ranges_at(self._bundle, batch))
            target = self._folder / f"plain-{batch}"
            built = self._builders.submit(graph, count=self._builds, folder=target, path=path)
            for plan, promise in zip(built, promised, strict=True):
                plan.add_done_callback(partial(_pass_on, promise))

    @cached_property
    def truth(self) -> Truth:
        """What outputs are held against; its float64 part is computed here."""
        m = self._bundle.manifest
        exact: Reference | None = None
        try:
            exact = exact_reference(self._original.module, self._reference, inputs=m.inputs, outputs=m.outputs)
        except Exception as error:
            self._progress.note(f"no float64 reference: {reason_of(error)}")
        return Truth(reference=self._reference, exact=exact, bound=m.bounds["plan"].value)


def _pass_on(promise: Future[PlanFile], done: Future[PlanFile]) -> None:
    error = RunnerFailed("it was cancelled") if done.cancelled() else done.exception()
    if error is not None:
        promise.set_exception(error)
    else:
        promise.set_result(done.result())
