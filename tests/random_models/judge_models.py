"""Deploy a random model, and hold what came of it against the untouched model on inputs that nobody has seen."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trtship
from random_models import STEPS, TABLE, Drawn, draw, make
from trtship.bundle import Bundle
from trtship.errors import InputError, TrtshipError
from trtship.files import temporary_folder
from trtship.measure import measure, worst
from trtship.passes import emulate_low
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision, TensorSpec, parse_sizes

SOURCE = Path(__file__).with_name("random_models.py")
TRIALS = 8
"""Fresh batches for each bundle."""


@dataclass
class Outcome:
    """What became of a model. `state` is `right`, `refused`, or one of the findings in `FINDINGS`."""

    seed: int
    name: str
    state: str
    detail: str = ""
    seconds: float = 0.0
    ruled_out: int = 0
    worst: float | None = None
    limit: float | None = None
    tried: list[str] = field(default_factory=list)


FINDINGS = ("wrong", "crashed", "fails at run time", "refused, though legal")


def judge(seed: int, folder: Path) -> Outcome:
    """Deploy the model of `seed` into `folder` and judge it."""
    drawn, begun = draw(seed), time.monotonic()
    outcome = _judge(drawn, folder / f"{seed}.trtship")
    outcome.seconds = round(time.monotonic() - begun, 2)
    return outcome


def judge_alone(seed: int) -> Outcome:
    """`judge` in a folder and with a cache of its own."""
    with temporary_folder() as folder:
        os.environ["TRTSHIP_CACHE"] = str(folder / "cache")
        return judge(seed, folder)


def _judge(drawn: Drawn, bundle: Path) -> Outcome:
    def told(state: str, detail: str = "") -> Outcome:
        return Outcome(drawn.seed, drawn.name, state, detail[:600])

    try:
        trtship.deploy(
            f"{SOURCE}:make",
            bundle,
            model_args=[("seed", str(drawn.seed))],
            precision=drawn.precision,
            batch="1:2:5",
            sizes=drawn.sizes,
            input_ranges=_ranges(drawn),
        )
    except TrtshipError as error:
        why = f"{type(error).__name__}: {error.what}: {error.why}"
        return told("refused, though legal" if drawn.legal else "refused", why)
    except Exception as error:
        return told("crashed", f"{type(error).__name__}: {error}")
    return _hold(drawn, bundle, told("right"))


def _ranges(drawn: Drawn) -> list[str]:
    """What is declared about the values of the inputs that no graph tells."""
    found = [] if drawn.image.endswith("uint8") else ["image=-4:4"]
    return [*found, f"t=0:{STEPS - 1}"] if drawn.more and drawn.more.startswith("t=") else found


def _hold(drawn: Drawn, bundle: Path, outcome: Outcome) -> Outcome:
    manifest = Bundle.open(bundle).manifest
    low = manifest.precision is not Precision.FP32
    bound = manifest.bounds[f"graph {manifest.precision.value}"]
    every = [bound, *bound.sizes.values()]  # sizes between those that were measured have no bound of their own
    outcome.limit = max(value for one in every for value in (one.value, *one.rows.values()))
    floors = [floors for one in every for floors in (one.floors, *one.row_floors.values())]
    sizes = parse_sizes(drawn.sizes)
    with temporary_folder() as folder, trtship.load(bundle, runtime="onnxruntime") as session:
        graphs: list[Any] = [session]
        if low:
            emulate_low(bundle / manifest.precision_graph, folder / "low.onnx")
            graphs = [OnnxRuntimeSession(folder / "low.onnx")]
        rng = np.random.default_rng([drawn.seed, 3])
        for trial in range(TRIALS):
            at = {"B": int(rng.integers(1, 6)), **{k: int(rng.integers(r.min, r.max + 1)) for k, r in sizes.items()}}
            feeds = _fresh(drawn, at, rng, trial)
            with torch.no_grad():
                want = make(drawn.seed).eval()(*(torch.from_numpy(a.copy()) for a in feeds.values())).numpy()
            try:
                session.infer(feeds)  # a rule on sizes is enforced here, whatever the precision
                name, got = next(iter(graphs[0].infer(feeds).items()))
            except InputError as error:
                if "rule" not in f"{error.what} {error.why}":
                    outcome.state, outcome.detail = "fails at run time", f"{at}: {error.what}: {error.why}"[:600]
                    return outcome
                outcome.ruled_out += 1
                continue
            except Exception as error:
                outcome.state, outcome.detail = "fails at run time", f"{at}: {type(error).__name__}: {error}"[:600]
                return outcome
            floor = max((one.get(name, 0.0) for one in floors), default=0.0)
            found = measure(want, got, output=name, sizes=at, floor=floor)
            off = worst([found])
            outcome.tried.append(f"{at}: {off}")
            if off is None or off > outcome.limit:
                outcome.state = "wrong"
                outcome.detail = f"off by {off} at {at}, trial {trial}; its own bound is {outcome.limit:.3g}"
                outcome.worst = off
                return outcome
            outcome.worst = max(outcome.worst or 0.0, off)
    return outcome


def _fresh(drawn: Drawn, at: dict[str, int], rng: np.random.Generator, trial: int) -> dict[str, Any]:
    """Inputs within what was declared, of another kind at each trial: over the whole range, small, with a sign."""
    image = TensorSpec.parse(drawn.image)
    shape = image.with_sizes(at)
    if image.dtype == "uint8":
        top = (256, 256, 40, 2)[trial % 4]
        feeds = {"image": rng.integers(0, top, shape).astype(np.uint8)}
    else:
        low, high = ((-4, 4), (0, 1), (-1, 1), (0, 4), (-4, 0))[trial % 5]
        feeds = {"image": rng.uniform(low, high, shape).astype(np.float32)}
    if drawn.more:
        more = TensorSpec.parse(drawn.more)
        top = TABLE if more.name == "ids" else STEPS
        feeds[more.name] = rng.integers(0, top, more.with_sizes(at)).astype(np.int64)
    return feeds
