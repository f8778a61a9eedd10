"""Keys and dtypes: prefixes are removed where the keys then fit, and every tensor has its place."""

import itertools

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from checkpoint_nets import Net, Wrap, same, trained
from trtship.errors import CheckpointError
from trtship.sources.checkpoint import load_checkpoint


def load(tmp_path, state, model=None):
    torch.save(state, tmp_path / "w.ckpt")
    model = model or trained(Net(), 9)
    return model, load_checkpoint(model, tmp_path / "w.ckpt")


@pytest.fixture(scope="module")
def net():
    return trained(Net(), 1)


PREFIXES = [
    "".join(order)
    for count in (1, 2, 3)
    for order in itertools.permutations(("module.", "_orig_mod.", "model."), count)
] + ["module.module.", "_orig_mod._orig_mod.module.", "net.", "net.module.", "_forward_module.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_every_key_are_removed(net, tmp_path, prefix):
    model, notes = load(tmp_path, {prefix + key: value for key, value in net.state_dict().items()})
    assert same(model, net)
    assert notes == [f"checkpoint: removed '{prefix}' from every key"]


def inside(key):
    """Keys as they are where `a` and the second of `layers` are wrapped."""
    key = key.replace("a.", "a._orig_mod.", 1) if key.startswith("a.") else key
    return key.replace("layers.2.", "layers.2.module.", 1)


@pytest.mark.parametrize("prefix", ["", "module.", "net._orig_mod."])
def test_names_of_wrappers_inside_keys_are_removed(net, tmp_path, prefix):
    model, notes = load(tmp_path, {prefix + inside(key): value for key, value in net.state_dict().items()})
    assert same(model, net)
    assert "inside keys" in notes[0]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.module."])
def test_a_model_with_attributes_named_module_and_model_keeps_its_keys(tmp_path, prefix):
    wrap = trained(Wrap(), 3)
    model, _ = load(tmp_path, {prefix + key: value for key, value in wrap.state_dict().items()}, Wrap())
    assert same(model, wrap)


def test_a_compiled_model_takes_the_keys_of_the_plain_one(net, tmp_path):
    compiled = torch.compile(Net())
    torch.save(net.state_dict(), tmp_path / "w.ckpt")
    load_checkpoint(compiled, tmp_path / "w.ckpt")
    assert same(compiled._orig_mod, net)


def test_keys_that_lose_their_difference_are_refused(tmp_path):
    """Without `module`, both keys would be one: no tensor wins over the other."""
    model = nn.Module()
    model.a = nn.Linear(2, 2, bias=False)
    state = {"module.a.weight": torch.ones(2, 2), "a.module.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="2 state dicts"):
        load(tmp_path, state, model)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_batch_norms_need_no_counters(net, tmp_path, prefix):
    state = {prefix + key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    model, notes = load(tmp_path, state)
    assert same(model, net)
    assert any("without 1 num_batches_tracked" in note for note in notes)


def test_a_running_mean_may_not_be_missing(net, tmp_path):
    state = {key: value for key, value in net.state_dict().items() if "running_mean" not in key}
    with pytest.raises(CheckpointError, match=r"1 missing from the file: bn\.running_mean"):
        load(tmp_path, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("batches", [7, 2049, 10**6])
def test_a_state_dict_cast_as_a_whole_fits(tmp_path, dtype, batches):
    net = trained(Net(), 1)
    net.bn.num_batches_tracked.fill_(batches)
    model, notes = load(tmp_path, {key: value.to(dtype) for key, value in net.state_dict().items()})
    for key, value in net.state_dict().items():
        if "num_batches" not in key:
            expected = value if key == "table" else value.to(dtype).to(value.dtype)
            assert torch.equal(model.state_dict()[key], expected), key
    assert any(f"cast {str(dtype)[6:]} to float32" in note for note in notes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("table", torch.tensor([0.0, 3, 6, 9.5, 12])),  # no integer
        ("table", torch.tensor([0.0, 3, 6, 9, 4000]).half()),  # half has not every integer as large
        ("table", torch.tensor([0.0, 3, 6, 9, float("nan")])),
        ("table", torch.tensor([0, 3, 6, 9, 2**40])),  # fits the file's int64, checked below against int16
        ("head.bias", torch.zeros(5, dtype=torch.int8)),  # a quantized weight without its scale
        ("head.bias", torch.zeros(5, dtype=torch.complex64)),
        ("head.bias", torch.zeros(5).to(torch.float8_e4m3fn)),
        ("head.bias", torch.zeros(1, 5)),
    ],
)
def test_values_that_would_change_are_refused(net, tmp_path, key, value):
    model = trained(Net(), 9)
    model.table = model.table.to(torch.int16)
    with pytest.raises(CheckpointError, match=f"of another shape or kind: {key}"):
        load(tmp_path, net.state_dict() | {key: value}, model)


def test_a_table_of_another_integer_dtype_is_converted(net, tmp_path):
    model, notes = load(tmp_path, net.state_dict() | {"table": torch.arange(5).to(torch.uint8)})
    assert model.table.tolist() == [0, 1, 2, 3, 4]
    assert "cast uint8 to int64" in notes[0]


def test_tied_weights_that_safetensors_leaves_out_are_filled(tmp_path):
    tied = trained(Net(tie=True), 4)
    save_model(tied, tmp_path / "w.safetensors")
    model = Net(tie=True)
    (note,) = load_checkpoint(model, tmp_path / "w.safetensors")
    assert same(model, tied)
    assert model.a.weight is model.b.weight
    assert "ties them to" in note
    with pytest.raises(CheckpointError, match=r"1 missing from the file: b\.weight|a\.weight"):
        load_checkpoint(Net(), tmp_path / "w.safetensors")


def test_two_values_for_one_tied_weight_are_refused(net, tmp_path):
    with pytest.raises(CheckpointError, match=r"the model ties it to a\.weight"):
        load(tmp_path, net.state_dict(), Net(tie=True))


def test_extra_state_goes_to_the_module_that_wrote_it(tmp_path):
    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    first = nn.Sequential(Counting(2, 2))
    first[0].count = 5
    model, _ = load(tmp_path, {f"module.{k}": v for k, v in first.state_dict().items()}, nn.Sequential(Counting(2, 2)))
    assert model[0].count == 5
