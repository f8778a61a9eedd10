"""Whether onnxruntime survives a graph, found out in a process of its own.

onnxruntime's optimizations crash on some graphs of low precision: 1.32.0 ends with SIGSEGV on the CPU where its
MatmulTransposeFusion meets a Transpose before a MatMul in float16. Such a graph is opened, and run once on zeros, by
another process first. What was found is kept in the user's cache, by the graph and the onnxruntime, so that the 0.4 s
are paid once. Graphs of full precision are not tried: no such crash is known of them, and each would cost that time.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from trtship.errors import MachineError
from trtship.files import cache_root, read_regular, temporary_folder
from trtship.kept import Kept
from trtship.processes import end, how_it_ended, start
from trtship.session.onnx_types import is_low_precision

CULPRIT = "MatmulTransposeFusion"
"""The optimizer that is known to crash."""
TIMEOUT = 600.0
"""Seconds after which a trial has not survived: a graph of gigabytes opens within one minute."""
LIMIT = 4 * 2**20
"""Bytes that the findings may take in the cache."""
_DETERMINISTIC = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"}
"""Ends that the next trial would come to as well; others (SIGKILL, where memory ran out) are not kept."""


class Way(msgspec.Struct, frozen=True):
    """How a graph is opened: onnxruntime's providers, as it takes them; the name of a `GraphOptimizationLevel`; and
    optimizers that are left out."""

    providers: tuple[Any, ...]
    level: str
    without: tuple[str, ...] = ()


class Trials:
    """Trials of one graph, which is an ONNX file or the bytes of one; `name` is what errors call it."""

    def __init__(self, graph: Path | str | bytes, *, name: str, version: str) -> None:
        self._graph, self._name, self._runtime = graph, name, f"onnxruntime {version}"
        data = graph if isinstance(graph, bytes) else read_regular(Path(graph))
        self.needed = is_low_precision(data)
        """Whether the graph may be opened only after a trial."""
        self._digest = hashlib.sha256(data).hexdigest() if self.needed else ""

    def crash(self, way: Way) -> str:
        """Return how onnxruntime ended when it opened or ran the graph that way: "onnxruntime 1.32.0 was ended by
        SIGSEGV while it opened ..."; empty where it did not crash. An error that it raises is no crash.

        Raises MachineError where the process could not be started.
        """
        if not self.needed:
            return ""
        kept = self._kept(way)
        if data := kept.load():
            return data.decode()[1:]
        found, lasting = self._tried(way)
        if lasting:
            kept.keep(b" " + found.encode())  # never empty: nothing kept is empty
        return found

    def _kept(self, way: Way) -> Kept:
        known = [self._digest, self._runtime, platform.machine(), way]
        key = hashlib.sha256(msgspec.json.encode(known)).hexdigest()
        return Kept(cache_root() / "trials" / key, "trial", limit=LIMIT)

    def _tried(self, way: Way) -> tuple[str, bool]:
        """How it ended, and whether it would do so again."""
        with temporary_folder() as folder:
            place = self._place(folder)
            job = json.dumps([place, way.providers, way.level, way.without]).encode()
            try:
                process = start("trtship.session.trial_process", log=folder / "log")
            except OSError as error:
                raise MachineError(
                    f"cannot try {self._name} in a process of its own",
                    why=str(error),
                    do="free some memory, or raise the limits of this process (ulimit -a shows them)",
                ) from error
            try:
                said, _ = process.communicate(job, timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                return f"{self._runtime} had not ended after {TIMEOUT:.0f} s with {self._name}", False
            finally:
                end(process)
        if process.returncode >= 0:
            return "", True
        ended, doing = how_it_ended(process.returncode), "ran" if b"opened" in said else "opened"
        return f"{self._runtime} {ended} while it {doing} {self._name}", ended.split()[-1] in _DETERMINISTIC

    def _place(self, folder: Path) -> str:
        if not isinstance(self._graph, bytes):
            place = Path(self._graph).absolute()
            if place.as_posix().isprintable():
                return str(place)
            link = folder / "graph"  # onnxruntime takes no path that is not UTF-8
            link.symlink_to(place.parent)
            return str(link / place.name)
        file = folder / "graph.onnx"
        file.write_bytes(self._graph)
        return str(file)


def without_crash(ways: Sequence[Way]) -> list[Way]:
    """The ways, and after each one whose optimizations may crash the same without the culprit."""
    found: list[Way] = []
    for way in ways:
        found.append(way)
        if way.level == "ORT_ENABLE_ALL":
            found.append(Way(way.providers, way.level, (CULPRIT,)))
    return found
