"""What cannot be done as asked: one clear message, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_workplace import QUICK, Workplace

from graphs import written

DET = "(float[B, 4, 4] x) => (float[B] y) { [determinant] y = Det(x) }"
SCALE = "(float[B, 4] x) => (float[B, 4] y) { one = Constant<value = float {1.5}>() y = Mul(x, one) }"
SMALL = ("deploy", "model.py:small", *QUICK)


@pytest.mark.parametrize(
    ("source", "nearest"),
    [
        ("timm/swin_tiny_patch4_windw7_224", "swin_tiny_patch4_window7_224"),
        ("torchvision/swin_q", "swin_t"),
    ],
)
def test_an_unknown_model_is_answered_with_the_nearest_names(work: Workplace, source: str, nearest: str) -> None:
    message = work.refuses("deploy", source, "--random-weights", "-o", "a.trtship")
    assert f"the nearest names are {nearest}," in message
    assert f"do:  for example {source.partition('/')[0]}/{nearest}" in message


def test_an_option_that_a_verb_does_not_have_is_answered_with_the_nearest(work: Workplace) -> None:
    message = work.refuses(*SMALL, "--precison", "fp16", "-o", "a.trtship")
    assert "trtship deploy does not take --precison fp16" in message
    assert "did you mean --precision?" in message


def test_an_unknown_precision_is_answered_with_all_that_deploy_takes(work: Workplace) -> None:
    message = work.refuses("deploy", "model.py:small", "--precision", "fp17", "-o", "a.trtship")
    assert "fp8, int8, and auto" in message


def test_a_model_without_weights_is_refused_at_once(work: Workplace) -> None:
    message = work.refuses("deploy", "timm/swin_tiny_patch4_window7_224", "-o", "a.trtship")
    assert "--checkpoint FILE, --pretrained" in message


def test_a_checkpoint_for_another_architecture_is_refused_with_its_keys(work: Workplace) -> None:
    from safetensors.numpy import save_file

    save_file({"head.weight": np.zeros((3, 9), np.float32), "other": np.zeros(2, np.float32)}, work / "a.safetensors")
    message = work.refuses(*SMALL, "--checkpoint", "a.safetensors", "-o", "a.trtship")
    for key in ("conv.weight", "head.weight", "other"):
        assert key in message


@pytest.mark.parametrize("verb", ["deploy", "export", "simplify", "build"])
def test_a_file_that_is_no_onnx_graph_is_refused(work: Workplace, verb: str) -> None:
    for content in (b"hello\n", b"", b"\x08\x0a\x12\xff\xff"):
        (work / "a.onnx").write_bytes(content)
        assert "ONNX" in work.refuses(verb, "a.onnx", "-o", "b.out")
    assert "there is no ONNX file nowhere.onnx" in work.refuses(verb, "nowhere.onnx", "-o", "b.out")


@pytest.mark.parametrize("verb", ["deploy", "build"])
def test_an_op_that_tensorrt_lacks_is_named_with_its_node(work: Workplace, verb: str) -> None:
    written(work / "a.onnx", DET)
    assert "Det at node determinant" in work.refuses(verb, "a.onnx", "--precision", "fp32", "-o", "b.out")


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "folder", "missing"])
def test_a_picture_that_cannot_be_read_is_named(work: Workplace, deployed: Path, kind: str) -> None:
    picture = work / "bad.png"
    if kind == "cut":
        data = (work / "picture.png").read_bytes()
        picture.write_bytes(data[: len(data) * 2 // 3])
    elif kind == "folder":
        picture.mkdir()
    elif kind != "missing":
        picture.write_bytes(b"hello" if kind == "text" else b"")
    assert "bad.png" in work.refuses("run", deployed, "picture.png", "bad.png")


def test_an_eval_folder_must_hold_pictures_by_class(work: Workplace) -> None:
    (work / "val").mkdir()
    assert "it is empty" in work.refuses(*SMALL, "--eval", "val", "-o", "a.trtship")
    (work / "val" / "zero").mkdir()
    assert "zero" in work.refuses(*SMALL, "--eval", "val", "-o", "a.trtship")
    assert "No such file" in work.refuses(*SMALL, "--eval", "nowhere", "-o", "a.trtship")


def test_a_cut_picture_in_the_eval_folder_is_named(work: Workplace) -> None:
    data = (work / "picture.png").read_bytes()
    for name, content in (("zero", data), ("one", data[:90]), ("two", data)):
        (work / "val" / name).mkdir(parents=True)
        (work / "val" / name / "1.png").write_bytes(content)
    assert "val/one/1.png" in work.refuses(*SMALL, "--eval", "val", "-o", "a.trtship")


OPTIONS = {
    "--batch 8:4:2": "--batch 2:4:8",
    "--batch 0": "1 <= MIN",
    "--batch many": "--batch 1:8:32",
    "--precision fp12": "fp32, tf32, fp16, bf16",
    "--io-dtype float64": "--io-dtype float64",
    "--opset 99": "17 to 23",
    "--opset new": "invalid int value",
    "--exporter other": "dynamo, torchscript",
    "--family other": "tensorrt, tensorrt_rtx",
    "--target 1.0": "--target '1.0'",
    "--max-drop 101": "0 to 100",
    "--max-drop nan": "0 to 100",
    "--input picture": "--input image=Bx3x80x80",
    "--input a=Bx3:float12": "unknown dtype",
    "--size 3": "--size L=16:32:64",
    "--size H=3:2:1": "1 <= MIN",
    "--model-arg classes": "--model-arg num_classes=10",
    "--labels nowhere.txt": "nowhere.txt",
    "--labels .": "it is a directory",
    "--labels picture.png": "not UTF-8",
    "--checkpoint nowhere.safetensors": "nowhere.safetensors",
    "--checkpoint picture.png": ".safetensors",
    "--pretrained --random-weights": "contradict",
    "--seed x": "invalid int value",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_bad_option_of_deploy_is_refused_before_any_work(work: Workplace, option: str) -> None:
    message = work.refuses("deploy", "model.py:small", *option.split(), "-o", "a.trtship", "--quiet")
    assert OPTIONS[option] in message


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model-arg classes=3", "unexpected keyword argument 'classes'"),
        ("--input input=Bx1x8x8:int64", "cannot be run on input"),
        ("--input a=Bx1x8x8 --input b=Bx2", "the model takes 1 inputs, not 2"),
        ("--seed 99999999999999999999", "--seed is too large"),
    ],
)
def test_an_option_that_the_model_does_not_take_is_refused(work: Workplace, option: str, said: str) -> None:
    assert said in work.refuses(*SMALL, *option.split(), "-o", "a.trtship")


def test_what_only_the_exported_model_tells_is_refused_then(work: Workplace, deployed: Path) -> None:
    assert "dynamic size H" in work.refuses(*SMALL, "--size", "H=3", "-o", "a.trtship")
    (work / "labels.txt").write_text("zero\none\n")
    assert "2 labels" in work.refuses(*SMALL, "--labels", "labels.txt", "-o", "a.trtship")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--batch 8:4:2", "--batch 2:4:8"),
        ("--size H=3", "no dynamic size H"),
        ("--precision fp12", "fp32, tf32, fp16, bf16"),
        ("--io-dtype int64", "int64"),
        ("--family other", "tensorrt, tensorrt_rtx"),
        ("--target 1.0", "--target '1.0'"),
        ("--log a.onnx", "a.onnx exists"),
        ("--log .", ". is a folder"),
        ("--log b.plan", "needs its own file"),
    ],
)
def test_a_bad_option_of_build_is_refused(work: Workplace, option: str, said: str) -> None:
    written(work / "a.onnx", SCALE)
    assert said in work.refuses("build", "a.onnx", *option.split(), "-o", "b.plan")


@pytest.mark.parametrize("option", ["--top 0", "--top few", "--runtime other", "--device x"])
def test_a_bad_option_of_run_is_refused(work: Workplace, deployed: Path, option: str) -> None:
    assert option.split()[0] in work.refuses("run", deployed, "picture.png", *option.split())


def test_an_output_that_exists_needs_force(work: Workplace, bundle: Path) -> None:
    assert "batch: 1:2:4 -> 1" in work.refuses(*SMALL, "--batch", "1", "-o", bundle)
    (bundle / "labels.txt").write_text("other\n")
    assert "--force" in work.refuses(*SMALL, "-o", bundle)
    done = work.run(*SMALL, "--force", "-o", bundle)
    assert done.code == 0, done.err
    assert work.run("inspect", bundle).code == 0
    assert [name for name in work.listing() if "partial" in name] == []


def test_what_is_no_bundle_is_never_replaced(work: Workplace) -> None:
    (work / "folder").mkdir()
    (work / "folder" / "thesis.txt").write_text("years of work")
    (work / "web").mkdir()
    (work / "web" / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    (work / "link").symlink_to("folder")
    for output in ("folder", "web", "link", "model.py", "model.py/a.trtship", "."):
        work.refuses(*SMALL, "-o", output, "--force")
    work.refuses(*SMALL, "-o", "folder")
    for verb, source in (("export", "model.py:small"), ("simplify", "a.onnx"), ("build", "a.onnx")):
        written(work / "a.onnx", SCALE)
        work.refuses(verb, source, "-o", "folder", "--force")
        work.refuses(verb, source, "-o", "model.py/a.out", "--force")


@pytest.mark.parametrize("verb", ["export", "simplify", "build"])
def test_a_file_that_exists_needs_force(work: Workplace, verb: str) -> None:
    written(work / "a.onnx", SCALE)
    (work / "b.out").write_text("mine")
    assert "--force" in work.refuses(verb, "a.onnx", "-o", "b.out")


# bundles that must not be used


def files_of(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def test_a_bundle_with_one_flipped_bit_in_any_file_is_refused(work: Workplace, bundle: Path) -> None:
    for path in files_of(bundle):
        data = path.read_bytes()
        spoiled = bytearray(data)
        spoiled[len(data) // 2] ^= 1
        path.write_bytes(bytes(spoiled))
        assert path.name in work.refuses("inspect", bundle), path
        if path.suffix == ".plan":
            assert path.name in work.refuses("run", bundle, "picture.png"), path
            assert path.name in work.refuses("verify", bundle), path
        path.write_bytes(data)
    assert work.run("inspect", bundle).code == 0


def test_any_byte_of_the_manifest_may_be_the_one_that_flips(bundle: Path) -> None:
    from trtship.bundle.manifest import read_manifest
    from trtship.errors import BundleError

    data = (bundle / "manifest.json").read_bytes()
    for place in range(len(data)):
        for bit in (0, 5, 7):
            spoiled = bytearray(data)
            spoiled[place] ^= 1 << bit
            with pytest.raises(BundleError):
                read_manifest(bytes(spoiled), where="manifest.json")


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_cut_manifest_is_refused(work: Workplace, bundle: Path, length: int) -> None:
    data = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(data[:length])
    assert "manifest.json" in work.refuses("inspect", bundle)


def test_a_bundle_of_a_newer_schema_asks_for_a_newer_trtship(work: Workplace, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "schema": manifest["schema"] + 1, "new": True}))
    for command in (("inspect", bundle), ("run", bundle, "picture.png"), ("verify", bundle)):
        message = work.refuses(*command)
        assert "newer trtship" in message
        assert "pip install --upgrade trtship" in message


def test_a_folder_that_is_no_bundle_is_refused(work: Workplace, bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    for folder in (bundle, work / "nowhere", work / "picture.png"):
        for command in (("inspect", folder), ("run", folder, "picture.png"), ("verify", folder)):
            assert "is no bundle" in work.refuses(*command)


def test_a_bundle_without_one_of_its_files_is_refused(work: Workplace, bundle: Path) -> None:
    (bundle / "model.plan").unlink()
    assert "model.plan cannot be trusted\n  why: it is missing" in work.refuses("run", bundle, "picture.png")


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "reference"])
def test_a_link_that_leads_out_of_the_bundle_is_refused(work: Workplace, bundle: Path, name: str) -> None:
    shutil.move(bundle / name, work / "elsewhere")
    (bundle / name).symlink_to(work / "elsewhere")
    assert "leads out of the bundle" in work.refuses("run", bundle, "picture.png")


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(work: Workplace, bundle: Path) -> None:
    (bundle / "labels.txt").unlink()
    os.mkfifo(bundle / "labels.txt")
    done = work.run("inspect", bundle)
    assert done.code == 2
    assert "labels.txt cannot be trusted\n  why: it is no plain file" in done.err
