"""timm, torchvision and transformers: small real models of each."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers.image_utils import load_image

from trtship.errors import CheckpointError, MachineError, SourceError, SpecError
from trtship.preprocess import preprocess_images
from trtship.progress import Progress
from trtship.sources import SourceOptions, parse_model_arg, resolve
from trtship.sources import timm as timm_source
from trtship.spec import TensorSpec

SWIN = ("embed_dim=16", "depths=[1,2]", "num_heads=[1,2]", "window_size=7", "patch_size=2", "num_classes=5")
V2 = ("embed_dim=16", "depths=[1,1]", "num_heads=[1,2]", "window_size=4", "num_classes=5")


def load(text, *args, inputs=(), **options):
    if not options.keys() & {"checkpoint", "pretrained", "random_weights"} and not text.startswith("transformers//"):
        options["random_weights"] = True
    options = SourceOptions(
        source=text,
        model_args=tuple(parse_model_arg(a) for a in args),
        inputs=tuple(TensorSpec.parse(i) for i in inputs),
        **options,
    )
    source = resolve(text)
    source.check(options)
    return source.load(options)


def assert_ready(model, shape, classes):
    assert [spec.shape for spec in model.inputs] == [("B", *shape)]
    assert model.outputs == ("logits",)
    assert not model.module.training
    assert {(p.dtype, p.device.type, p.requires_grad) for p in model.module.parameters()} == {
        (torch.float32, "cpu", False)
    }
    assert model.module(torch.zeros(3, *shape)).shape == (3, classes)


@pytest.mark.parametrize(
    ("text", "args", "shape", "classes"),
    [
        ("timm/swin_tiny_patch4_window7_224", (*SWIN, "img_size=28"), (3, 28, 28), 5),
        ("timm/swin_tiny_patch4_window7_224", (*SWIN, "img_size=[28,42]", "in_chans=1"), (1, 28, 42), 5),
        ("timm/swinv2_tiny_window8_256", (*V2, "img_size=32"), (3, 32, 32), 5),
        ("timm/convnext_atto", ("dims=[8,8,8,8]", "depths=[1,1,1,1]"), (3, 224, 224), 1000),
        ("torchvision/resnet18", ("num_classes=7",), (3, 224, 224), 7),
    ],
)
def test_a_model_is_ready_for_inference(text, args, shape, classes):
    model = load(text, *args)
    assert_ready(model, shape, classes)
    assert model.inputs[0].name == "input"
    assert model.preprocess.output_shape == shape
    assert model.labels is None
    assert model.notes == ()


def test_torchvision_swin_comes_with_its_presets_sizes():
    assert_ready(load("torchvision/swin_t"), (3, 224, 224), 1000)
    assert load("torchvision/swin_v2_t").preprocess.output_shape == (3, 256, 256)


def test_random_weights_depend_on_the_seed_alone_and_leave_the_random_state():
    state = torch.random.get_rng_state()
    first, same, other = (load("timm/convnext_atto", "dims=[8,8,8,8]", "depths=[1,1,1,1]", seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.fingerprint() == same.fingerprint()
    assert first.fingerprint()["weights"] != other.fingerprint()["weights"]
    assert first.fingerprint()["structure"] == other.fingerprint()["structure"]


def test_input_sets_the_name_the_size_and_the_channels_of_a_timm_model():
    model = load("timm/swin_tiny_patch4_window7_224", *SWIN, inputs=["picture=Bx1x42x42"])
    assert_ready(model, (1, 42, 42), 5)
    assert model.inputs[0].name == "picture"
    assert (model.preprocess.mode, model.preprocess.output_shape) == ("L", (1, 42, 42))


def test_input_sets_the_size_of_a_convolutional_net_and_its_preprocessing():
    assert load("torchvision/resnet18", inputs=["x=Bx3x64x96"]).preprocess.output_shape == (3, 64, 96)
    dynamic = load("timm/resnet10t", inputs=["x=Bx3xHxW"])
    assert dynamic.inputs[0].shape == ("B", 3, "H", "W")
    assert dynamic.preprocess.output_shape == (3, 176, 176)


@pytest.mark.parametrize(
    ("text", "args", "inputs"),
    [
        ("timm/swin_tiny_patch4_window7_224", (*SWIN, "img_size=28"), ["x=Bx3x42x42"]),
        ("timm/resnet10t", ("in_chans=1",), ["x=Bx3x64x64", "y=Bx3"]),
        ("timm/resnet10t", (), ["x=3x64x64"]),
        ("torchvision/resnet18", (), ["x=Bx1x64x64"]),
        ("torchvision/resnet18", (), ["x=3x64x64"]),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused(text, args, inputs):
    with pytest.raises(SpecError, match="--input"):
        load(text, *args, inputs=inputs)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_an_unknown_model_is_refused_with_the_nearest_names(library):
    with pytest.raises(SourceError, match="resnet18") as caught:
        load(f"{library}/resnet_18")
    assert "resnet18" in caught.value.why
    with pytest.raises(SourceError, match="no name is near"):
        load(f"{library}/?????")


def test_an_unknown_tag_of_timm_is_refused_with_the_known_ones():
    with pytest.raises(SourceError, match=r"swin_tiny_patch4_window7_224\.ms_in1k"):
        load("timm/swin_tiny_patch4_window7_224.ms_in2k")
    assert load("timm/resnet10t.c3_in1k").outputs == ("logits",)


def test_a_name_on_the_hub_is_not_asked_for_unless_pretrained(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MachineError, match="--pretrained, or name a folder"):
        load("transformers/some-owner/some-model", random_weights=True)


@pytest.mark.parametrize("text", ["timm/resnet10t", "torchvision/resnet18"])
def test_a_model_arg_that_the_model_does_not_take_is_refused(text):
    with pytest.raises(SourceError, match="no_such=1"):
        load(text, "no_such=1")


@pytest.mark.parametrize(
    ("text", "args", "make"),
    [
        ("timm/resnet10t", ("num_classes=3",), lambda: timm.create_model("resnet10t", num_classes=3)),
        ("torchvision/shufflenet_v2_x0_5", (), lambda: torchvision.models.shufflenet_v2_x0_5()),
    ],
)
def test_a_checkpoint_gives_its_outputs(text, args, make, tmp_path):
    original = make().eval()
    save_file({f"module.{k}": v for k, v in original.state_dict().items()}, tmp_path / "w.safetensors")
    model = load(text, *args, checkpoint=str(tmp_path / "w.safetensors"))
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model.module(x), original(x), rtol=0, atol=0)
    assert model.notes == ("checkpoint: removed 'module.' from every key",)


def test_notes_are_told_as_well_as_kept(tmp_path):
    class Listener(Progress):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    weights = tmp_path / "w.pth"
    torch.save({"model": timm.create_model("resnet10t").state_dict()}, weights)
    listener = Listener()
    options = SourceOptions(source="timm/resnet10t", checkpoint=str(weights))
    assert resolve(options.source).load(options, listener).notes == tuple(listener.notes) != ()


@pytest.mark.parametrize("text", ["timm/resnet10t", "torchvision/squeezenet1_1", "transformers/some-owner/some-model"])
def test_a_hub_that_does_not_answer_is_a_machine_error_soon(text, tmp_path):
    code = f"""
from trtship.errors import MachineError
from trtship.sources import SourceOptions, resolve
try:
    resolve({text!r}).load(SourceOptions(source={text!r}, pretrained=True))
except MachineError as error:
    print(error)
"""
    closed = "http://127.0.0.1:9"
    proxies = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    environment = os.environ | dict.fromkeys(proxies, closed)
    environment |= {"HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path), "NO_PROXY": "", "no_proxy": ""}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert "Retrying" not in done.stderr
    assert text in done.stdout
    assert "--checkpoint" in done.stdout


TINY = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
    "num_labels": 3,
}
NAMED = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}


@pytest.fixture(params=["swin", "swinv2"])
def saved(request, tmp_path):
    """A folder as save_pretrained writes it, and the model in it."""
    config, kind = {
        "swin": (transformers.SwinConfig, transformers.SwinForImageClassification),
        "swinv2": (transformers.Swinv2Config, transformers.Swinv2ForImageClassification),
    }[request.param]
    torch.manual_seed(3)
    model = kind(config(**TINY, **NAMED)).eval()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def test_a_transformers_folder_brings_weights_labels_and_preprocessing(saved, tmp_path):
    folder, original = saved
    model = load(f"transformers/{folder}")
    assert_ready(model, (3, 32, 32), 3)
    assert model.labels == ("cat", "dog", "owl")
    weights = model.module.module.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in original.state_dict().items())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.module(x), original(x).logits)
    Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / "a.png")
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    want = processor(load_image(str(tmp_path / "a.png")), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(preprocess_images([tmp_path / "a.png"], model.preprocess), want, rtol=0, atol=1e-5)


def test_a_saved_image_processor_is_followed(saved):
    folder, _ = saved
    transformers.ViTImageProcessor(size={"height": 40, "width": 36}, do_normalize=False).save_pretrained(folder)
    model = load(f"transformers/{folder}")
    assert model.preprocess.output_shape == (3, 40, 36)
    assert [step.__struct_config__.tag for step in model.preprocess.steps] == ["resize", "rescale"]
    assert model.inputs[0].shape == ("B", 3, 40, 36)


def test_an_image_processor_that_cannot_be_written_down_is_left_out_and_said(saved):
    folder, _ = saved
    transformers.CLIPImageProcessor(size={"shortest_edge": 48}, do_center_crop=False).save_pretrained(folder)
    model = load(f"transformers/{folder}")
    assert model.preprocess is None
    assert "CLIPImageProcessor" in model.notes[0]
    assert_ready(model, (3, 32, 32), 3)


def test_input_and_model_args_change_a_transformers_config(saved):
    folder, _ = saved
    model = load(f"transformers/{folder}", "num_labels=4", inputs=["image=Bx1x48x48"], random_weights=True)
    assert_ready(model, (1, 48, 48), 4)
    assert (model.preprocess.mode, model.inputs[0].name, model.labels) == ("L", "image", None)
    with pytest.raises(SpecError, match="no_such"):
        load(f"transformers/{folder}", "no_such=4")


def test_weights_that_do_not_fit_their_config_are_refused(saved):
    folder, original = saved
    state = {k: v for k, v in original.state_dict().items() if not k.startswith("classifier.")}
    save_file(state | {"extra": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load(f"transformers/{folder}")
    assert "2 missing from the weights: classifier.bias, classifier.weight" in caught.value.why
    assert "1 unknown to the model: extra" in caught.value.why
    with pytest.raises(CheckpointError, match="of another shape"):
        load(f"transformers/{folder}", "embed_dim=16", checkpoint=str(folder / "model.safetensors"))


def test_a_model_without_a_head_gives_its_own_outputs(tmp_path):
    config = transformers.SwinConfig(**TINY)
    transformers.SwinModel(config).save_pretrained(tmp_path)
    model = load(f"transformers/{tmp_path}")
    assert model.outputs == ("last_hidden_state", "pooler_output")
    assert [tuple(t.shape) for t in model.module(torch.zeros(2, 3, 32, 32))] == [(2, 64, 16), (2, 16)]


def test_placeholder_labels_are_no_labels(tmp_path):
    transformers.SwinForImageClassification(transformers.SwinConfig(**TINY)).save_pretrained(tmp_path)
    assert load(f"transformers/{tmp_path}").labels is None


def test_transformers_convnext_crops_as_its_processor_does(tmp_path):
    config = transformers.ConvNextConfig(hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1], image_size=64, num_labels=3)
    transformers.ConvNextForImageClassification(config).save_pretrained(tmp_path)
    model = load(f"transformers/{tmp_path}")
    assert_ready(model, (3, 64, 64), 3)
    assert [step.height for step in model.preprocess.steps[:2]] == [73, 64]


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}))
    (tmp_path / "code.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(SourceError, match="cannot build"):
        load(f"transformers/{tmp_path}", random_weights=True)


def test_folders_that_are_no_models_are_refused(saved, tmp_path):
    folder, _ = saved
    (tmp_path / "empty").mkdir()
    for text, reason in [(tmp_path / "none", "no such folder"), (tmp_path / "empty", "no config.json")]:
        with pytest.raises(SourceError, match=reason):
            load(f"transformers/{text}")
    with pytest.raises(SpecError, match="--pretrained"):
        load(f"transformers/{folder}", pretrained=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="--random-weights"):
        load(f"transformers/{folder}")


def test_a_folders_fingerprint_follows_its_files(saved):
    folder, _ = saved
    text = f"transformers/{folder}"
    options = SourceOptions(source=text)
    before = resolve(text).fingerprint(options)
    assert {"file config.json", "file model.safetensors"} <= before.keys()
    transformers.ViTImageProcessor().save_pretrained(folder)
    assert resolve(text).fingerprint(options) != before
    assert "file model.safetensors" not in resolve(text).fingerprint(SourceOptions(source=text, random_weights=True))


def test_timm_labels_are_imagenets_where_the_head_still_is():
    labels = timm_source._labels(timm, timm.create_model("resnet10t"))
    assert (len(labels), labels[0]) == (1000, "tench, Tinca tinca")
    assert timm_source._labels(timm, timm.create_model("resnet10t", num_classes=10)) is None
