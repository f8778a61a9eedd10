"""transformers: the class that config.json names or --task means, with all of its weights and its outputs."""

import json

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from trtship.errors import CheckpointError, SourceError, SpecError, UserError
from trtship.sources import SourceOptions, resolve
from trtship.spec import TensorSpec

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
SEGFORMER = {
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1] * 4,
    "num_attention_heads": [1, 2, 2, 2],
    "decoder_hidden_size": 16,
    "num_labels": 4,
    "image_size": 64,
}
YOLOS = VIT | {"image_size": [64, 64], "num_detection_tokens": 5, "num_labels": 3}
DPT = VIT | {
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "is_hybrid": False,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "num_labels": 3}

CLASSES = {
    "SegformerForSemanticSegmentation": (t.SegformerConfig, SEGFORMER, {"logits": (4, 16, 16)}),
    "SegformerForImageClassification": (t.SegformerConfig, SEGFORMER, {"logits": (4,)}),
    "YolosForObjectDetection": (
        t.YolosConfig,
        YOLOS,
        {"logits": (5, 4), "pred_boxes": (5, 4), "last_hidden_state": (70, 16)},
    ),
    "ViTForImageClassification": (t.ViTConfig, VIT | {"num_labels": 3}, {"logits": (3,)}),
    "ViTModel": (t.ViTConfig, VIT, {"last_hidden_state": (17, 16), "pooler_output": (16,)}),
    "DPTForDepthEstimation": (t.DPTConfig, DPT, {"predicted_depth": (64, 64)}),
    "DPTForSemanticSegmentation": (t.DPTConfig, DPT | {"num_labels": 3}, None),
    "CLIPVisionModelWithProjection": (
        t.CLIPVisionConfig,
        VIT | {"projection_dim": 8},
        {"image_embeds": (8,), "last_hidden_state": (17, 16)},
    ),
    "ConvNextForImageClassification": (
        t.ConvNextConfig,
        {"hidden_sizes": [4] * 4, "depths": [1] * 4, "image_size": 32, "num_labels": 3},
        {"logits": (3,)},
    ),
    "SwinBackbone": (t.SwinConfig, SWIN, None),
    "SwinModel": (t.SwinConfig, SWIN, {"last_hidden_state": (64, 16), "pooler_output": (16,)}),
    "ResNetForImageClassification": (t.ResNetConfig, RESNET, {"logits": (3,)}),
}


def make(name, folder):
    config, arguments, _ = CLASSES[name]
    torch.manual_seed(3)
    model = getattr(t, name)(config(**arguments)).eval()
    model.save_pretrained(folder)
    return model


def load(folder, *inputs, **options):
    options = SourceOptions(
        source=f"transformers/{folder}", inputs=tuple(TensorSpec.parse(text) for text in inputs), **options
    )
    source = resolve(options.source)
    source.check(options)
    return source.load(options)


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def flat(output):
    values = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [x for value in values for x in (flat(value) if isinstance(value, tuple) else [value])]


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_is_of_the_class_that_its_config_names(tmp_path, name):
    original = make(name, tmp_path)
    inputs = [] if name != "ResNetForImageClassification" else ["pixels=Bx3x32x32"]
    model = load(tmp_path, *inputs)
    shape = model.inputs[0].shape[1:]
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    got = model.module(x)
    got = [got] if isinstance(got, torch.Tensor) else list(got)
    want = flat(original(x))
    assert len(got) == len(want) == len(model.outputs)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)
    outputs = CLASSES[name][2]
    if outputs is not None:
        assert {out: tuple(value.shape[1:]) for out, value in zip(model.outputs, got, strict=True)} == outputs
    (tmp_path / "model.safetensors").unlink()
    random = load(tmp_path, *inputs, random_weights=True)
    assert type(random.module.module) is type(model.module.module) is getattr(t, name)
    assert random.outputs == model.outputs


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("SegformerForSemanticSegmentation", "semantic-segmentation"),
        ("YolosForObjectDetection", "object-detection"),
        ("ViTModel", "feature-extraction"),
        ("DPTForDepthEstimation", "depth-estimation"),
        ("SwinBackbone", "backbone"),
    ],
)
def test_a_task_stands_in_for_a_config_that_names_no_class(tmp_path, name, task):
    make(name, tmp_path)
    change_config(tmp_path, architectures=None)
    with pytest.raises(SourceError, match=r"the class of .* is not known") as caught:
        load(tmp_path)
    assert task in caught.value.do
    model = load(tmp_path, task=task)
    assert type(model.module.module).__name__ == name
    assert model.facts["task"] == task


def test_a_config_with_one_class_only_needs_no_task(tmp_path):
    t.CLIPVisionModel(t.CLIPVisionConfig(**VIT)).save_pretrained(tmp_path)
    change_config(tmp_path, architectures=None)
    assert load(tmp_path).outputs == ("last_hidden_state", "pooler_output")
    make("CLIPVisionModelWithProjection", tmp_path)
    change_config(tmp_path, architectures=None)
    with pytest.raises(CheckpointError, match=r"unknown to the model: visual_projection\.weight"):
        load(tmp_path)


def test_a_task_that_the_type_of_model_has_no_class_for_is_refused(tmp_path):
    make("YolosForObjectDetection", tmp_path)
    with pytest.raises(SpecError, match="object-detection, feature-extraction"):
        load(tmp_path, task="depth-estimation")
    with pytest.raises(SpecError, match="for example --task object-detection"):
        load(tmp_path, task="object-detect")
    with pytest.raises(SpecError, match="--task does not apply to timm/resnet18"):
        resolve("timm/resnet18").check(SourceOptions(source="timm/resnet18", random_weights=True, task="backbone"))


@pytest.mark.parametrize("name", ["SegformerForSemanticSegmentation", "YolosForObjectDetection"])
def test_a_head_is_never_dropped(tmp_path, name):
    make(name, tmp_path)
    with pytest.raises(CheckpointError, match="unknown to the model") as caught:
        load(tmp_path, task="feature-extraction")
    assert "save_pretrained" in caught.value.do


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("SegformerForSemanticSegmentation", "SegformerForImageClassification"),
        ("ViTModel", "ViTForImageClassification"),
    ],
)
def test_a_head_is_never_made_up(tmp_path, name, other):
    make(name, tmp_path)
    change_config(tmp_path, architectures=[other])
    with pytest.raises(CheckpointError, match=r"missing from the weights: classifier\.bias"):
        load(tmp_path)


def test_a_pooler_that_the_weights_lack_is_not_made_up(tmp_path):
    t.ViTModel(t.ViTConfig(**VIT), add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing from the weights: pooler\.dense\.bias"):
        load(tmp_path)


def test_counters_of_batches_may_be_missing(tmp_path):
    original = make("ResNetForImageClassification", tmp_path)
    state = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "num_batches" not in k}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(load(tmp_path, "x=Bx3x32x32").module(x), original(x).logits)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["NoSuchModel"], "no model class 'NoSuchModel'"),
        (["ViTConfig"], "no model class 'ViTConfig'"),
        (["AutoModel"], "no model class 'AutoModel'"),
        (["pipeline"], "no model class 'pipeline'"),
        (["../x"], "no model class"),
        (["SwinForImageClassification"], "contradicts itself"),
        (["ViTForImageClassification", "ViTModel"], "ViTForImageClassification, ViTModel"),
        ([], "names none"),
    ],
)
def test_a_config_that_names_no_class_of_its_type_is_refused(tmp_path, named, said):
    make("ViTForImageClassification", tmp_path)
    change_config(tmp_path, architectures=named)
    with pytest.raises(SourceError, match=said) as caught:
        load(tmp_path)
    assert caught.value.do
    assert load(tmp_path, task="image-classification").outputs == ("logits",)


def test_quantized_weights_are_refused(tmp_path):
    make("ViTModel", tmp_path)
    change_config(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(SourceError, match="quantized weights"):
        load(tmp_path)


def test_shards_are_loaded_and_kept_inside_the_folder(tmp_path):
    original = make("ViTModel", tmp_path / "other")
    original.save_pretrained(tmp_path / "model", max_shard_size="5KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(load(tmp_path / "model").module(x)[0], original(x).last_hidden_state)
    weight_map = json.loads(index.read_text())["weight_map"]
    assert len(set(weight_map.values())) > 1
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, "../other/model.safetensors")}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(tmp_path / "model")


def test_a_checkpoint_is_loaded_into_the_class_too(tmp_path):
    original = make("SegformerForSemanticSegmentation", tmp_path)
    state = {f"module.{key}": value for key, value in original.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "w.ckpt")
    model = load(tmp_path, checkpoint=str(tmp_path / "w.ckpt"))
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model.module(x), original(x).logits)


def test_a_training_file_is_no_weights(tmp_path):
    make("ViTModel", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter.bin")
    with pytest.raises(SourceError, match="no weights"):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["cyclic", "nested", "meta", "sparse", "quantized", "bytes", "expanded", "a list", "a program", "empty"]
)
def test_a_folder_with_hostile_weights_is_refused(tmp_path, kind):
    state = dict(make("ViTForImageClassification", tmp_path).state_dict())
    (tmp_path / "model.safetensors").unlink()
    cyclic = {}
    cyclic["model"] = cyclic
    bias = "classifier.bias"
    content = {
        "cyclic": lambda: cyclic,
        "nested": lambda: {"model": {"state_dict": state}},
        "meta": lambda: state | {bias: torch.zeros(3, device="meta")},
        "sparse": lambda: state | {bias: torch.zeros(3).to_sparse()},
        "quantized": lambda: state | {bias: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)},
        "bytes": lambda: {key.encode(): value for key, value in state.items()},
        "expanded": lambda: state | {bias: torch.zeros(1).expand(2**40)},
        "a list": lambda: list(state.values()),
        "a program": lambda: torch.nn.Linear(1, 1),
        "empty": dict,
    }[kind]()
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError):
        load(tmp_path)
