"""Hostile checkpoints: refused with a CheckpointError, in little time and memory, the model as it was."""

import copy
import pickle
import random
import resource
import time
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from checkpoint_nets import Net, same, trained
from trtship.errors import CheckpointError
from trtship.sources.checkpoint import load_checkpoint

SECONDS = 10
MEBIBYTES = 300


@pytest.fixture(scope="module")
def net():
    return trained(Net(), 1)


def nested(depth, inner):
    for _ in range(depth):
        inner = {"model": inner}
    return inner


def cyclic(**more):
    state = dict(more)
    state["state_dict"] = state
    return state


def shared(depth):
    """2 ** depth paths to one mapping."""
    inner = {"epoch": 1}
    for _ in range(depth):
        inner = {"model": inner, "ema": inner, "net": inner}
    return inner


def linked():
    one, two = {}, {}
    one["model"], two["model"] = two, one
    return one


def expanded(*shape):
    return torch.zeros(1).expand(*shape)


TREES = {
    "holds itself": lambda s: cyclic(),
    "holds itself, beside others": lambda s: cyclic(epoch=3, optimizer={}),
    "two hold each other": lambda s: linked(),
    "a list that holds itself": lambda s: {"model": (x := [1], x.append(x))[0]},
    "200 deep": lambda s: nested(200, s),
    "in 3 ** 60 paths": lambda s: shared(60),
    "keys are numbers": lambda s: dict(enumerate(s.values())),
    "keys are bytes": lambda s: {k.encode(): v for k, v in s.items()},
    "keys are tuples": lambda s: {"model": {(k,): v for k, v in s.items()}},
    "a key is None": lambda s: s | {None: torch.zeros(1)},
    "a key is a long text": lambda s: s | {"a." * 10**6: torch.zeros(1)},
    "keys with control characters": lambda s: s | {"\x1b[2J\x1b]0;title\x07": torch.zeros(1), "\ud800": torch.zeros(1)},
    "2,000 keys": lambda s: {f"model.{k}.{i}": torch.zeros(()) for i in range(400) for k in "abcde"},
    "a meta tensor": lambda s: s | {"head.bias": torch.zeros(5, device="meta")},
    "a quantized tensor": lambda s: s | {"head.bias": torch.quantize_per_tensor(torch.zeros(5), 1.0, 0, torch.qint8)},
    "a nested tensor": lambda s: s | {"head.bias": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])},
    "a sparse tensor of another shape": lambda s: s | {"head.bias": torch.sparse_coo_tensor(size=(2**40, 2**20))},
    "a tensor of 2 ** 60 elements": lambda s: s | {"head.bias": expanded(2**30, 2**30)},
    "an unknown tensor of 2 ** 40 elements": lambda s: s | {"other": expanded(2**20, 2**20)},
    "a computed buffer of 2 ** 40 elements": lambda s: s | {"computed": expanded(2**20, 2**20)},
    "n_averaged of 2 ** 40 elements": lambda s: s | {"n_averaged": expanded(2**20, 2**20)},
    "an average of 2 ** 40 elements": lambda s: {"model": s, "ema": {k: expanded(2**20, 2**20) for k in s}},
    "an empty tensor": lambda s: s | {"head.bias": torch.zeros(0)},
    "only empty tensors": lambda s: {k: torch.zeros(0) for k in s},
    "a scalar": lambda s: s | {"head.bias": torch.zeros(())},
    "no tensors": lambda s: {"state_dict": dict.fromkeys(s, 1)},
    "nothing": lambda s: None,
    "a text": lambda s: "state_dict",
    "bytes": lambda s: b"state_dict",
    "a set": lambda s: {1, 2},
    "an integer of 1000 digits": lambda s: {"epoch": 10**1000},
}


def refused(path):
    """The error, with the limits held and the model as it was."""
    before = trained(Net(), 9)
    model = copy.deepcopy(before)
    peak, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    assert time.monotonic() - begun < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEBIBYTES * 1024
    assert same(model, before)
    assert len(str(caught.value)) < 5000
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    return caught.value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_tree_is_refused(net, tmp_path, kind, legacy):
    try:
        torch.save(TREES[kind](net.state_dict()), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    except RuntimeError:
        pytest.skip("torch does not write it in its old format")
    refused(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_a_sparse_tensor_is_made_dense(net, tmp_path, layout):
    weight = net.head.weight.detach() * (net.head.weight > 0)
    sparse = {"coo": weight.to_sparse, "csr": weight.to_sparse_csr, "csc": weight.to_sparse_csc}[layout]()
    torch.save(net.state_dict() | {"head.weight": sparse}, tmp_path / "w.pth")
    model = Net()
    load_checkpoint(model, tmp_path / "w.pth")
    assert torch.equal(model.head.weight, weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", [9, -1])
def test_sparse_indices_outside_the_shape_are_refused(net, tmp_path, value):
    torch.sparse.check_sparse_tensor_invariants.disable()
    bad = torch.sparse_coo_tensor(torch.tensor([[value]]), torch.ones(1), (5,), check_invariants=False)
    torch.save(net.state_dict() | {"head.bias": bad}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
def test_views_and_lazy_signs_are_resolved(net, tmp_path):
    state = net.state_dict()
    state["head.bias"] = torch._neg_view(-net.head.bias.detach())
    state["a.weight"] = net.a.weight.detach().T.contiguous().T
    state["stem.bias"] = torch.zeros(1).expand(8)
    torch.save(state, tmp_path / "w.pth")
    model = Net()
    load_checkpoint(model, tmp_path / "w.pth")
    assert torch.equal(model.head.bias, net.head.bias)
    assert torch.equal(model.a.weight, net.a.weight)
    assert torch.equal(model.stem.bias, torch.zeros(8))


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        Call(bytearray, 2**36),
        {"model": Call(bytearray, 2**36)},
        Call(pytest.fail, "it was run"),
        {"model": {"head.bias": Call(eval, "1")}},
        Call(torch.hub.load, "a/b", "c"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_calls_are_not_made(tmp_path, content, legacy):
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert "more than tensors" in refused(tmp_path / "w.pth").why


def test_a_compressed_archive_is_not_unpacked(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(tmp_path / "z.pth", "w") as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry), zipfile.ZIP_DEFLATED)
        new.writestr("w/data/99", bytes(2**26), zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(tmp_path / "z.pth").why


def stored_pickle(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        archive.writestr("w/version", "3\n")
        archive.writestr("w/byteorder", "little")


def containers(inner):
    keys = st.text(max_size=5) | st.integers()
    return st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), containers, max_leaves=20))
@settings(max_examples=40, deadline=None)
def test_any_tree_without_tensors_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("w") / "w.pth"
    stored_pickle(path, pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError):
        load_checkpoint(Net(), path)


def doubling(depth):
    """A pickle of a dict whose key is a tuple of 2 ** depth others: () held twice, and that twice."""
    twice = b"".join(b"q\x00h\x00\x86" for _ in range(depth))
    return b"\x80\x02})" + twice + b"K\x01s."


def test_a_key_that_takes_for_ever_to_hash_is_refused(tmp_path):
    assert pickle.loads(doubling(3)) == {((((),) * 2,) * 2,) * 2: 1}
    stored_pickle(tmp_path / "w.pth", doubling(60))
    assert "tuples nested" in refused(tmp_path / "w.pth").why
    stored_pickle(tmp_path / "w.pth", doubling(3))
    assert "tuples nested" not in refused(tmp_path / "w.pth").why


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors"])
def test_damage_anywhere_is_refused_or_harmless(net, tmp_path, kind):
    path = tmp_path / "w"
    state = net.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    whole = path.read_bytes()
    chance = random.Random(5)
    loaded = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3, 20))):
            data[chance.randrange(len(data) if chance.random() < 0.5 else min(2000, len(data)))] = chance.randrange(256)
        path.write_bytes(data if chance.random() < 0.8 else data[: chance.randrange(len(data))])
        model = Net()
        try:
            load_checkpoint(model, path)
            loaded += 1
        except CheckpointError as error:
            assert error.why  # noqa: PT017
    assert loaded < 300
