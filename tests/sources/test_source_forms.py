"""`resolve`, the weights rule and what is refused before anything heavy is imported."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtship.errors import CheckpointError, SourceError, SpecError
from trtship.sources import SourceOptions, parse_model_arg, resolve
from trtship.spec import TensorSpec

EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("timm/swin_tiny_patch4_window7_224", "timm", "swin_tiny_patch4_window7_224"),
        ("torchvision/swin_t", "torchvision", "swin_t"),
        ("transformers/microsoft/swin", "transformers", "microsoft/swin"),
        ("transformers//abs/path", "transformers", "/abs/path"),
        ("a/b.py:make", "python", "a/b.py:make"),
        ("timm/b.py:make", "python", "timm/b.py:make"),
        ("timm/model.onnx", "onnx", "timm/model.onnx"),
    ],
)
def test_a_form_is_one_kind(text, kind, name):
    source = resolve(text)
    assert (source.kind, source.name) == (kind, name)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("swin_t", "timm/swin_t"),
        ("net.py", "net.py:factory"),
        ("", "timm/NAME"),
        ("timm/", "timm/NAME"),
        ("n.py:1x", "file.py:factory"),
    ],
)
def test_what_names_no_source_is_refused_with_the_forms(text, hint):
    with pytest.raises(SourceError, match=hint):
        resolve(text)


@given(st.text(max_size=40))
def test_any_text_is_a_source_or_a_source_error(text):
    try:
        assert resolve(text).name
    except SourceError as error:
        assert error.why  # noqa: PT017


def check(text, **options):
    resolve(text).check(SourceOptions(source=text, **options))


@pytest.mark.parametrize("text", ["timm/resnet18", "torchvision/resnet18", "transformers/some/name"])
def test_weights_must_have_one_origin(text, tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(EMPTY_SAFETENSORS)
    with pytest.raises(SourceError, match="--random-weights"):
        check(text)
    check(text, checkpoint=str(weights))
    check(text, pretrained=True)
    check(text, random_weights=True)
    with pytest.raises(SpecError, match="--checkpoint and --pretrained"):
        check(text, checkpoint=str(weights), pretrained=True)
    with pytest.raises(SpecError, match="--pretrained and --random-weights"):
        check(text, pretrained=True, random_weights=True)


def test_a_checkpoint_that_is_missing_or_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    for name, reason in [("none.pth", "no such file"), ("weights.npz", "torch.save did not write")]:
        with pytest.raises(CheckpointError, match=reason):
            check("timm/resnet18", checkpoint=str(tmp_path / name))
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match="folder"):
        check("timm/resnet18", checkpoint=str(tmp_path / "folder.pt"))


def test_a_factory_brings_its_own_weights(tmp_path):
    file = tmp_path / "net.py"
    file.touch()
    check(f"{file}:make")
    for flag in ("pretrained", "random_weights"):
        with pytest.raises(SpecError, match="brings its own"):
            check(f"{file}:make", **{flag: True})
    with pytest.raises(SourceError, match="no file"):
        check(f"{tmp_path / 'none.py'}:make")


def test_a_graph_takes_no_options_of_a_model(tmp_path):
    file = tmp_path / "m.onnx"
    file.touch()
    check(str(file))
    options = [
        {"checkpoint": "w.pth"},
        {"pretrained": True},
        {"random_weights": True},
        {"model_args": (("a", "1"),)},
        {"inputs": (TensorSpec.parse("a=Bx3"),)},
        {"task": "image-classification"},
    ]
    for option in options:
        with pytest.raises(SpecError, match="does not apply"):
            check(str(file), **option)
    with pytest.raises(SourceError, match="no such file"):
        check(str(tmp_path / "none.onnx"))


def test_what_is_given_twice_is_refused():
    with pytest.raises(SpecError, match="num_classes"):
        check("timm/resnet18", random_weights=True, model_args=(("num_classes", "1"), ("num_classes", "2")))
    with pytest.raises(SpecError, match="image"):
        check(
            "timm/resnet18", random_weights=True, inputs=(TensorSpec.parse("image=Bx3"), TensorSpec.parse("image=Bx4"))
        )


@given(name=st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True), value=st.text(max_size=20))
def test_a_model_arg_keeps_its_value_as_typed(name, value):
    assert parse_model_arg(f"{name}={value}") == (name, value)


def test_model_args_are_json_where_they_can_be():
    pairs = tuple(parse_model_arg(text) for text in ["a=1", "b=[1, 2]", "c=true", "d=avg", "e=0.5", 'f="1"', "g="])
    assert SourceOptions(source="timm/x", model_args=pairs).model_kwargs() == {
        "a": 1, "b": [1, 2], "c": True, "d": "avg", "e": 0.5, "f": "1", "g": "",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "a", "=1", "1a=2", "a-b=1"])
def test_malformed_model_args_are_refused(text):
    with pytest.raises(SpecError, match="num_classes=10"):
        parse_model_arg(text)


def test_checking_and_fingerprinting_import_nothing_heavy(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(EMPTY_SAFETENSORS)
    code = f"""
import sys
from trtship.sources import SourceOptions, resolve
for text, more in [("timm/swin_tiny_patch4_window7_224", {{"random_weights": True}}),
                   ("torchvision/swin_t", {{"checkpoint": {str(tmp_path / "model.safetensors")!r}}}),
                   ("transformers/{tmp_path}", {{}})]:
    options = SourceOptions(source=text, **more)
    resolve(text).check(options)
    assert resolve(text).fingerprint(options)
sys.exit(str([m for m in ("torch", "timm", "torchvision", "transformers", "onnx") if m in sys.modules] or ""))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_fingerprint_changes_with_everything_that_determines_the_model(tmp_path):
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"1")
    base = {"source": "timm/resnet18", "checkpoint": str(weights)}
    variants = [
        base,
        base | {"source": "timm/resnet34"},
        base | {"model_args": (("a", "1"),)},
        base | {"inputs": (TensorSpec.parse("input=Bx3x64x64"),)},
        {"source": "timm/resnet18", "random_weights": True},
        {"source": "timm/resnet18", "random_weights": True, "seed": 1},
    ]
    prints = [resolve("timm/resnet18").fingerprint(SourceOptions(**options)) for options in variants]
    weights.write_bytes(b"2")
    prints.append(resolve("timm/resnet18").fingerprint(SourceOptions(**base)))
    assert len({str(sorted(facts.items())) for facts in prints}) == len(prints)
    assert resolve("timm/resnet18").fingerprint(SourceOptions(source="timm/resnet18", pretrained=True)) is None
