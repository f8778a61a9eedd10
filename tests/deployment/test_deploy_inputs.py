"""What a deploy checks on: values that fit the graph, the user's own inputs, and what the result says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import trtship
from trtship.bundle import Bundle
from trtship.bundle.debug import debug_bundle
from trtship.cli.main import main
from trtship.errors import GateError, InputError, SpecError
from trtship.export.realistic import check_realistic
from trtship.export.source import graph_from_source
from trtship.input_files import ArraySource, source_of
from trtship.input_values import InputDomain
from trtship.sources import LoadedModel, SourceOptions, resolve
from trtship.spec import ShapeRange, TensorSpec
from trtship.verify.verdict import REL_L2_GIVEN

NETS = '''
import torch
from torch import nn
import torch.nn.functional as F

class Tokens(nn.Module):
    """Rows of a table; row 50 is beyond fp16's range."""
    trtship_inputs = ["ids=BxL:int64"]
    def __init__(self, outlier=1e5):
        super().__init__(); torch.manual_seed(0)
        self.table, self.mix, self.out = nn.Embedding(100, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        with torch.no_grad():
            self.table.weight[50] *= outlier
    def forward(self, ids):
        return self.out(torch.relu(self.mix(self.table(ids))).mean(1) / 100)

class Camera(nn.Module):
    """Bytes that nothing divides by 255: activations beyond fp16's range."""
    trtship_inputs = ["image=Bx3x16x16:uint8"]
    def __init__(self):
        super().__init__(); torch.manual_seed(3)
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 6)
        with torch.no_grad():
            self.a.weight.abs_().mul_(8.0); self.b.weight.abs_().mul_(8.0)
    def forward(self, image):
        x = F.relu(self.b(F.relu(self.a(image.float() - 0.5))))
        return self.head(x.mean((2, 3)) / 1e3)

class Exponent(nn.Module):
    """Whole numbers that must not be large: e^100 is Inf in fp32."""
    trtship_inputs = ["n=Bx2:int64"]
    def forward(self, n):
        return n.float().exp().sum(1, keepdim=True).repeat(1, 3)

class Rare(nn.Module):
    """Products that are large only where the input is: N(0, 1) does not reach there."""
    trtship_inputs = ["x=Bx8"]
    def __init__(self):
        super().__init__(); torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h * h / 1e3)

class Mixed(nn.Module):
    """One product that overflows in fp16."""
    trtship_inputs = ["x=Bx3x8x8"]
    def __init__(self):
        super().__init__(); torch.manual_seed(0)
        self.c, self.l, self.o = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 16), nn.Linear(16, 4)
    def forward(self, x):
        h = self.c(x).relu().mean((2, 3))
        return self.o((self.l(h) * 3e5).tanh() + ((h * 2e3) @ (torch.ones(16, 16, device=h.device) * 2e3)) / 1e7)

def tame(): return Tokens(1.0)
def tokens(): return Tokens()
'''
SIZES = {"batch": "1:2:3", "sizes": ["L=2:4:6"]}


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("nets") / "nets.py"
    path.write_text(NETS)
    return str(path)


@pytest.fixture(scope="module")
def tame(nets: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tame") / "tame.trtship"
    trtship.deploy(f"{nets}:tame", target, precision="fp16", exporter="torchscript", **SIZES)  # type: ignore[arg-type]
    return target


def test_a_row_of_a_table_that_overflows_is_found_whatever_the_other_rows(nets: str, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="graph fp16"):
        trtship.deploy(f"{nets}:tokens", tmp_path / "a.trtship", precision="fp16", exporter="torchscript", **SIZES)  # type: ignore[arg-type]
    assert not (tmp_path / "a.trtship").exists()


def test_bytes_that_overflow_are_found_and_auto_ships_what_is_right(nets: str, tmp_path: Path) -> None:
    common: Any = {"exporter": "torchscript", "batch": "1:2:3"}
    pictures = np.random.default_rng(0).integers(0, 256, (12, 3, 16, 16), np.uint8)
    with pytest.raises(GateError, match="NaN or Inf"):
        trtship.deploy(f"{nets}:Camera", tmp_path / "a.trtship", precision="fp16", **common)
    result = trtship.deploy(
        f"{nets}:Camera", tmp_path / "a.trtship", precision="auto", candidates="fp32,fp16,int8,mixed", max_rel_l2=0.02,
        inputs={"image": pictures}, **common,
    )  # fmt: skip
    assert result.choice is not None
    outcomes = {c.name: c.outcome for c in result.choice.candidates}
    assert outcomes["fp16"] == "failed"
    assert outcomes["int8"] != "not tried"
    assert not any(one.invented for one in result.inputs)
    assert "12 rows of the arrays given" in result.inputs[0].values
    assert all(v.state != "failed" for v in result.verdicts)


def test_auto_goes_on_where_there_is_nothing_to_calibrate_on(nets: str, tmp_path: Path) -> None:
    common: Any = {"exporter": "torchscript", "batch": "1:2:3"}
    result = trtship.deploy(f"{nets}:Mixed", tmp_path / "a.trtship", precision="auto", max_rel_l2=0.01, **common)
    assert result.choice is not None
    found = {c.name: c for c in result.choice.candidates}
    assert (found["fp32"].outcome in ("passed", "shipped"), found["fp16"].outcome) == (True, "failed")
    assert "needs inputs to calibrate on" in found["int8"].reason
    assert any("mixed" in name for name in found)


def test_verdicts_and_the_manifest_tell_what_was_tried(tame: Path) -> None:
    m = Bundle.open(tame).manifest
    assert [(one.name, one.invented) for one in m.tried] == [("ids", True)]
    assert m.tried[0].values.startswith("0..99, the whole table of ")
    ran = [v for v in m.verdicts if v.state != "not run"]
    assert ran
    assert all(v.inputs == m.tried and v.sizes for v in ran)
    compared = next(v for v in ran if v.gate == "rel_l2")
    assert {"B": 3, "L": 4} in compared.sizes
    reference = Bundle.open(tame).reference().inputs["ids"]
    assert set(reference.ravel().tolist()) > {0, 99}


def test_a_manifest_of_an_earlier_version_is_read(tame: Path) -> None:
    plain = msgspec.to_builtins(Bundle.open(tame).manifest)
    del plain["tried"]
    for verdict in plain["verdicts"]:
        del verdict["inputs"], verdict["sizes"]
    from trtship.bundle.manifest import Manifest

    assert msgspec.convert(plain, Manifest).tried == ()


def test_the_command_line_says_that_inputs_are_invented(
    nets: str, tame: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["deploy", f"{nets}:tame", "--exporter", "torchscript", "--batch", "1:2:3", "--size", "L=2:4:6", "--quiet"]
    assert main([*common, "-o", str(tmp_path / "a.trtship")]) == 0
    last = " ".join(capsys.readouterr().out.split("bundle: ")[-1].split())
    assert "checked on INVENTED inputs (ids: 0..99, the whole table of" in last
    assert "--inputs FILE" in last
    np.savez(tmp_path / "real.npz", ids=np.full((5, 4), 50))
    assert main([*common, "--inputs", str(tmp_path / "real.npz"), "-o", str(tmp_path / "b.trtship"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["inputs"]
    assert told[0]["invented"] is False
    assert "5 rows of real.npz" in told[0]["values"]
    assert (Bundle.open(tmp_path / "b.trtship").reference().inputs["ids"][0] == 50).all()
    assert main(["inspect", str(tmp_path / "a.trtship")]) == 0
    assert "INVENTED" in capsys.readouterr().out
    assert "(invented)" in (tmp_path / "a.trtship" / "report.html").read_text()
    assert "(invented)" not in (tmp_path / "b.trtship" / "report.html").read_text()


def test_other_inputs_make_another_bundle(nets: str, tmp_path: Path) -> None:
    def deploy(**more: Any) -> trtship.DeployResult:
        return trtship.deploy(
            f"{nets}:tame",
            tmp_path / "a.trtship",
            precision="fp32",
            exporter="torchscript",
            force=True,
            **SIZES,
            **more,
        )

    ids = np.arange(8).reshape(2, 4)
    deploy(inputs=ids)
    assert deploy(inputs=ids.copy()).up_to_date
    assert not deploy(inputs=ids + 1).up_to_date
    assert not deploy(input_ranges={"ids": (3, 9)}).up_to_date
    found = Bundle.open(tmp_path / "a.trtship").reference().inputs["ids"]
    assert (found.min(), found.max()) == (3, 9)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"inputs": np.zeros((2, 4), np.int32)}, "and the model takes int64"),
        ({"inputs": np.array([[1] * 4, [1, 2, 100, 3]])}, "row 1 of ids has 100, which the model cannot look up"),
        ({"inputs": np.zeros((2, 9), np.int64)}, "outside the range 2:4:6"),
        ({"inputs": "missing.npz"}, "there is no such file"),
        ({"input_ranges": ["ids=0:100"]}, "reaches beyond"),
        ({"input_ranges": ["x=0:1"]}, "the model has no input 'x'"),
        ({"input_ranges": {"ids": (2, 1)}}, "above HIGH"),
    ],
)
def test_inputs_that_do_not_fit_are_the_user_s_mistake(nets: str, more: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, SpecError), match=said):
        trtship.deploy(f"{nets}:tame", tmp_path / "a.trtship", exporter="torchscript", **SIZES, **more)
    assert not (tmp_path / "a.trtship").exists()


def exported(nets: str, name: str, folder: Path, **more: Any) -> Any:
    options = SourceOptions(source=f"{nets}:{name}", inputs=())
    model = resolve(options.source).load(options)
    assert isinstance(model, LoadedModel)
    ranges = {"L": ShapeRange(min=2, opt=4, max=6)} if name in ("tame", "tokens") else {}
    report = graph_from_source(model, folder / "a.onnx", ranges=ranges, exporter="torchscript")
    return check_realistic(model, folder / "a.onnx", report, **more)


def test_values_on_which_the_model_itself_gives_inf_are_narrowed(nets: str, tmp_path: Path) -> None:
    wide = InputDomain(kind="uniform", low=0, high=999, origin="0..999", values=(0.0, 999.0))
    found = exported(nets, "Exponent", tmp_path, domains={"n": wide}).domains["n"]
    assert (found.low, found.high) == (0, 9)
    assert "NaN or Inf" in found.origin


def test_a_range_of_the_user_s_is_not_narrowed(nets: str, tmp_path: Path) -> None:
    wide = InputDomain(kind="uniform", low=0, high=999, origin="given", invented=False)
    with pytest.raises(InputError, match="fails on n of given"):
        exported(nets, "Exponent", tmp_path, domains={"n": wide})


def test_rows_whose_sizes_the_model_refuses_are_the_user_s_mistake(nets: str, tmp_path: Path) -> None:
    samples = ArraySource(np.zeros((2, 5), np.int64))
    inputs = (TensorSpec(name="ids", shape=("B", "L"), dtype="int64"),)
    given = samples.read(inputs, ranges={})
    with pytest.raises(InputError, match="L=5"):
        exported(nets, "tame", tmp_path, domains={}, samples=given, allowed=lambda sizes: sizes["L"] % 2 == 0)


def test_verify_takes_inputs_of_its_own(tame: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=np.arange(12).reshape(3, 4))
    np.savez(tmp_path / "b.npz", ids=np.arange(12).reshape(2, 6))
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    verdicts = trtship.verify_bundle(tame, inputs=files, record=False)
    given = {v.subject: v for v in verdicts if v.gate == REL_L2_GIVEN}
    assert set(given) == {"graph fp16", "plan"}
    found = given["graph fp16"]
    assert (found.state, found.inputs[0].values) == ("passed", "3 rows of a.npz, 2 rows of b.npz")
    assert {"B": 2, "L": 6} in found.sizes
    assert "the bundle's fp32 graph" in found.note
    with pytest.raises(InputError, match="outside the range"):
        trtship.verify_bundle(tame, inputs=np.zeros((1, 9), np.int64), record=False)


def test_inputs_find_what_the_reference_does_not(nets: str, tmp_path: Path) -> None:
    """fp16 squares overflow where inputs are a thousand; N(0, 1) never is."""
    target = tmp_path / "a.trtship"
    trtship.deploy(f"{nets}:Rare", target, precision="fp16", exporter="torchscript", batch="1:2:3")
    large = np.full((2, 8), 1000, np.float32)
    found = next(v for v in trtship.verify_bundle(target, inputs=large, record=False) if v.gate == REL_L2_GIVEN)
    assert (found.subject, found.state) == ("graph fp16", "failed")
    report = debug_bundle(target, inputs=large)
    assert report.wrong is not None
    assert "the given rows" in report.wrong.case
    with pytest.raises(GateError):
        trtship.deploy(
            f"{nets}:Rare", tmp_path / "b.trtship", precision="fp16", exporter="torchscript", batch="1:2:3",
            input_ranges={"x": (-1000, 1000)},
        )  # fmt: skip


def test_export_checks_on_inputs(nets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "real.npz", ids=np.arange(8).reshape(2, 4))
    arguments = ["export", f"{nets}:tame", "--exporter", "torchscript", "--size", "L=2:4:6", "--quiet"]
    real = ["--inputs", str(tmp_path / "real.npz")]
    assert main([*arguments, *real, "-o", str(tmp_path / "a.onnx"), "--json"]) == 0
    assert "2 rows of real.npz" in json.loads(capsys.readouterr().out)["report"]["inputs"][0]["values"]
    assert main([*arguments, "--input-range", "ids=0:100", "-o", str(tmp_path / "b.onnx")]) == 2
    assert "0..99, the whole table of" in capsys.readouterr().err
    assert not (tmp_path / "b.onnx").exists()


def test_a_source_of_inputs_is_read_once(tmp_path: Path) -> None:
    source = source_of(iter([np.zeros((1, 4), np.int64)]))
    assert source is not None
    assert source.digest() == source.digest()


def test_a_graph_that_somebody_brings_tells_its_ids_too(nets: str, tmp_path: Path) -> None:
    graph = tmp_path / "tokens.onnx"
    export = ["export", f"{nets}:tokens", "--exporter", "torchscript", "--size", "L=2:4:6", "--quiet", "-o", str(graph)]
    assert main(export) == 0
    with pytest.raises(GateError, match="graph fp16"):
        trtship.deploy(str(graph), tmp_path / "a.trtship", precision="fp16", **SIZES)  # type: ignore[arg-type]
