"""What a missing package's message says to install is what brings it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trtship.errors import DependencyError
from trtship.needs import BROUGHT_BY, need, remedy

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"PIL": "pillow", "cuda": "cuda-bindings"}
BY_WAY_OF = {"huggingface_hub": "transformers"}
"""Modules that come with what an extra asks for."""


def asked_for(extra: str | None) -> set[str]:
    texts = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(text).name) for text in texts}


@pytest.mark.parametrize(
    ("extra", "module"), [(extra, module) for extra, modules in BROUGHT_BY.items() for module in modules]
)
def test_the_extra_that_is_named_brings_the_package(extra: str | None, module: str) -> None:
    distribution = BY_WAY_OF.get(module) or DISTRIBUTIONS.get(module, module)
    assert canonicalize_name(distribution) in asked_for(extra)


def test_a_package_that_only_runs_bundles_does_not_ask_for_those_that_make_them() -> None:
    assert remedy("onnxruntime") == "pip install 'trtship[rtx]'"
    assert remedy("onnx_ir.passes.common") == "pip install 'trtship[make]'"


def test_a_package_of_the_users_own_is_named_itself() -> None:
    with pytest.raises(DependencyError) as caught:
        need("no_such_package.part", purpose="a model")
    assert caught.value.do == "pip install no_such_package, into this Python"
    assert caught.value.why == "a model needs the package no_such_package, which is not installed"
