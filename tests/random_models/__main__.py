"""Deploy many random models and look for a bundle that is wrong although every gate passed.

    python tests/random_models --models 500 [--first 0] [--workers 2] [--out FILE]

Prints a line for each finding and a table of what became of the models, and writes every outcome to FILE. The exit
code is 1 where there is a finding: a bundle that differs from the untouched model, a crash, a bundle that cannot run a
size that it promises, or a refusal of a model that has an exact graph.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: each worker has a core

from judge_models import FINDINGS, Outcome, judge_alone

from trtship.deployment.options import versions


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(judge_alone, seed) for seed in range(asked.first, asked.first + asked.models)]
        for job in as_completed(jobs):
            outcomes.append(found := job.result())
            if found.state in FINDINGS:
                print(f"{found.state}: {found.name}\n    {found.detail}", flush=True)
            if len(outcomes) % 25 == 0:
                print(f"{len(outcomes)} of {asked.models}", file=sys.stderr, flush=True)
            if asked.out:
                _write(asked.out, outcomes)
    states = Counter(outcome.state for outcome in outcomes)
    for state, count in states.most_common():
        print(f"{count:5} {state}")
    return int(any(states[state] for state in FINDINGS))


def _write(out: Path, outcomes: list[Outcome]) -> None:
    ordered = sorted(outcomes, key=lambda outcome: outcome.seed)
    whole = {
        "command": " ".join(["python", "tests/random_models", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": versions(),
        "states": dict(Counter(outcome.state for outcome in ordered)),
        "models": [{k: v for k, v in asdict(outcome).items() if k != "tried"} for outcome in ordered],
    }
    out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
