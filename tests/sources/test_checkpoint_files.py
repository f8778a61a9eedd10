"""Checkpoint files: judged by content, whole with their shards, and the bytes that were hashed."""

import gzip
import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from checkpoint_nets import Net, same, trained
from trtship.errors import CheckpointError
from trtship.sources import SourceOptions, resolve
from trtship.sources.base import check_checkpoint_file
from trtship.sources.checkpoint import load_checkpoint
from trtship.sources.checkpoint_files import checkpoint_digest, opened_checkpoint


@pytest.fixture(scope="module")
def net():
    return trained(Net(), 1)


WRITERS = {
    "safetensors": save_file,
    "torch": torch.save,
    "torch, legacy": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("name", ["w.ckpt", "w.pth.tar", "w.bin", "w.safetensors", "w.pt", "0a1b2c", "w.png"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_is_read_by_its_content_whatever_its_name(net, tmp_path, writer, name):
    WRITERS[writer](net.state_dict(), tmp_path / name)
    (tmp_path / "link").symlink_to(name)
    for path in (tmp_path / name, tmp_path / "link"):
        check_checkpoint_file(path)
        model = Net()
        load_checkpoint(model, path)
        assert same(model, net)


def archive(entry, data=b"x", compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as opened:
        opened.writestr(entry, data)
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        opened.addfile(tarfile.TarInfo("a"))
    return file.getvalue()


def array():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


OTHERS = {
    "empty": (b"", "an empty file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "an array": (array(), r"NumPy array \(.npy\)"),
    "arrays": (archive("a.npy"), r"\.npz"),
    "a zip": (archive("a.txt"), "torch.save did not write"),
    "a compressed zip": (archive("a/data.pkl", bytes(10**6), zipfile.ZIP_DEFLATED), "compressed or overlapping"),
    "gzip": (gzip.compress(b"x"), "gzip"),
    "tar": (tar(), "tar archive"),
    "a page": (b"<!DOCTYPE html><html>", "web page"),
    "a pickle": (b"\x80\x04]\x94.", "pickle that torch.save did not write"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
    "JSON": (b'{"a": 1}', "not the index of a checkpoint"),
    "deep JSON": (b'{"a":' * 100_000, "not the index of a checkpoint"),
    "text": (b"weights", "unknown format"),
    "cut": ((10**6).to_bytes(8, "little") + b'{"a"', "cut short"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_refused_with_what_they_are(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    data, said = OTHERS[kind]
    path.write_bytes(data)
    for reads in (check_checkpoint_file, lambda path: load_checkpoint(Net(), path)):
        with pytest.raises(CheckpointError, match=said):
            reads(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name, said in [("fifo", "regular"), ("zero", "regular"), ("loop", "symbolic"), ("no\0ne", "null byte")]:
        for reads in (check_checkpoint_file, checkpoint_digest, lambda path: load_checkpoint(Net(), path)):
            with pytest.raises(CheckpointError, match=said):
                reads(tmp_path / name)


def shards(folder, state, writer="safetensors", count=3):
    """The state dict in shards, as `save_pretrained` writes it; returns the index."""
    ending = "safetensors" if writer == "safetensors" else "bin"
    keys = list(state)
    names = {}
    for number in range(count):
        part = {key: state[key] for key in keys[number::count]}
        name = f"model-{number + 1:05}-of-{count:05}.{ending}"
        WRITERS[writer](part, folder / name)
        names |= dict.fromkeys(part, name)
    index = folder / f"model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}, indent=2))
    return index


@pytest.mark.parametrize("writer", WRITERS)
def test_shards_are_joined_and_all_hashed(net, tmp_path, writer):
    index = shards(tmp_path, {f"module.{k}": v for k, v in net.state_dict().items()}, writer)
    check_checkpoint_file(index)
    model = Net()
    load_checkpoint(model, index)
    assert same(model, net)
    before = checkpoint_digest(index)
    shard = sorted(tmp_path.glob("model-00002*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    assert checkpoint_digest(index) != before


def test_a_shard_alone_is_refused_with_the_index(net, tmp_path):
    shards(tmp_path, net.state_dict())
    with pytest.raises(CheckpointError, match=r"name the \.index\.json"):
        load_checkpoint(Net(), tmp_path / "model-00001-of-00003.safetensors")


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "..", "", "a/b", "a\\b", "a\0b", "a\nb"])
def test_a_shard_outside_its_folder_is_refused(net, tmp_path, name):
    (tmp_path / "model").mkdir()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(net.state_dict(), name)}))
    for reads in (check_checkpoint_file, checkpoint_digest, lambda path: load_checkpoint(Net(), path)):
        with pytest.raises(CheckpointError, match="outside its folder"):
            reads(index)


def test_shards_that_do_not_fit_their_index_are_refused(net, tmp_path):
    index = shards(tmp_path, net.state_dict())
    second = tmp_path / "model-00002-of-00003.safetensors"
    kept = second.read_bytes()
    save_file({"other": torch.zeros(1)}, second)
    with pytest.raises(CheckpointError, match="does not fit the index"):
        load_checkpoint(Net(), index)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"there is no model-00002-of-00003\.safetensors"):
        check_checkpoint_file(index)
    second.symlink_to(index.name)
    with pytest.raises(CheckpointError, match="lists it as a shard"):
        check_checkpoint_file(index)
    second.unlink()
    os.mkfifo(second)
    with pytest.raises(CheckpointError, match="not a regular file"):
        check_checkpoint_file(index)
    second.unlink()
    second.write_bytes(kept)
    load_checkpoint(Net(), index)


@pytest.mark.parametrize("way", ["replaced", "written"])
def test_a_file_that_changes_while_it_is_read_is_refused(net, tmp_path, way):
    path, other = tmp_path / "w.safetensors", tmp_path / "other.safetensors"
    save_file(net.state_dict(), path)
    save_file(trained(Net(), 2).state_dict(), other)
    digest = checkpoint_digest(path)

    def read():
        with opened_checkpoint(path, digest=digest) as content:
            assert content.keys() == net.state_dict().keys()
            if way == "replaced":
                other.replace(path)
            else:
                path.write_bytes(other.read_bytes())

    with pytest.raises(CheckpointError, match="changed while it was read"):
        read()
    with pytest.raises(CheckpointError, match="not those that were hashed"):
        load_checkpoint(Net(), path, digest=digest)


def test_the_weights_that_are_loaded_are_those_that_were_fingerprinted(tmp_path):
    import timm

    path = tmp_path / "w.pth"
    torch.save(timm.create_model("resnet10t", num_classes=2).state_dict(), path)
    options = SourceOptions(source="timm/resnet10t", checkpoint=str(path), model_args=(("num_classes", "2"),))
    source = resolve(options.source)
    fingerprint = source.fingerprint(options)
    assert source.load(options).facts == fingerprint
    torch.save(timm.create_model("resnet10t", num_classes=2).state_dict(), path)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        source.load(options)
