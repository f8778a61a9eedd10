"""A worker process, as the bench sees it: started, asked, and always ended."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from trtship.bench.protocol import Answer, Block, Calibrate, Command, Failed, Job, Loaded, Number
from trtship.bench.timing import RunnerFailed
from trtship.processes import end, how_it_ended, last_words, start

TO_LOAD, TO_TIME, TO_END = 300.0, 180.0, 10.0
"""Seconds that a worker may take to import and load a model, for one timed block, and to end by itself."""
A = TypeVar("A", Loaded, Number)


class Child:
    """One worker. All of its methods are for one thread at a time; all but `close` raise RunnerFailed."""

    def __init__(self, job: Job, *, path: Path | None) -> None:
        folder = Path(job.folder)
        folder.mkdir(parents=True)
        self._log = folder / "stderr.txt"
        self._process = start("trtship.bench.worker", path=path, log=self._log)
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._gone = ""
        self._job = job

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError, OSError):
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put(None)

    def load(self) -> None:
        """Tell it its job, and wait until it has loaded the model."""
        self._tell(self._job)
        self._answer(TO_LOAD, "load the model")

    def ask(self, command: Command, *, within: float, what: str) -> Answer:
        """Its answer. It is ended where there is none after `within` seconds; `what` says what it was about."""
        self._tell(command)
        return self._answer(within, what)

    def number(self, command: Calibrate | Block) -> float:
        answer = self.ask(command, within=TO_TIME, what="time a block")
        assert isinstance(answer, Number)
        return answer.value

    def _tell(self, message: Job | Command) -> None:
        if self._gone:
            raise RunnerFailed(self._gone)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None

    def _answer(self, within: float, what: str) -> Answer:
        try:
            line = self._answers.get(timeout=max(within, 0.0))
        except queue.Empty:
            self._gone = f"its process did not {what} within {within:.0f} s, and was ended"
            end(self._process)
            raise RunnerFailed(self._gone) from None
        if line is None:
            raise self._died()
        answer: Answer = msgspec.json.decode(line, type=Answer)
        if isinstance(answer, Failed):
            raise RunnerFailed(answer.reason)
        return answer

    def _died(self) -> RunnerFailed:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=TO_END)
        code = self._process.returncode
        how = "closed its output" if code is None else how_it_ended(code)
        end(self._process)
        last = last_words(self._log)
        self._gone = f"its process {how}" + (f"; its last words: {last}" if last else "")
        return RunnerFailed(self._gone)

    def close(self) -> None:
        """End it: by closing its stdin, and by force where that does not do."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        until = time.monotonic() + (0 if self._gone else TO_END)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=max(until - time.monotonic(), 0))
        end(self._process)
        if self._process.stdout is not None:
            self._process.stdout.close()


class Remote:
    """One of a worker's runners, to be timed from here."""

    def __init__(self, child: Child, runner: int, *, end_to_end: bool) -> None:
        self._child, self._runner, self._end_to_end = child, runner, end_to_end

    def calibrate(self) -> int:
        return int(self._child.number(Calibrate(runner=self._runner, end_to_end=self._end_to_end)))

    def block(self, calls: int) -> float:
        return self._child.number(Block(runner=self._runner, end_to_end=self._end_to_end, calls=calls))
