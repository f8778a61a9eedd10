from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from trtship.errors import CheckpointError
from trtship.sources.checkpoint import load_checkpoint

SMALL = {
    "img_size": 28,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (1, 2),
    "num_heads": (1, 2),
    "window_size": 7,
    "num_classes": 4,
}


def swin():
    return timm.create_model("swin_tiny_patch4_window7_224", **SMALL)


def same(first, second):
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(7)
    return swin()


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
def test_every_kind_of_file_gives_back_its_weights(trained, tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(trained.state_dict(), path)
    model = swin()
    assert not same(trained, model)
    assert load_checkpoint(model, path) == []
    assert same(trained, model)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: {"state_dict": s, "epoch": 3}, ["'state_dict'"]),
        (lambda s: {"model": s, "optimizer": {"lr": 0.1}}, ["'model'"]),
        (lambda s: {"model": {}, "model_ema": s}, ["averaged weights under 'model_ema'"]),
        (lambda s: {"state_dict": {"model": s}}, ["under 'state_dict.model'"]),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, ["removed 'module.' from every key"]),
        (
            lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
            ["under 'model'", "removed 'module._orig_mod.' from every key"],
        ),
        (lambda s: {k: v.half() for k, v in s.items()}, ["cast float16 to float32"]),
    ],
)
def test_wrappings_are_taken_off_and_said(trained, tmp_path, wrap, said):
    path = tmp_path / "w.pth"
    torch.save(wrap(trained.state_dict()), path)
    model = swin()
    notes = load_checkpoint(model, path)
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=2**-10, atol=2**-24)


def test_buffers_that_repeat_the_models_own_are_dropped_and_said(trained, tmp_path):
    buffers = {k: v for k, v in trained.named_buffers() if v is not None and k not in trained.state_dict()}
    assert any("relative_position_index" in key for key in buffers)
    save_file({k: v.contiguous() for k, v in (trained.state_dict() | buffers).items()}, tmp_path / "w.safetensors")
    model = swin()
    (note,) = load_checkpoint(model, tmp_path / "w.safetensors")
    assert f"dropped {len(buffers)} buffers" in note
    assert same(trained, model)


def test_buffers_that_differ_from_the_models_own_are_refused(trained, tmp_path):
    key = next(k for k, _ in trained.named_buffers() if "relative_position_index" in k)
    save_file(trained.state_dict() | {key: trained.get_buffer(key) + 1}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=f"1 unknown to the model: {key}"):
        load_checkpoint(swin(), tmp_path / "w.safetensors")


def test_keys_that_do_not_fit_are_listed_ten_and_counted(trained, tmp_path):
    state = trained.state_dict()
    gone = list(state)[:12]
    kept = {k: v for k, v in state.items() if k not in gone}
    kept["head.fc.weight"] = torch.zeros(5, 16)
    kept["head.fc.bias"] = torch.zeros(4, dtype=torch.int64)
    save_file(kept | {f"extra.{i}": torch.zeros(1) for i in range(11)}, tmp_path / "w.safetensors")
    before = swin()
    model = swin()
    model.load_state_dict(before.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, tmp_path / "w.safetensors")
    why = caught.value.why
    assert "12 missing from the file: " + ", ".join(gone[:10]) + " and 2 more" in why
    assert "11 unknown to the model: extra.0" in why
    assert "and 1 more" in why
    assert "head.fc.weight (file float32 [5, 16], model float32 [4, 16])" in why
    assert "head.fc.bias (file int64 [4], model float32 [4])" in why
    assert same(before, model)


def test_another_architecture_is_refused(tmp_path):
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="missing from the file"):
        load_checkpoint(swin(), tmp_path / "w.safetensors")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


@pytest.mark.parametrize(
    "content", [{"args": Path("a"), "model": {}}, Trap(), {"model": Trap()}, torch.nn.Linear(2, 2)]
)
def test_what_needs_pickle_is_refused_and_not_run(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="refused to unpickle") as caught:
        load_checkpoint(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    assert "safetensors" in caught.value.do


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_checkpoint(torch.nn.Linear(2, 2), tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b"not a checkpoint", lambda b: b[: len(b) // 2], lambda b: b[:20]]
)
def test_damaged_files_are_refused(trained, tmp_path, suffix, damage):
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(trained.state_dict(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(torch.nn.Linear(2, 2), path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"a": torch.zeros(1), "b": 1}, torch.zeros(3)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_checkpoint(torch.nn.Linear(2, 2), tmp_path / "w.pth")
