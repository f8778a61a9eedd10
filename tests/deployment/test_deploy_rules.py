"""A rule on sizes on its way from the model's code to the caller who breaks it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import trtship
from trtship.bundle import Bundle
from trtship.bundle.manifest import _digest as digest
from trtship.cli.main import main
from trtship.errors import BundleSchemaError, InputError
from trtship.spec import as_plain, to_json

NET = """
import torch
import torch.nn.functional as F


class Net(torch.nn.Module):
    trtship_inputs = ["image=Bx3xHx16"]

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv = torch.nn.Conv2d(3, 5, 1)

    def forward(self, image):
        x = self.conv(image)
        if x.shape[2] % 2 == 1:
            x = F.pad(x, (0, 0, 0, 1), mode="replicate")
        return F.avg_pool2d(x, 2)


def make():
    return Net()
"""
OPTIONS = ["--precision", "fp32", "--batch", "1:2:4"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    (folder / "net.py").write_text(NET)
    arguments = ["deploy", f"{folder / 'net.py'}:make", *OPTIONS, "--size", "H=8:16:32", "-o", str(folder / "b")]
    assert main(arguments) == 0
    return folder / "b"


def test_the_rule_is_in_the_manifest_the_evidence_and_inspect(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Bundle.open(bundle)
    assert [rule.text for rule in opened.manifest.rules] == ["H % 2 != 1"]
    assert opened.evidence("export")["export"]["rules"][0]["text"] == "H % 2 != 1"
    assert main(["inspect", str(bundle)]) == 0
    assert "only where H % 2 != 1 (from " in capsys.readouterr().out


def test_no_size_gives_a_wrong_answer(bundle: Path) -> None:
    space: dict[str, object] = {}
    exec(NET, space)
    module = space["make"]().eval()  # type: ignore[operator]
    with trtship.load(bundle, runtime="onnxruntime") as session, torch.no_grad():
        for height in range(8, 33):
            x = np.random.default_rng(0).standard_normal((9, 3, height, 16), dtype=np.float32)  # in parts: 4, 4, 1
            if height % 2:
                with pytest.raises(InputError, match="H % 2 != 1"):
                    session(x)
            else:
                np.testing.assert_allclose(session(x), module(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)


def test_triton_which_keeps_no_rules_does_not_get_it(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-triton", str(bundle), str(tmp_path / "models")]) == 2
    assert "H % 2 != 1" in capsys.readouterr().err


def test_a_manifest_with_a_rule_that_is_no_condition_is_refused(bundle: Path, tmp_path: Path) -> None:
    plain = as_plain(Bundle.open(bundle).manifest)
    plain["rules"][0]["text"] = "__import__('os').abort()"
    shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_bytes(to_json({**plain, "seal": digest(plain)}))
    with pytest.raises(BundleSchemaError) as caught:
        Bundle.open(tmp_path / "b")
    assert "is not allowed in a condition on sizes" in caught.value.why


def test_a_range_that_ends_at_odd_heights_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"{bundle.parent / 'net.py'}:make"
    assert main(["deploy", source, *OPTIONS, "--size", "H=8:16:31", "-o", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert "only where H % 2 != 1, and H=31 breaks that" in said
    assert "--size H=8:16:30" in said
    assert list(tmp_path.iterdir()) == []
