"""Shapes, inputs and sources other than one batch of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import trtship
from graphs import model_of, written
from trtship.bundle import Bundle
from trtship.errors import InputError, OutputError, SpecError

FACTORY = '''
import torch

class Scores(torch.nn.Module):
    """An image and ids -> scores [B, 5], and the ids' words [B, L, 5]."""

    def __init__(self):
        super().__init__()
        self.head, self.table = torch.nn.Linear(3, 5), torch.nn.Embedding(2, 5)

    def forward(self, image, ids):
        words = self.table(ids)
        return {"scores": self.head(image.mean((2, 3))) + words.mean(1), "words": words}

def scores():
    return Scores()

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))

def net():
    return Net()
'''
W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "factory.py").write_text(FACTORY)
    return str(tmp_path / "factory.py")


def deploy(source: str, tmp_path: Path, **options: Any) -> Bundle:
    options = {"precision": "fp32", "exporter": "torchscript", **options}
    result = trtship.deploy(source, tmp_path / "b", **options)
    bundle = Bundle.open(tmp_path / "b")
    assert result.verdicts == bundle.manifest.verdicts
    assert {v.subject: v.state for v in result.verdicts}["graph fp32"] == "passed"
    return bundle


def test_several_inputs_and_outputs_with_a_dynamic_size_of_their_own(source: str, tmp_path: Path) -> None:
    inputs = ["image=Bx3x8x8", "ids=BxL:int64"]
    bundle = deploy(f"{source}:scores", tmp_path, inputs=inputs, batch="1:2:4", sizes=["L=3:4:6"], precision="fp16")
    assert bundle.manifest.reference_sizes == {"L": 4}
    assert bundle.evidence("build")["profiles"][0] == {
        "image": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]],
        "ids": [[1, 3], [2, 4], [4, 6]],
    }
    with trtship.load(bundle) as session:
        image, ids = np.ones((2, 3, 8, 8), np.float32), np.ones((2, 5), np.int64)
        found = session({"image": image, "ids": ids})
        assert {name: array.shape for name, array in found.items()} == {"scores": (2, 5), "words": (2, 5, 5)}
        with pytest.raises(InputError, match="outside 3:4:6"):
            session({"image": image, "ids": np.ones((2, 7), np.int64)})
        with pytest.raises(InputError, match="several inputs"):
            session(image)


def test_dynamic_height_and_width(source: str, tmp_path: Path) -> None:
    bundle = deploy(
        f"{source}:net",
        tmp_path,
        inputs=["x=BxCxHxW".replace("C", "3")],
        batch="1:2:4",
        sizes=["H=8:16:32", "W=8:16:16"],
    )
    assert bundle.evidence("simplify")["kept"] == "simplified"
    with trtship.load(bundle) as session:
        assert session(np.ones((1, 3, 24, 12), np.float32)).shape == (1, 5)


@pytest.mark.parametrize("batch", [None, "3"])
def test_a_static_batch(batch: str | None, source: str, tmp_path: Path) -> None:
    bundle = deploy(f"{source}:net", tmp_path, inputs=["x=3x3x8x8"], batch=batch, precision="bf16")
    assert bundle.manifest.ranges == {}
    with trtship.load(bundle) as session:
        assert session(np.ones((3, 3, 8, 8), np.float32)).shape == (3, 5)
        with pytest.raises(InputError):
            session(np.ones((2, 3, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"inputs": ["x=3x3x8x8"], "batch": "1:2:4"}, "fixed batch"),
        ({"inputs": ["x=Bx3xHx8"]}, "no range for the dynamic size H"),
        ({"inputs": ["x=Bx3x8x8"], "sizes": ["L=1:2:3"]}, "no input has a dynamic size L"),
        ({"inputs": ["x=Bx3x8x8"], "sizes": ["B=1:2:3"]}, "--batch"),
        ({"inputs": ["x=Bx3x8x8"], "targets": ["1.0"]}, "--target '1.0'"),
        ({"inputs": ["x=Bx3x8x8"], "io_dtype": "float16"}, "--io-dtype float16"),
        ({"inputs": ["x=Bx3x8x8"], "max_drop": float("nan")}, "--max-drop"),
        ({"inputs": ["x=Bx3x8x8"], "labels": "{tmp}/labels"}, "2 labels, and the model 5 classes"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_leave_nothing(
    options: dict[str, Any], match: str, source: str, tmp_path: Path
) -> None:
    (tmp_path / "labels").write_text("one\ntwo\n")
    options = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in options.items()}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SpecError, match=match):
        deploy(f"{source}:net", tmp_path, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_half_precision_inputs_and_outputs_are_the_sessions_everywhere(source: str, tmp_path: Path) -> None:
    bundle = deploy(
        f"{source}:net", tmp_path, inputs=["x=Bx3x8x8"], precision="fp16", io_dtype="float16", batch="1:2:4"
    )
    assert [s.dtype for s in (*bundle.manifest.plan_inputs, *bundle.manifest.plan_outputs)] == ["float16"] * 2
    with trtship.load(bundle, runtime="onnxruntime") as session:
        logits = session(np.ones((2, 3, 8, 8), np.float16))
        assert logits.dtype == np.float16
        with pytest.raises(InputError, match="float32"):
            session(np.ones((2, 3, 8, 8), np.float32))


ROWS = "(float[batch, tokens, 4] x) => (float[batch, tokens, 3] y) { y = MatMul(x, w) }"


def test_an_onnx_source_with_sizes_of_its_own_names(tmp_path: Path) -> None:
    written(tmp_path / "in.onnx", ROWS, w=W)
    bundle = deploy(
        str(tmp_path / "in.onnx"), tmp_path, exporter=None, batch="1:2:4", sizes=["t=2:5:6"], precision="fp16"
    )
    x = np.random.default_rng(1).standard_normal((3, 4, 4), dtype=np.float32)
    with trtship.load(bundle) as session:
        np.testing.assert_allclose(session(x), x @ W, rtol=0, atol=1e-5)


def test_an_onnx_source_with_a_static_batch(tmp_path: Path) -> None:
    written(tmp_path / "in.onnx", "(float[2, 4] x) => (float[2, 3] y) { y = MatMul(x, w) }", w=W)
    bundle = deploy(str(tmp_path / "in.onnx"), tmp_path, exporter=None)
    verdict = bundle.manifest.verdicts[0]
    assert [m.sizes for m in verdict.measures] == [{}]


def test_an_onnx_source_with_external_data(tmp_path: Path) -> None:
    model = model_of("(float[batch, 4] x) => (float[batch, 3] y) { y = MatMul(x, w) }", w=W)
    path = tmp_path / "in.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    bundle = deploy(str(path), tmp_path, exporter=None, batch="1:2:4")
    for file in (path, tmp_path / "weights.bin"):
        file.unlink()
    with trtship.load(bundle) as session:
        x = np.ones((1, 4), np.float32)
        np.testing.assert_allclose(session(x), x @ W, rtol=0, atol=1e-6)


@pytest.mark.parametrize("content", [["notes.txt"], ["manifest.json"], ["manifest.json", "src"]])
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_bundle_is_never_replaced(
    content: list[str], force: bool, source: str, tmp_path: Path
) -> None:
    """A web application has a manifest.json as well."""
    (tmp_path / "b").mkdir()
    for name in content:
        (tmp_path / "b" / name).write_text("{}")
    with pytest.raises(OutputError, match="is no bundle"):
        deploy(f"{source}:net", tmp_path, inputs=["x=Bx3x8x8"], force=force)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == sorted(content)


def test_an_empty_folder_is_filled(source: str, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    deploy(f"{source}:net", tmp_path, inputs=["x=Bx3x8x8"], batch="1:2:4")
