"""pack, unpack, sign and export-triton, as commands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cli_workplace import Workplace


@pytest.fixture
def standing(work: Workplace, bundle: Path) -> Workplace:
    """With the bundle at a.trtship, and a key made by openssl."""
    bundle.rename(work / "a.trtship")
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "private.pem"]
    subprocess.run(make, cwd=work.folder, check=True)
    show = ["openssl", "ec", "-in", "private.pem", "-pubout", "-out", "public.pem"]
    subprocess.run(show, cwd=work.folder, check=True, capture_output=True)
    return work


def test_a_bundle_goes_into_one_file_and_comes_out_whole(standing: Workplace) -> None:
    before = {name: content for name, content in standing.listing().items() if name.startswith("a.trtship")}
    packed = standing.run("pack", "a.trtship", "--json")
    assert packed.code == 0, packed.err
    assert packed.json["archive"].endswith("a.trtship.zip")
    assert "exists" in standing.refuses("pack", "a.trtship")
    assert "exists" in standing.refuses("unpack", "a.trtship.zip")
    assert standing.run("unpack", "a.trtship.zip", "-o", "b.trtship").code == 0
    after = {name: content for name, content in standing.listing().items() if name.startswith("b.trtship")}
    assert {name.replace("b.trt", "a.trt"): content for name, content in after.items()} == before
    assert "no packed bundle" in standing.refuses("unpack", "nothing.zip")
    assert "--max-mib" in standing.refuses("unpack", "a.trtship.zip", "-o", "c.trtship", "--max-mib", "0")


def test_a_signature_can_be_demanded_by_the_verbs_that_show_run_and_unpack(standing: Workplace) -> None:
    for verb in (["inspect"], ["verify", "--no-record"]):
        assert "not signed" in standing.refuses(*verb, "a.trtship", "--verify-key", "public.pem")
    done = standing.run("sign", "a.trtship", "--key", "private.pem")
    assert done.code == 0, done.err
    assert "signed" in standing.refuses("sign", "a.trtship", "--key", "private.pem")
    for verb in (["inspect", "a.trtship"], ["verify", "a.trtship"], ["run", "a.trtship", "picture.png"]):
        done = standing.run(*verb, "--verify-key", "public.pem")
        assert done.code == 0, done.err
    assert standing.run("pack", "a.trtship").code == 0
    assert standing.run("unpack", "a.trtship.zip", "-o", "b.trtship", "--verify-key", "public.pem").code == 0
    (standing / "b.trtship" / "model.plan").write_bytes(b"another")
    assert "not valid" in standing.refuses("run", "b.trtship", "picture.png", "--verify-key", "public.pem")
    assert "cannot sign" in standing.refuses("sign", "a.trtship", "--key", "public.pem", "--force")


def test_a_bundle_becomes_a_model_of_a_triton_repository(standing: Workplace) -> None:
    done = standing.run("export-triton", "a.trtship", "models", "--instances", "2", "--json")
    assert done.code == 0, done.err
    assert set(done.json) == {
        "bundle", "model", "name", "format", "max_batch_size", "preferred_batch_size", "max_queue_delay_us",
        "instances", "files", "notes",
    }  # fmt: skip
    assert (done.json["model"], done.json["format"], done.json["instances"]) == ("models/a", "onnx", 2)
    assert {path for path in standing.listing() if path.startswith("models/")} == {
        "models/a", "models/a/1", *(f"models/a/{name}" for name in done.json["files"])
    }  # fmt: skip
    assert "full TensorRT, cannot load" in done.err
    assert standing.run("export-triton", "a.trtship", "models", "--name", "b").out == "model: models/b, onnx\n"
    assert "exists" in standing.refuses("export-triton", "a.trtship", "models")
    assert standing.run("export-triton", "a.trtship", "models", "--force", "--quiet").err == ""
    assert "links full TensorRT" in standing.refuses("export-triton", "a.trtship", "new/models", "--format", "plan")
    assert "--name 'a/b'" in standing.refuses("export-triton", "a.trtship", "models", "--name", "a/b")
    assert "--instances" in standing.refuses("export-triton", "a.trtship", "models", "--instances", "0")
    assert "no bundle" in standing.refuses("export-triton", "nothing", "models")
    assert "not signed" in standing.refuses(
        "export-triton", "a.trtship", "models", "--force", "--verify-key", "public.pem"
    )
