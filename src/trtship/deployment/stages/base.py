"""What the stages of one deploy share: the source, loaded once and only when needed, and the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from trtship.cache import Cache, Entry
from trtship.deployment.options import DeployOptions
from trtship.family import Family
from trtship.input_files import Samples, SampleSource
from trtship.preprocess import Preprocess
from trtship.progress import Progress
from trtship.sources import LoadedGraph, LoadedModel, Source
from trtship.spec import Record, ShapeRange, TensorSpec

GRAPH, PLAN, REPORT = "model.onnx", "model.plan", "report.json"


class NotRemembered(Exception):
    """Of a stage that was asked for what it remembers, and has nothing."""


class StageResult(Record, frozen=True):
    """How a stage went: whether it was remembered, its seconds, what differs from its last run, and what it did to the
    graph where that is not always the same. `made_in` are the seconds of the run that made what is remembered."""

    name: str
    cached: bool
    seconds: float
    changed: tuple[str, ...]
    did: str = ""
    made_in: float = 0.0


class Stages:
    """Runs the stages for one deploy. The model is loaded at the first stage that needs it, and only then. While
    `only_remembered` is set, a stage that is not in the cache raises NotRemembered."""

    def __init__(
        self,
        source: Source,
        options: DeployOptions,
        *,
        cache: Cache,
        subject: str,
        family: Family,
        progress: Progress,
        given: SampleSource | None = None,
    ) -> None:
        self.source, self.options, self.family, self.progress = source, options, family, progress
        self.given = given
        self._samples: Samples | None = None
        self._cache, self._subject = cache, subject
        self.results: list[StageResult] = []
        self.recipe: dict[str, Any] = {}
        self.only_remembered = False
        self._told: set[str] = set()

    @cached_property
    def model(self) -> LoadedModel | LoadedGraph:
        """The source, loaded."""
        return self.source.load(self.options.source, self.progress)

    def samples(
        self, inputs: tuple[TensorSpec, ...], ranges: Mapping[str, ShapeRange], preprocess: Preprocess | None
    ) -> Samples | None:
        """The user's own inputs, read and checked once; None where there are none. Raises InputError, ImageError."""
        if self.given is not None and self._samples is None:
            self._samples = self.given.read(inputs, ranges=ranges, preprocess=preprocess)
            self.progress.note(f"inputs: {self._samples.origin}")
        return self._samples

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], None],
        did: Callable[[Entry], str] = lambda entry: "",
        *,
        of: str = "",
    ) -> Entry:
        """One stage, from the cache where its inputs are known. `of` tells it from others of its name, where a deploy
        tries several precisions. A stage that is asked for again is told of once."""
        begun = time.monotonic()
        if self.only_remembered and not self._cache.knows(name, inputs):
            raise NotRemembered(name)
        entry = self._cache.stage(name, inputs, make, subject=f"{self._subject} {of}".rstrip())
        if entry.key in self._told:
            return entry
        self._told.add(entry.key)
        self.results.append(
            StageResult(
                name=f"{name} {of}".rstrip(),
                cached=entry.hit,
                seconds=round(time.monotonic() - begun, 2),
                changed=entry.changed,
                did=did(entry),
                made_in=entry.seconds,
            )
        )
        return entry

    def part(self, *names: str) -> dict[str, Any]:
        """These parts of the recipe, for a stage's key."""
        return {name: self.recipe[name] for name in names}


def graph_digests(entry: Entry) -> dict[str, str]:
    """SHA-256 of the graph's files in a stage's folder, external data included."""
    return {name: digest for name, digest in entry.files.items() if name.startswith(GRAPH)}
