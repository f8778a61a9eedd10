"""Which weights of a file are loaded: averaged ones first, and none where it is not clear."""

import argparse
import copy

import pytest
import torch
from torch import nn

from checkpoint_nets import Net, same, trained
from trtship.errors import CheckpointError
from trtship.sources.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def plain():
    return trained(Net(), 1)


@pytest.fixture(scope="module")
def mean():
    return trained(Net(), 2)


def load(tmp_path, content, model=None):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    model = model or trained(Net(), 9)
    return model, load_checkpoint(model, path)


def test_timm_itself_chooses_the_same(plain, mean, tmp_path):
    from timm.models import load_state_dict

    content = {"state_dict": plain.state_dict(), "state_dict_ema": mean.state_dict(), "args": argparse.Namespace(lr=1)}
    model, notes = load(tmp_path, content)
    theirs = Net()
    theirs.load_state_dict(load_state_dict(str(tmp_path / "w.pth")))
    assert same(model, theirs)
    assert same(model, mean)
    assert "averaged weights under 'state_dict_ema', not those under 'state_dict'" in notes[0]
    assert "torch.save(torch.load('w.pth', weights_only=True)['state_dict'], 'chosen.pth')" in notes[0]


AVERAGES = {
    "model_ema": lambda p, m: {"model": p, "model_ema": m},
    "ema, a state dict": lambda p, m: {"model": p, "ema": m, "optimizer": {"state": {0: {"exp_avg": p["a.bias"]}}}},
    "ema.module": lambda p, m: {"model": p, "ema": {"module": m, "updates": 9}},
    "ema_model": lambda p, m: {"model": p, "ema_model": m},
    "ema_state_dict": lambda p, m: {"state_dict": p, "ema_state_dict": m},
    "params_ema": lambda p, m: {"params": p, "params_ema": m},
    "modelEMA": lambda p, m: {"net": p, "modelEMA": {f"module.{k}": v for k, v in m.items()}},
    "a decay in the name": lambda p, m: {"weights": p, "ema_0.9999": m},
    "swa": lambda p, m: {"network": p, "swa_state_dict": m},
    "mmengine": lambda p, m: {
        "state_dict": p,
        "ema_state_dict": {"steps": torch.tensor(3), **{f"module.{k}": v for k, v in m.items()}},
    },
    "ema_pytorch, flat": lambda p, m: {
        **{f"online_model.{k}": v for k, v in p.items()},
        **{f"ema_model.{k}": v for k, v in m.items()},
        "initted": torch.tensor(True),
        "step": torch.tensor(7),
    },
    "Lightning, flat": lambda p, m: {
        "state_dict": {**{f"model.{k}": v for k, v in p.items()}, **{f"model_ema.{k}": v for k, v in m.items()}}
    },
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_averaged_weights_are_taken_and_said(plain, mean, tmp_path, kind):
    model, notes = load(tmp_path, AVERAGES[kind](plain.state_dict(), mean.state_dict()))
    assert same(model, mean)
    assert "averaged weights" in notes[0]
    assert "not those under" in notes[0]


def test_an_averaged_model_of_torch_loses_its_counter(mean, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(mean)
    model, notes = load(tmp_path, averaged.state_dict())
    assert same(model, mean)
    assert any("n_averaged" in note for note in notes)


PLAIN = {
    "itself": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3},
    "net": lambda s: {"net": s},
    "DeepSpeed": lambda s: {"module": s, "global_steps": 3, "ema_decay": 0.9},
    "a name of one's own": lambda s: {"best weights": s, "schema": {"a": 1}},
    "twice the same": lambda s: {"model": s, "state_dict": copy.deepcopy(s)},
    "an optimizer by name": lambda s: {"model": s, "optimizer": {"exp_avg": {k: v * 0 for k, v in s.items()}}},
    "Lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "loops": {}, "callbacks": {}},
    "an attribute of a LightningModule": lambda s: {"state_dict": {f"detector.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("kind", PLAIN)
def test_the_only_state_dict_that_fits_is_taken(plain, tmp_path, kind):
    assert same(load(tmp_path, PLAIN[kind](plain.state_dict()))[0], plain)


UNCLEAR = {
    "student and teacher": lambda p, m: {"student": p, "teacher": m},
    "two averages": lambda p, m: {"ema_0.99": p, "ema_0.999": m},
    "two in one mapping": lambda p, m: {
        **{f"student.{k}": v for k, v in p.items()},
        **{f"teacher.{k}": v for k, v in m.items()},
    },
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_two_that_fit_are_an_error_that_lists_them(plain, mean, tmp_path, kind):
    before = trained(Net(), 9)
    model = copy.deepcopy(before)
    with pytest.raises(CheckpointError, match=r"2 state dicts in .* fit the model") as caught:
        load(tmp_path, UNCLEAR[kind](plain.state_dict(), mean.state_dict()), model)
    assert "different weights" in caught.value.why
    assert same(model, before)


def test_the_remedy_that_an_error_names_works(plain, mean, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = {f"student.{k}": v for k, v in plain.state_dict().items()}
    both |= {f"teacher.{k}": v for k, v in mean.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, {"model": both})
    exec(caught.value.do.partition("for example ")[2], {"torch": torch})
    model = Net()
    load_checkpoint(model, tmp_path / "chosen.pth")
    assert same(model, plain)


def test_an_average_that_nearly_fits_is_not_passed_over(plain, mean, tmp_path):
    parameters = {key: value for key, value in mean.state_dict().items() if "running" not in key}
    with pytest.raises(CheckpointError, match=r"averaged weights in .* do not fit") as caught:
        load(tmp_path, {"model": plain.state_dict(), "ema": parameters})
    assert "bn.running_mean" in caught.value.why


def test_an_average_without_names_is_not_passed_over(plain, mean, tmp_path):
    shadow = {"decay": 0.9, "num_updates": 3, "shadow_params": [p.detach() for p in mean.parameters()]}
    with pytest.raises(CheckpointError, match=r"'ema\.shadow_params' is a list of 14 tensors"):
        load(tmp_path, {"model": plain.state_dict(), "ema": shadow})
    other = {"model": plain.state_dict(), "ema": {"decay": 0.9, "losses": [torch.zeros(())]}}
    assert same(load(tmp_path, other)[0], plain)


def test_what_is_left_over_beside_a_model_is_named(plain, tmp_path):
    state = {f"model.{k}": v for k, v in plain.state_dict().items()} | {"criterion.weight": torch.ones(5)}
    with pytest.raises(CheckpointError, match=r"criterion\.weight"):
        load(tmp_path, {"state_dict": state})


def test_an_error_lists_the_state_dicts_that_do_not_fit(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, {"generator": nn.Linear(2, 2).state_dict(), "discriminator": nn.Linear(3, 1).state_dict()})
    assert "'generator'" in caught.value.why
    assert "'discriminator'" in caught.value.why
