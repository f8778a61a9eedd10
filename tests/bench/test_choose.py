"""What `--against` names: peers, or single variants of them."""

from __future__ import annotations

import pytest

from trtship.bench.peers import choose
from trtship.errors import SpecError


def test_a_peer_by_name_stands_for_all_its_variants() -> None:
    peers, variants = choose(["compile", "eager"])
    assert list(peers) == ["compile", "eager"]
    assert variants == {"compile": ("reduce-overhead", "max-autotune"), "eager": ("",)}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["compile:max-autotune"], ("max-autotune",)),
        (["compile:max-autotune", "compile:reduce-overhead"], ("reduce-overhead", "max-autotune")),
        (["compile:max-autotune", "compile"], ("reduce-overhead", "max-autotune")),
    ],
)
def test_variants_take_part_alone(texts: list[str], expected: tuple[str, ...]) -> None:
    assert choose(texts)[1] == {"compile": expected}


@pytest.mark.parametrize("text", ["compile:fast", "compile:", "eager:x", "nobody", "nobody:x", ":x"])
def test_a_name_that_is_none_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(SpecError, match=r"names no (peer|variant)") as caught:
        choose([text])
    assert any(name in caught.value.why for name in ("max-autotune", "has no variants", "onnx-tensorrt"))
