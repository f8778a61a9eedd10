"""A bundle, spread out for the workers, and who takes part beside it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import msgspec

from trtship.bench.build import Builders
from trtship.bench.entrants import Entrant
from trtship.bench.exact import exact_reference
from trtship.bench.peers import Peer
from trtship.bench.peers.onnx_tensorrt import OnnxTensorRT
from trtship.bench.plan import PlanFile, PlanGraph, Plans
from trtship.bench.protocol import Work
from trtship.bench.race import Truth
from trtship.bench.reasons import reason_of
from trtship.bench.timing import RunnerFailed
from trtship.bundle.bundle import Bundle
from trtship.progress import Progress
from trtship.sources import LoadedModel
from trtship.sources.options import SourceOptions
from trtship.spec import ShapeRange, batch_letter
from trtship.verify import Reference

OURS = "trtship"


class Field:
    """The bundle, spread out in a folder for the workers, and who takes part."""

    def __init__(
        self,
        bundle: Bundle,
        original: LoadedModel,
        options: SourceOptions,
        builders: Builders,
        folder: Path,
        builds: int,
        progress: Progress,
    ) -> None:
        self._bundle, self._original, self._builders, self._builds = bundle, original, builders, builds
        self._folder, self._progress = folder, progress
        self._reference = bundle.reference()
        m = bundle.manifest
        self._reference.save(folder / "reference")
        self.work = Work(
            source=options,
            inputs=m.inputs,
            outputs=m.outputs,
            precision=m.precision,
            graph=str(bundle.path(m.precision_graph).absolute()),
            reference=str(folder / "reference"),
            sizes=m.reference_sizes,
        )
        self._own = folder / "bundle.plan"
        self._own.write_bytes(bundle.read(m.plan))
        self._asked: list[tuple[OnnxTensorRT, int, list[Future[PlanFile]]]] = []

    def entrants(self, batch: int, peers: Mapping[str, Peer], paths: Mapping[str, Path]) -> list[Entrant]:
        ours = self._our_plans(batch)
        found = [Entrant(name=OURS, peer=Plans.name, batch=batch, ours=True, plans=ours)] if ours else []
        for name, peer in peers.items():
            if isinstance(peer, OnnxTensorRT):
                promised: list[Future[PlanFile]] = [Future() for _ in range(self._builds)]
                self._asked.append((peer, batch, promised))
                plans = [(name, promise) for promise in promised]
                found.append(Entrant(name=name, peer=Plans.name, batch=batch, path=paths.get(name), plans=plans))
                continue
            for variant in peer.variants:
                found.append(
                    Entrant(
                        name=", ".join(filter(None, (name, variant))),
                        peer=name,
                        variant=variant,
                        batch=batch,
                        alone=peer.alone,
                        path=paths.get(name),
                    )
                )
        return found

    def _ranges(self, batch: int) -> dict[str, ShapeRange]:
        """The bundle's, with this one batch: what a user gets from `--batch N`."""
        m = self._bundle.manifest
        letter = batch_letter(m.inputs)
        return {**m.ranges, **({letter: ShapeRange(min=batch, opt=batch, max=batch)} if letter else {})}

    def _our_plans(self, batch: int) -> list[tuple[str, Future[PlanFile]]]:
        m = self._bundle.manifest
        letter = batch_letter(m.inputs)
        found: list[tuple[str, Future[PlanFile]]] = []
        if letter is None or batch in m.ranges[letter]:
            own: Future[PlanFile] = Future()
            name = f"{OURS}, the bundle's plan"
            own.set_result(
                PlanFile(
                    name=name,
                    build=0,
                    path=str(self._own),
                    inputs=m.plan_inputs,
                    outputs=m.plan_outputs,
                    family=m.family,
                    tf32=m.precision.tf32,
                )
            )
            found.append((name, own))
        graph = PlanGraph(
            name=f"{OURS}, built for this batch",
            graph=self.work.graph,
            inputs=m.plan_inputs,
            outputs=m.plan_outputs,
            ranges=self._ranges(batch),
            precision=m.precision,
            family=m.family,
        )
        built = self._builders.submit(graph, count=self._builds, folder=self._folder / f"ours-{batch}")
        return found + [(graph.name, plan) for plan in built]

    def build_the_peers(self) -> None:
        """Export the graph of the peer that goes through ONNX, once, and have its plans built."""
        if not self._asked:
            return
        m = self._bundle.manifest
        peer = self._asked[0][0]
        target = self._folder / "plain" / "model.onnx"
        target.parent.mkdir()
        try:
            plain = peer.export(
                self._original.module,
                target,
                inputs=m.inputs,
                outputs=m.outputs,
                precision=m.precision,
                feeds=self._reference.inputs,
                ranges=m.ranges,
            )
        except Exception as error:
            for _, _, promised in self._asked:
                for promise in promised:
                    promise.set_exception(RunnerFailed(f"the export failed: {reason_of(error)}"))
            return
        for _, batch, promised in self._asked:
            graph = msgspec.structs.replace(plain, ranges=self._ranges(batch))
            built = self._builders.submit(graph, count=self._builds, folder=self._folder / f"plain-{batch}")
            for plan, promise in zip(built, promised, strict=True):
                plan.add_done_callback(partial(_pass_on, promise))

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
