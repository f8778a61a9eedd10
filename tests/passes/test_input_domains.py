"""What each input of an exported graph may hold: ids of whole tables, masks, lengths, bytes, pictures."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from trtship.input_values import InputDomain, random_inputs
from trtship.passes.input_domains import domains_of_graph
from trtship.preprocess import CenterCrop, Normalize, Preprocess, Rescale
from trtship.spec import ShapeRange, TensorSpec

LENGTH = ShapeRange(min=4, opt=8, max=16)
RANGES = {"L": LENGTH}


class Function(nn.Module):
    """A function, with its tables as buffers."""

    def __init__(self, function: Callable[..., Any], **tables: Any) -> None:
        super().__init__()
        self.function = function
        for name, table in tables.items():
            self.register_buffer(name, table)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def exported(
    module: nn.Module, specs: list[TensorSpec], folder: Path, feeds: Mapping[str, Any] | None = None
) -> onnx_ir.Model:
    """The graph that the TorchScript exporter writes, which is quick."""
    feeds = feeds or random_inputs(specs, {"B": 2, "L": LENGTH.opt})
    example = tuple(torch.from_numpy(array) for array in feeds.values())
    axes = {s.name: {axis: size for axis, size in enumerate(s.shape) if isinstance(size, str)} for s in specs}
    path = folder / "model.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), example, str(path), dynamo=False, opset_version=20,
            input_names=[s.name for s in specs], output_names=["result"], dynamic_axes=axes,
        )  # fmt: skip
    return onnx_ir.load(path)


def domains(
    function: Callable[..., Any], texts: list[str], folder: Path, tables: Mapping[str, Any] | None = None
) -> dict[str, InputDomain]:
    """The domains, on which the model itself has been run: PyTorch raises for ids outside of a table."""
    specs = [TensorSpec.parse(text) for text in texts]
    module = Function(function, **dict(tables or {}))
    found = domains_of_graph(exported(module, specs, folder), specs, ranges=RANGES)
    for batch in (1, 5):
        for length in (LENGTH.min, LENGTH.max):
            feeds = random_inputs(specs, {"B": batch, "L": length}, seed=batch, domains=found)
            module(*(torch.from_numpy(feeds[spec.name]) for spec in specs))
    return found


def ends(domain: InputDomain) -> tuple[float, float]:
    return domain.low, domain.high


TABLE = {"table": torch.randn(100, 4)}
FORMS: dict[str, tuple[Callable[..., Any], tuple[float, float]]] = {
    "alone": (lambda m, i: F.embedding(i, m.table), (0, 99)),
    "after a shift": (lambda m, i: F.embedding(i + 3, m.table), (-3, 96)),
    "after a difference": (lambda m, i: F.embedding(99 - i, m.table), (0, 99)),
    "after a factor": (lambda m, i: F.embedding(i * 7, m.table), (0, 14)),
    "after a division": (lambda m, i: F.embedding(torch.div(i, 4, rounding_mode="floor"), m.table), (0, 399)),
    "after a cast": (lambda m, i: F.embedding(i.float().long(), m.table), (0, 99)),
    "after a reshape": (lambda m, i: F.embedding(i.reshape(-1), m.table), (0, 99)),
    "after unsqueeze and expand": (lambda m, i: F.embedding(i[:, None].expand(-1, 3, -1), m.table), (0, 99)),
    "after a transposition": (lambda m, i: F.embedding(i.T, m.table), (0, 99)),
    "where it is positive": (lambda m, i: F.embedding(torch.where(i > 0, i, 0), m.table), (0, 99)),
    "clamped at its start": (lambda m, i: F.embedding(i.clamp(min=0), m.table), (0, 99)),
    "in a concatenation": (lambda m, i: F.embedding(torch.cat([i, i + 1], 1), m.table), (0, 98)),
    "by an index": (lambda m, i: m.table[i], (0, 99)),
    "of the other axis": (lambda m, i: m.table.T[:, i], (0, 99)),
    "as one of two digits": (lambda m, i: m.table.reshape(10, 10, 4)[i, 3], (0, 9)),
    "by index_select": (lambda m, i: m.table.index_select(0, i.reshape(-1)), (0, 99)),
    "as a one-hot": (lambda m, i: F.one_hot(i, 100).float() @ m.table, (0, 99)),
    "as a comparison with all ids": (lambda m, i: (i[..., None] == torch.arange(100)).float() @ m.table, (0, 99)),
    "after a lookup of its own": (lambda m, i: F.embedding(torch.arange(50).flip(0)[i], m.table), (0, 49)),
    "in a bag": (lambda m, i: F.embedding(i, m.table).sum(1), (0, 99)),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_of_the_whole_table(form: str, tmp_path: Path) -> None:
    function, wanted = FORMS[form]
    found = domains(function, ["ids=BxL:int64"], tmp_path, TABLE)["ids"]
    assert ends(found) == wanted
    assert found.strict


def test_the_rows_with_the_largest_numbers_are_drawn_whatever_the_seed(tmp_path: Path) -> None:
    table = torch.randn(1000, 4)
    table[700] *= 1e5
    found = domains(lambda m, i: F.embedding(i + 1, m.table), ["ids=BxL:int64"], tmp_path, {"table": table})
    specs = [TensorSpec.parse("ids=BxL:int64")]
    for seed in range(5):
        assert 699 in random_inputs(specs, {"B": 1, "L": 16}, seed=seed, domains=found)["ids"]


@pytest.mark.parametrize(
    ("index", "wanted"),
    [
        (lambda m, i: i % 1000, 700),
        (lambda m, i: (i * 7 + 3) % 1000, 671),
        (lambda m, i: (i.int() % 1000).reshape(-1), 700),
        (lambda m, i: torch.arange(1000).flip(0)[i], 299),
    ],
)
def test_rows_with_the_largest_numbers_are_drawn_behind_a_remainder_or_another_table(
    index: Callable[..., Any], wanted: int, tmp_path: Path
) -> None:
    table = torch.randn(1000, 4)
    table[700] *= 1e5
    found = domains(lambda m, i: F.embedding(index(m, i), m.table), ["ids=BxL:int64"], tmp_path, {"table": table})
    assert wanted in random_inputs([TensorSpec.parse("ids=BxL:int64")], {"B": 1, "L": 16}, domains=found)["ids"]


def test_the_largest_rows_of_several_tables_meet_in_one_place(tmp_path: Path) -> None:
    """Each row fits in fp16, and their sum does not."""
    tables = {"words": torch.randn(1000, 4), "kinds": torch.randn(2, 4), "places": torch.randn(16, 4)}
    for name, row in (("words", 700), ("kinds", 1), ("places", 9)):
        tables[name][row] = 3e4
    specs = ["words=BxL:int64", "kinds=BxL:int64", "places=BxL:int64"]
    found = domains(lambda m, w, k, p: m.words[w] + m.kinds[k] + m.places[p], specs, tmp_path, tables)
    for seed in range(3):
        feeds = random_inputs([TensorSpec.parse(s) for s in specs], {"B": 1, "L": 4}, seed=seed, domains=found)
        assert (700, 1, 9) in zip(*(a.reshape(-1).tolist() for a in feeds.values()), strict=True)


def test_of_two_tables_for_one_input_the_smaller_one_counts(tmp_path: Path) -> None:
    tables = {"a": torch.randn(10, 4), "b": torch.randn(30, 4)}
    found = domains(lambda m, i: F.embedding(i, m.a) + F.embedding(i, m.b), ["ids=BxL:int64"], tmp_path, tables)
    assert ends(found["ids"]) == (0, 9)


def test_columns_that_index_tables_of_their_own_are_drawn_from_each(tmp_path: Path) -> None:
    tables = {"a": torch.randn(10, 4), "b": torch.randn(300, 4)}
    found = domains(lambda m, i: m.a[i[:, 0]] + m.b[i[:, 1]], ["ids=Bx2:int64"], tmp_path, tables)["ids"]
    assert [(part.start, part.low, part.high) for part in found.parts] == [(0, 0, 9), (1, 0, 299)]


def test_two_inputs_that_index_one_table_together(tmp_path: Path) -> None:
    found = domains(lambda m, a, b: m.t[a, b], ["a=B:int64", "b=B:int64"], tmp_path, {"t": torch.randn(7, 30, 2)})
    assert (ends(found["a"]), ends(found["b"])) == ((0, 6), (0, 29))


def test_positions_go_up_to_the_size_that_they_index(tmp_path: Path) -> None:
    def gather(m: Any, x: Any, i: Any) -> Any:
        return torch.gather(x, 1, i[..., None].expand(-1, -1, x.shape[2]))

    found = domains(gather, ["x=BxLx8", "i=Bx3:int64"], tmp_path)["i"]
    assert (found.low, found.size, found.offset, found.high) == (0, "L", -1, LENGTH.min - 1)


def test_the_index_of_a_scatter(tmp_path: Path) -> None:
    found = domains(lambda m, x, i: torch.zeros(i.shape[0], 12).scatter(1, i, x), ["x=Bx3", "i=Bx3:int64"], tmp_path)
    assert ends(found["i"]) == (0, 11)


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_lengths_go_up_to_their_dimension(dtype: str, tmp_path: Path) -> None:
    def masked(m: Any, x: Any, n: Any) -> Any:
        return (x * (torch.arange(x.shape[1])[None] < n[:, None])[..., None]).sum(1)

    found = domains(masked, ["x=BxLx8", f"n=B:{dtype}"], tmp_path)["n"]
    assert (found.low, found.size, found.offset) == (1, "L", 0)


def test_lengths_of_a_fixed_dimension(tmp_path: Path) -> None:
    found = domains(lambda m, x, n: x * (torch.arange(6) < n[:, None]), ["x=Bx6", "n=B:int64"], tmp_path)["n"]
    assert ends(found) == (1, 6)


MASKS: dict[str, Callable[..., Any]] = {
    "added": lambda m, x, k: (x + (1.0 - k.float()) * -1e9).softmax(-1),
    "added, the least number": lambda m, x, k: (x + (1.0 - k.float()) * torch.finfo(torch.float32).min).softmax(-1),
    "filled": lambda m, x, k: x.masked_fill(k == 0, -1e9).softmax(-1),
    "a condition": lambda m, x, k: torch.where(k.bool(), x, torch.zeros(())),
    "a mean": lambda m, x, k: (x * k).sum(1) / k.sum(1),
    "positions": lambda m, x, k: x + torch.cumsum(k, 1),
}


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("dtype", ["int64", "bool", "float32"])
def test_masks_have_tails(form: str, dtype: str, tmp_path: Path) -> None:
    if dtype == "bool" and form in ("a mean", "positions", "filled"):
        pytest.skip("PyTorch does not compute so with bool")
    if dtype == "float32" and not form.startswith("added"):
        pytest.skip("floats that are multiplied, or compared, are not told from other data")
    assert domains(MASKS[form], ["x=BxL", f"k=BxL:{dtype}"], tmp_path)["k"].kind == "mask"


def test_what_is_only_compared_with_a_special_id_keeps_its_table(tmp_path: Path) -> None:
    def padded(m: Any, ids: Any) -> Any:
        return F.embedding(ids, m.table) * (ids != 1)[..., None]

    found = domains(padded, ["ids=BxL:int64"], tmp_path, TABLE)["ids"]
    assert (found.kind, ends(found)) == ("uniform", (0, 99))


def test_bytes_are_all_bytes(tmp_path: Path) -> None:
    found = domains(lambda m, x: x.float() / 255 > 0.5, ["x=Bx3x8x8:uint8"], tmp_path)["x"]
    assert ends(found) == (0, 255)
    small = domains(lambda m, x: x.float().tanh(), ["x=Bx8:int8"], tmp_path)["x"]
    assert ends(small) == (-128, 127)


def test_pictures_of_wider_integers_are_bytes(tmp_path: Path) -> None:
    assert ends(domains(lambda m, x: x.float().tanh(), ["x=Bx3x8x8:int32"], tmp_path)["x"]) == (0, 255)


def test_numbers_that_nothing_bounds_say_that_they_are_invented(tmp_path: Path) -> None:
    found = domains(lambda m, t: (t.float() * torch.arange(4)).cos(), ["t=Bx1:int64"], tmp_path)["t"]
    assert ends(found) == (0, 999)
    assert "invented" in found.origin


def test_numbers_with_which_the_graph_compares_are_among_the_values(tmp_path: Path) -> None:
    def kinds(m: Any, k: Any) -> Any:
        return torch.where(k == 0, 1.0, torch.where(k == 1, 2.0, torch.where(k == 4, 3.0, 4.0)))

    found = domains(kinds, ["k=B:int64"], tmp_path)["k"]
    assert (found.kind, ends(found)) == ("uniform", (0, 5))
    year = domains(lambda m, y: torch.where(y > 2000, 1.0, y.float()), ["y=B:int64"], tmp_path)["y"]
    assert {1999.0, 2000.0, 2001.0} <= set(year.values)


def test_grey_pictures_that_are_compared_with_0_are_bytes_still(tmp_path: Path) -> None:
    found = domains(lambda m, x: torch.where(x == 0, 1.0, x.float()), ["x=Bx8x8:uint8"], tmp_path)["x"]
    assert ends(found) == (0, 255)


def test_numbers_that_the_graph_clips_keep_to_that(tmp_path: Path) -> None:
    found = domains(lambda m, t: t.clamp(0, 40).float().cos(), ["t=B:int64"], tmp_path)["t"]
    assert ends(found) == (0, 40)


@pytest.mark.parametrize(
    ("normalise", "wanted"),
    [
        (lambda x: x / 255, (0, 255)),
        (lambda x: (x - 127.5) / 127.5, (0, 255)),
        (lambda x: (x - torch.tensor([0.5, 0.4, 0.4])[:, None, None]) / 0.225, (0, 1)),
        (lambda x: x * 2 - 1, (0, 1)),
    ],
)
def test_floats_are_of_the_range_that_the_graph_normalises(
    normalise: Callable[[Any], Any], wanted: tuple[float, float], tmp_path: Path
) -> None:
    found = domains(lambda m, x: normalise(x).tanh(), ["x=Bx3x8x8"], tmp_path)["x"]
    assert (found.kind, ends(found)) == ("uniform", wanted)


def test_floats_of_which_nothing_is_told_are_normal(tmp_path: Path) -> None:
    assert domains(lambda m, x: x.tanh(), ["x=Bx3x8x8"], tmp_path)["x"].kind == "normal"
    assert domains(lambda m, x: x * 0.01 + 1, ["x=Bx8"], tmp_path)["x"].kind == "normal"


def test_preprocessing_tells_the_range_of_pictures(tmp_path: Path) -> None:
    steps = (CenterCrop(height=8, width=8), Rescale(factor=1 / 255), Normalize(mean=(0.5,) * 3, std=(0.25,) * 3))
    preprocess = Preprocess(mode="RGB", exif_transpose=False, steps=steps)
    specs = [TensorSpec.parse("x=Bx3x8x8")]
    graph = exported(Function(lambda m, x: x.tanh()), specs, tmp_path)
    found = domains_of_graph(graph, specs, preprocess=preprocess)["x"]
    np.testing.assert_allclose(ends(found), (-2, 2), rtol=1e-6)


def test_the_dynamo_exporter_s_graph_tells_the_same() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ids, self.places = nn.Embedding(50, 4), nn.Embedding(16, 4)

        def forward(self, ids: Any, mask: Any, kind: Any) -> Any:
            x = self.ids(ids) + self.places(torch.arange(ids.shape[1]))
            x = x + F.one_hot(kind, 4)[:, None].float()
            return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    one = torch.ones((2, 8), dtype=torch.int64)
    batch, length = torch.export.Dim("B"), torch.export.Dim("L", max=16)
    logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
    program = torch.onnx.export(
        Net().eval(), (one, one.clone(), one[:, 0].clone()), dynamo=True, verbose=False, opset_version=20,
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}, {0: batch}), input_names=["ids", "mask", "kind"],
    )  # fmt: skip
    assert program is not None
    specs = [TensorSpec.parse(text) for text in ("ids=BxL:int64", "mask=BxL:int64", "kind=B:int64")]
    found = domains_of_graph(program.model, specs, ranges=RANGES)
    assert (ends(found["ids"]), found["mask"].kind, ends(found["kind"])) == ((0, 49), "mask", (0, 3))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(2, 60),
    steps=st.lists(st.sampled_from(["+", "-", "*", "//", "neg"]), max_size=4),
    number=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_drawn_ids_never_leave_the_table(rows: int, steps: list[str], number: int, seed: int, tmp_path: Path) -> None:
    """PyTorch raises for an index outside; what is drawn reaches both ends of the table that the form can reach."""

    def form(ids: Any) -> Any:
        for step in steps:
            ids = {
                "+": lambda i: i + number,
                "-": lambda i: i - number,
                "*": lambda i: i * number,
                "//": lambda i: torch.div(i, number, rounding_mode="floor"),
                "neg": lambda i: -i,
            }[step](ids)
        return ids

    specs = [TensorSpec.parse("ids=BxL:int64")]
    module = Function(lambda m, ids: F.embedding(form(ids), m.table), table=torch.randn(rows, 2))
    every = torch.arange(-40_000, 40_000)  # 60 rows behind four divisions by 5
    valid = every[(form(every) >= 0) & (form(every) < rows)]
    if not len(valid):
        return
    example = {"ids": np.full((2, LENGTH.opt), int(valid[0]))}
    found = domains_of_graph(exported(module, specs, tmp_path, example), specs, ranges=RANGES)["ids"]
    module(torch.from_numpy(random_inputs(specs, {"B": 8, "L": 8}, seed=seed, domains={"ids": found})["ids"]))
    reached = torch.arange(int(found.low), int(found.high) + 1)
    assert set(form(reached).tolist()) == set(form(valid).tolist())
