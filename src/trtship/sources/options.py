"""What the user says about the model: which, with which weights, built and fed how."""

from __future__ import annotations

import json
from typing import Any

from trtship.errors import SpecError
from trtship.spec import Record, TensorSpec


class SourceOptions(Record, frozen=True):
    """`source` as typed; at most one of `checkpoint`, `pretrained`, `random_weights`; `seed` for the last.

    `model_args` are `--model-arg NAME=VALUE` pairs, the value as typed; `inputs` are what `--input` said. `task` names
    what a transformers model is for, such as `semantic-segmentation`, where its config.json does not say its class.
    """

    source: str
    checkpoint: str | None = None
    pretrained: bool = False
    random_weights: bool = False
    seed: int = 0
    model_args: tuple[tuple[str, str], ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    task: str | None = None

    def model_kwargs(self) -> dict[str, Any]:
        """`model_args` as keyword arguments: a value that is JSON is that value, any other is a string."""
        return {name: _json_or_text(value) for name, value in self.model_args}


def parse_model_arg(text: str) -> tuple[str, str]:
    """`"num_classes=10"` as `("num_classes", "10")`. Raises SpecError."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise SpecError(
            f"--model-arg {text!r} is no argument",
            why="it takes NAME=VALUE, the value as JSON or plain text",
            do="for example --model-arg num_classes=10",
        )
    return name, value


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
