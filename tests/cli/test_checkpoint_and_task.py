"""--checkpoint and --task through to the bundle: what was chosen is in its manifest."""

from __future__ import annotations

import json

import torch
import transformers
from cli_workplace import Workplace


def test_a_segmentation_model_is_deployed_with_its_head_and_its_averaged_weights(work: Workplace) -> None:
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 16, 16],
        depths=[1] * 4,
        num_attention_heads=[1, 2, 2, 2],
        decoder_hidden_size=16,
        num_labels=4,
        image_size=64,
    )
    torch.manual_seed(0)
    plain, mean = (transformers.SegformerForSemanticSegmentation(config) for _ in range(2))
    config.save_pretrained(work / "model")
    torch.save({"model": plain.state_dict(), "ema": {"module": mean.state_dict()}}, work / "blob")
    source = ("deploy", "transformers/./model", "--checkpoint", "blob", "--precision", "fp32", "--batch", "1:2:4")
    message = work.refuses(*source, "-o", "a.trtship")
    assert "--task image-classification or semantic-segmentation" in message
    message = work.refuses(*source, "--task", "segmentation", "-o", "a.trtship")
    assert "there is no task 'segmentation'" in message
    done = work.run(*source, "--task", "semantic-segmentation", "-o", "a.trtship")
    assert done.code == 0, done.err
    manifest = json.loads((work / "a.trtship" / "manifest.json").read_text())
    assert [output["name"] for output in manifest["outputs"]] == ["logits"]
    assert manifest["outputs"][0]["shape"] == ["B", 4, 16, 16]
    assert "averaged weights under 'ema.module', not those under 'model'" in manifest["source"]["notes"][0]
    assert manifest["source"]["options"]["task"] == "semantic-segmentation"
