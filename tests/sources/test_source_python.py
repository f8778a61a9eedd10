import sys
import textwrap

import pytest
import torch

from trtship.errors import CheckpointError, SourceError, SpecError
from trtship.preprocess import CenterCrop, Preprocess
from trtship.sources import SourceOptions, resolve
from trtship.spec import TensorSpec, as_plain

LINEAR = """
    import torch
    class Net(torch.nn.Module):
        def __init__(self, classes=4):
            super().__init__()
            self.head = torch.nn.Linear(12, classes)
        def forward(self, image):
            return self.head(image.flatten(1))
    def make(**kwargs):
        return Net(**kwargs)
"""


@pytest.fixture
def load(tmp_path):
    """Writes net.py (and what else is given) and loads `net.py:make`."""

    def load(code, *inputs, files=None, folder=tmp_path, **options):
        folder.mkdir(exist_ok=True)
        for name, text in {"net.py": code, **(files or {})}.items():
            (folder / name).write_text(textwrap.dedent(text))
        source = f"{folder / 'net.py'}:make"
        made = SourceOptions(source=source, inputs=tuple(TensorSpec.parse(i) for i in inputs), **options)
        resolve(source).check(made)
        return resolve(source).load(made)

    return load


def forward(signature, returns, inputs=()):
    return f"""
    import torch
    from collections import namedtuple
    class Net(torch.nn.Module):
        trtship_inputs = {list(inputs)!r}
        def forward(self, {signature}):
            return {returns}
    def make():
        return Net()
    """


def test_a_factorys_module_is_frozen_and_named(load):
    model = load(LINEAR, "image=Bx3x2x2", model_args=(("classes", "6"),))
    assert model.outputs == ("logits",)
    assert model.inputs[0].name == "image"
    assert model.module(torch.zeros(5, 3, 2, 2)).shape == (5, 6)
    assert not any(p.requires_grad for p in model.module.parameters())
    assert model.notes == ()


def test_a_factory_that_tells_everything_needs_no_options(load):
    preprocess = Preprocess(mode="RGB", exif_transpose=False, steps=(CenterCrop(height=2, width=2),))
    told = f"""
    def tell():
        net = make()
        net.trtship_inputs = ["image=Bx3x2x2"]
        net.trtship_preprocess = {as_plain(preprocess)!r}
        net.trtship_labels = ["a", "b", "c", "d"]
        return net
    """
    load(LINEAR, "image=Bx3x2x2")
    model = load(LINEAR.replace("def make(", "def plain(") + told.replace("make()", "plain()").replace("tell", "make"))
    assert (model.preprocess, model.labels) == (preprocess, ("a", "b", "c", "d"))
    with pytest.raises(SpecError, match="labels do not fit"):
        load(
            LINEAR.replace("def make(", "def plain(")
            + told.replace("make()", "plain(classes=5)").replace("tell", "make")
        )
    with pytest.raises(SpecError, match="preprocessing does not fit"):
        load(
            LINEAR.replace("def make(", "def plain(") + told.replace("make()", "plain()").replace("tell", "make"),
            "image=Bx3x4x1",
        )


@pytest.mark.parametrize(
    ("value", "attribute"),
    [("{'mode': 'RGB'}", "trtship_preprocess"), ("[1, 2]", "trtship_labels"), ("'B'", "trtship_inputs")],
)
def test_attributes_that_are_malformed_are_named(load, value, attribute):
    code = LINEAR.replace(
        "return Net(**kwargs)",
        f"net = Net(); net.trtship_inputs = ['image=Bx3x2x2']; net.{attribute} = {value}; return net",
    )
    with pytest.raises(SpecError, match=attribute):
        load(code)


@pytest.mark.parametrize(
    ("returns", "outputs", "shapes"),
    [
        ("x.sum((2, 3))", ["logits"], [(3, 2)]),
        ("x + 1", ["output"], [(3, 2, 4, 4)]),
        ("(x, x[:, 0])", ["output_0", "output_1"], [(3, 2, 4, 4), (3, 4, 4)]),
        ("[x]", ["output_0"], [(3, 2, 4, 4)]),
        (
            "{'out': x, 'aux': (x, {'deep': x[0]}), 'n': 3, 'none': None}",
            ["out", "aux_0", "aux_1_deep"],
            [(3, 2, 4, 4), (3, 2, 4, 4), (2, 4, 4)],
        ),
        ("namedtuple('Pair', 'left right')(x, x)", ["left", "right"], [(3, 2, 4, 4), (3, 2, 4, 4)]),
        ("{'x': x.sum((2, 3))}", ["x_out"], [(3, 2)]),
    ],
)
def test_whatever_forward_returns_becomes_named_tensors(load, returns, outputs, shapes):
    model = load(forward("x", returns), "x=Bx2x4x4")
    result = model.module(torch.zeros(3, 2, 4, 4))
    tensors = [result] if isinstance(result, torch.Tensor) else result
    assert list(model.outputs) == outputs
    assert [tuple(t.shape) for t in tensors] == shapes


@pytest.mark.parametrize("returns", ["None", "3", "'text'", "{}"])
def test_a_forward_that_returns_no_tensor_is_refused(load, returns):
    with pytest.raises(SourceError, match="returns no tensor"):
        load(forward("x", returns), "x=Bx2")


@pytest.mark.parametrize(
    ("signature", "inputs", "order"),
    [
        ("image, ids", ["ids=BxL:int64", "image=Bx3"], ["image", "ids"]),
        ("image, mask=None, ids=None", ["ids=BxL:int64", "image=Bx3"], ["image", "ids"]),
        ("image, *, ids", ["ids=BxL:int64", "image=Bx3"], ["image", "ids"]),
        ("a, b", ["first=Bx3", "second=BxL:int64"], ["first", "second"]),
        ("*tensors", ["first=Bx3", "second=BxL:int64"], ["first", "second"]),
    ],
)
def test_inputs_are_put_into_forwards_order(load, signature, inputs, order):
    names = {"a, b": "a * b.sum()", "*tensors": "tensors[0] * tensors[1].sum()"}
    model = load(forward(signature, names.get(signature, "image * ids.sum()")), *inputs)
    assert [spec.name for spec in model.inputs] == order
    result = model.module(torch.full((2, 3), 5.0), torch.ones(2, 7, dtype=torch.int64))
    assert result.tolist() == [[70.0] * 3] * 2
    assert any("by position" in note for note in model.notes) == ("first" in order)


@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        ("image, ids", ["image=Bx3"]),
        ("image", ["image=Bx3", "mask=Bx3"]),
        ("a, b", ["c=Bx3"]),
        ("a", ["b=Bx3", "c=Bx3"]),
    ],
)
def test_inputs_that_forward_does_not_take_are_refused(load, signature, inputs):
    with pytest.raises(SpecError, match="forward takes"):
        load(forward(signature, "0"), *inputs)


def test_unknown_inputs_are_asked_for_by_their_names(load):
    with pytest.raises(SpecError, match="--input image=Bx3x224x224 --input ids="):
        load(forward("image, ids, more=1", "image"))


def test_inputs_of_a_shape_that_fails_are_refused_with_the_reason(load):
    with pytest.raises(SpecError, match="shapes cannot be multiplied"):
        load(LINEAR, "image=Bx3x4x4")


def test_a_dynamic_size_other_than_the_batch_is_tried(load):
    code = forward("ids", "torch.nn.functional.embedding(ids, torch.ones(9, 3)).mean(1)[:, : 99 // ids.shape[1]]")
    assert load(code, "ids=BxL:int64").inputs[0].shape == ("B", "L")
    assert load(forward("ids", "ids.view(-1, 16)"), "ids=L:int64").outputs == ("logits",)


def test_half_precision_is_widened_and_said(load):
    code = LINEAR.replace("return Net(**kwargs)", "return Net(**kwargs).half()")
    model = load(code, "image=Bx3x2x2")
    assert model.module(torch.zeros(2, 3, 2, 2)).dtype == torch.float32
    assert model.notes == ("model: float16 parameters are widened to float32, in which the reference computes",)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("def make(:\n  pass", r"SyntaxError.*net\.py:1"),
        ("import no_such_package", r"ModuleNotFoundError.*net\.py:1"),
        ("x = 1\ndef make():\n    return 1 / 0", r"ZeroDivisionError.*net\.py:3"),
        ("raise SystemExit(2)", r"SystemExit: 2.*net\.py:1"),
        ("def make(): return 3", "it is a int"),
        ("def other(): pass", "only other"),
        ("import torch\nmake = torch.nn.Linear(2, 2)", "not a function"),
        ("make = 3", "has no factory"),
    ],
)
def test_a_factory_that_fails_is_refused_with_its_line(load, code, what):
    with pytest.raises(SourceError, match=what):
        load(code, "x=Bx2")


def test_a_factory_may_import_its_neighbours_and_print(load, capsys, tmp_path):
    path = list(sys.path)
    model = load("from parts import make\nprint('hello')", "image=Bx3x2x2", files={"parts.py": LINEAR})
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")
    assert sys.path == path
    assert {"code net.py", "code parts.py", "torch"} <= model.facts.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.py", "parts.py"]


def test_neighbours_of_the_same_name_are_not_confused(load, tmp_path):
    net = "import parts\ndef make():\n    return parts.make()"
    counts = [
        load(
            net,
            "image=Bx3x2x2",
            files={"parts.py": LINEAR.replace("classes=4", f"classes={n}")},
            folder=tmp_path / where,
        )
        .module(torch.zeros(1, 3, 2, 2))
        .shape[1]
        for n, where in [(5, "a"), (6, "b"), (7, "b")]
    ]
    assert counts == [5, 6, 7]


def test_a_checkpoint_replaces_a_factorys_weights(load, tmp_path):
    weights = {"head.weight": torch.ones(4, 12), "head.bias": torch.zeros(4)}
    torch.save(weights, tmp_path / "w.pth")
    model = load(LINEAR, "image=Bx3x2x2", checkpoint=str(tmp_path / "w.pth"))
    assert model.module(torch.ones(1, 3, 2, 2)).tolist() == [[12.0] * 4]
    torch.save({"head.weight": torch.ones(4, 12)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        load(LINEAR, "image=Bx3x2x2", checkpoint=str(tmp_path / "w.pth"))


STATEFUL = """
    import functools, pathlib
    import torch
    from parts import OFFSET
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            scale = float((pathlib.Path(__file__).parent / "scale.txt").read_text())
            self.settings = {"scale": scale}
            self.table = torch.full((3,), scale)
            self.function = functools.partial(torch.mul, other=scale)
            self.register_buffer("mask", torch.full((3,), scale), persistent=False)
        def forward(self, image):
            return self.function(image) * self.mask + OFFSET
    def make():
        return Net()
"""


def test_a_fingerprint_is_the_same_until_something_changes(load):
    def facts(scale="2", offset="OFFSET = 1", code=STATEFUL, inputs="image=Bx3", **options):
        return load(code, inputs, files={"parts.py": offset, "scale.txt": scale}, **options).fingerprint()

    base = facts()
    assert facts() == base
    changed = {
        "weights": facts(scale="3"),
        "structure": facts(scale="3"),
        "code parts.py": facts(offset="OFFSET = 2"),
        "code net.py": facts(code=STATEFUL + "\n    # changed"),
        "inputs": facts(inputs="pixels=Bx3"),
    }
    assert {key: new[key] != base[key] for key, new in changed.items()} == dict.fromkeys(changed, True)


@pytest.mark.parametrize("attribute", ["self.settings", "self.table", "self.function"])
def test_a_fingerprint_sees_plain_attributes(load, attribute):
    others = {"self.settings", "self.table", "self.function"} - {attribute}
    lines = [
        line
        for line in STATEFUL.splitlines()
        if not any(f"{other} =" in line for other in others) and "register_buffer" not in line
    ]
    code = "\n".join(lines).replace("self.function(image) * self.mask", "image * 1")
    prints = [
        load(code, "image=Bx3", files={"parts.py": "OFFSET = 1", "scale.txt": s}).fingerprint() for s in "22" + "3"
    ]
    assert prints[0] == prints[1]
    assert prints[0]["structure"] != prints[2]["structure"]
