"""The options of a search for the precision: how they are written, and which go together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trtship.errors import SpecError
from trtship.spec import Precision
from trtship.verify.gates import Gates

if TYPE_CHECKING:
    from trtship.deployment.options import DeployOptions

AUTO = "auto"
MIXED = "mixed"
CANDIDATES = (*(p.value for p in Precision), MIXED)
"""What `--candidates` may name."""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str, option: str) -> float:
    """`"20m"`, `"90s"`, `"1h"` in seconds; a number alone is minutes. Raises SpecError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text)
    seconds = float(match[1]) * UNITS[match[2] or "m"] if match else 0.0
    if not seconds:
        raise SpecError(
            f"{option} {text!r} is no time",
            why="it takes a number with s, m or h after it; a number alone is minutes",
            do=f"for example {option} 20m",
        )
    return seconds


def parse_candidates(text: str) -> tuple[str, ...]:
    """`"fp32,fp16,mixed"` as names, each once. Raises SpecError."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in CANDIDATES]
    if unknown or not names:
        raise SpecError(
            f"--candidates {text!r}: " + (f"there is no {unknown[0]!r}" if unknown else "it names none"),
            why=f"the candidates are {', '.join(CANDIDATES)}",
            do="name some of them, with commas between",
        )
    if names == (MIXED,):
        raise SpecError(
            "--candidates mixed names no precision to mix",
            why="a mixture is of a precision that fails its gates by itself",
            do="name that as well, such as --candidates fp16,mixed",
        )
    return names


def check_search(options: DeployOptions, *, has_inputs: bool = False) -> None:
    """Raises SpecError for options of a search without one, for a search without gates, and for gates out of range."""
    Gates(max_rel_l2=options.max_rel_l2, min_cosine=options.min_cosine).check()
    if options.precision is not None:
        alone = {"--candidates": options.candidates, "--time-budget": options.time_budget}
        given = [name for name, value in alone.items() if value]
        if given:
            raise SpecError(
                f"{given[0]} does not go with --precision {options.precision.value}",
                why="there is nothing to search for",
                do="add --precision auto, or leave it away",
            )
        return
    if options.eval_dir is None and options.max_rel_l2 is None and options.min_cosine is None:
        raise SpecError(
            "--precision auto needs a gate",
            why="without one the coarsest precision that is fast would do",
            do="add --eval DIR with labelled pictures (and --max-drop), or --max-rel-l2 or --min-cosine",
        )
    quantized = [name for name in options.candidates if name in ("fp8", "int8")]
    nothing = options.calib_dir is None and options.eval_dir is None and not has_inputs
    if quantized and nothing and options.scope != "weights":
        raise SpecError(
            f"--candidates {quantized[0]} needs inputs to calibrate on",
            why="its scales come from what the model makes of them",
            do="add --calib DIR or --inputs FILE: some hundred like those it will see, rather not those of --eval",
        )
