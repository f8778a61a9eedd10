"""Outputs: every tensor has a name of its own, and what is no tensor is told."""

import torch

from trtship.progress import Progress
from trtship.sources.finish import finish
from trtship.sources.outputs import named_tensors
from trtship.spec import TensorSpec


def test_two_tensors_with_one_name_are_both_kept():
    result = {"a": (torch.zeros(1), torch.zeros(2)), "a_0": torch.zeros(3), "a_1": None}
    assert {name: len(value) for name, value in named_tensors(result).items()} == {"a_0": 1, "a_1": 2, "a_0_2": 3}


def test_what_is_no_tensor_is_said():
    class Cache:
        pass

    class Model(torch.nn.Module):
        def forward(self, image):
            return {"logits": image, "loss": 0.5, "past": [Cache(), image], "none": None}

    spec = TensorSpec.parse("image=Bx4")
    model = finish("m", Model(), (spec,), progress=Progress())
    assert model.outputs == ("logits", "past_1")
    assert model.notes == (
        "outputs: loss (float) is no tensor, and left out",
        "outputs: past_0 (Cache) is no tensor, and left out",
    )
