"""A plan's layers timed in a process of its own: `python -m trtship.deployment.search.profile_process FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtship.bench.plan import PlanFile
from trtship.bench.reasons import reason_of
from trtship.errors import DeviceError
from trtship.family import choose_family
from trtship.files import temporary_folder
from trtship.processes import end, how_it_ended, keep_stdout, last_words, start
from trtship.session.tensorrt import TensorRTSession
from trtship.spec import Record, from_json, to_json
from trtship.verify.compare import as_session_takes

PLAN, FEEDS = "plan.json", "feeds.npz"


class LayerMilliseconds(Record, frozen=True):
    """Milliseconds by the layer's name, or why there are none."""

    milliseconds: dict[str, float] = msgspec.field(default_factory=dict)
    failed: str = ""


def layer_times_apart(plan: PlanFile, feeds: Mapping[str, Any]) -> LayerMilliseconds:
    """The layers of `plan` on `feeds`, numpy arrays by input, of one batch. Raises DeviceError where it cannot run."""
    with temporary_folder("trtship-layers-") as folder:
        log = folder / "stderr.txt"
        (folder / PLAN).write_bytes(to_json(plan))
        np.savez(folder / FEEDS, **dict(feeds))
        process = start("trtship.deployment.search.profile_process", str(folder), log=log)
        try:
            found, _ = process.communicate()
        finally:
            end(process)
        said = last_words(log)
    try:
        answer = msgspec.json.decode(found, type=LayerMilliseconds)
    except msgspec.MsgspecError:
        answer = LayerMilliseconds(failed=f"its process {how_it_ended(process.returncode)}: {said or 'no word'}")
    if answer.failed:
        raise DeviceError(f"the layers of {plan.name} could not be timed", why=answer.failed)
    return answer


def main(arguments: Sequence[str]) -> int:
    answers = keep_stdout()
    try:
        answer = LayerMilliseconds(milliseconds=_times(Path(arguments[0])))
    except Exception as error:
        answer = LayerMilliseconds(failed=reason_of(error))
    answers.write(msgspec.json.encode(answer))
    answers.flush()
    return int(bool(answer.failed))


def _times(folder: Path) -> dict[str, float]:
    plan = from_json((folder / PLAN).read_bytes(), PlanFile, what=PLAN)
    family, _ = choose_family(plan.family, tf32=plan.tf32)
    data = Path(plan.path).read_bytes()
    with (
        np.load(folder / FEEDS, allow_pickle=False) as feeds,
        TensorRTSession(data, family, tf32=plan.tf32, inputs=plan.inputs, outputs=plan.outputs) as session,
    ):
        return session.layer_times(as_session_takes(session, {s.name: feeds[s.name] for s in plan.inputs}))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
