"""A bundle as a model of a Triton repository: every field of its config against the bundle, by Triton's own schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_rules import SCHEMA, loaded, type_name

from deployed import copy_of, edit_graph, reseal
from graphs import written
from trtship.bench.field import OWN_PLAN
from trtship.bench.report import BenchReport, Row
from trtship.bench.timing import Timing
from trtship.bundle import Bundle
from trtship.bundle.candidates import CANDIDATES, Candidate, Choice, Latency
from trtship.errors import BundleCorruptError, GateError, OutputError, SpecError
from trtship.gpu import Gpu
from trtship.measure import Measure, measure
from trtship.report.evidence import BENCH
from trtship.scale import Exported, export_triton
from trtship.scale.batching import batching_of
from trtship.scale.config import config_text
from trtship.scale.layout import TYPES, Layout
from trtship.scale.served import Served, level_for
from trtship.spec import Precision, ShapeRange, TensorSpec, to_json
from trtship.verify import Verdict

Deployed = Callable[[str, str], Path]
GPU = Gpu(index=0, name="G", compute_capability="9.0", memory_mib=1, driver="1", uuid="u")


def full(bundle: Path, folder: Path, **changes: Any) -> Bundle:
    """A copy that says it was built with full TensorRT. (Its plan is not loaded here.)"""
    return reseal(copy_of(bundle, folder), family="tensorrt", family_version="10.16.1", **changes)


def row(batch: int, ms: float, *, name: str = OWN_PLAN, runtime: str = "tensorrt 10.16.1", right: bool = True) -> Row:
    gpu, whole = (Timing(median_ms=m, low_ms=m, high_ms=m, rounds=1, calls=1) for m in (ms, ms * 1.5))
    error = Measure(sizes={"B": batch}, output="logits", finite=True, rel_l2=0.0)
    ours = name == OWN_PLAN
    return Row(batch=batch, name=name, ours=ours, gpu=gpu, end_to_end=whole, error=error, right=right, runtime=runtime)


def benched(bundle: Bundle, *rows: Row) -> Bundle:
    report = BenchReport(model="m", precision="fp16", gpu=GPU, states=(), rows=rows)
    return bundle.with_files({BENCH: to_json(report)})


def config_of(done: Exported) -> Any:
    return loaded((done.model / "config.pbtxt").read_text(), model=done.model)


def check_tensors(config: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Of a model whose requests are put together."""
    for found, specs in ((config.input, inputs), (config.output, outputs)):
        assert [one.name for one in found] == [spec.name for spec in specs]
        assert [type_name(one.data_type) for one in found] == [TYPES[spec.dtype] for spec in specs]
        assert [tuple(one.dims) for one in found] == [spec.shape[1:] for spec in specs]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_for_rtx_is_served_as_onnx_which_gives_its_reference(
    deployed: Deployed, tmp_path: Path, precision: str
) -> None:
    bundle = Bundle.open(deployed("colours", precision))
    m = bundle.manifest
    done = export_triton(bundle, tmp_path / "models", name="colours")
    config = config_of(done)
    assert (config.platform, config.default_model_filename) == ("onnxruntime_onnx", "model.onnx")
    assert config.max_batch_size == m.ranges["B"].max == 4
    check_tensors(config, m.plan_inputs, m.plan_outputs)
    assert config.output[0].label_filename == "labels.txt"
    assert (done.model / "labels.txt").read_text().split() == ["red", "green", "blue"]
    assert [sample.batch_size for sample in config.model_warmup] == [2, 3, 4]
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.preferred_batch_size
    assert not config.optimization.cuda.graphs
    own = m.precision_graph if precision == "fp16" else m.graph
    assert contents(done.model / "1") == {"model.onnx": (bundle.folder / own).read_bytes()}
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator or (None,)
    assert (accelerator is not None and dict(accelerator.parameters)) == (precision == "fp32" and {"use_tf32": "0"})

    session = onnxruntime.InferenceSession(done.model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    dtype = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16}[type_name(config.input[0].data_type)]
    feeds, expected = bundle.reference().at(config.max_batch_size)
    (name,) = (one.name for one in config.input)
    feed = feeds[name].astype(dtype)
    assert feed.shape == (config.max_batch_size, *config.input[0].dims)
    found = session.run([one.name for one in config.output], {name: feed})
    for tensor, array in zip(config.output, found, strict=True):
        assert array.shape == (config.max_batch_size, *tensor.dims)
        error = measure(expected[tensor.name], array, output=tensor.name, sizes={})
        assert error.rel_l2 is not None
        assert error.rel_l2 <= m.bounds[f"graph {precision}"].value


def test_what_was_chosen_is_told_in_the_config_and_in_notes(deployed: Deployed, tmp_path: Path) -> None:
    done = export_triton(Bundle.open(deployed("colours", "fp16")), tmp_path)
    told, notes = " ".join((done.model / "config.pbtxt").read_text().replace("#", "").split()), " ".join(done.notes)
    for said in (
        "which Triton's tensorrt backend, full TensorRT, cannot load",
        "the strongly typed fp16 graph",
        "on its CUDA provider it has not been tried",
        "the speed of the graph on onnxruntime's CUDA provider was not measured",
    ):
        assert said in told
        assert said in notes


def test_a_plan_of_full_tensorrt_is_served_as_it_is(deployed: Deployed, tmp_path: Path) -> None:
    bundle = benched(full(deployed("digits", "fp16"), tmp_path), row(1, 0.5), row(2, 0.6), row(4, 1.1))
    m = bundle.manifest
    assert m.profiles == (1, 2, 4)
    done = export_triton(bundle, tmp_path / "models")
    config = config_of(done)
    assert (done.name, config.platform, config.default_model_filename) == ("copy", "tensorrt_plan", "model.plan")
    assert contents(done.model / "1") == {"model.plan": (bundle.folder / "model.plan").read_bytes()}
    check_tensors(config, m.plan_inputs, m.plan_outputs)
    assert config.max_batch_size == 4
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert (group.count, list(group.profile)) == (2, ["0", "1", "2", "3"])
    cuda = config.optimization.cuda
    assert cuda.graphs
    assert [(spec.batch_size, dict(spec.input)) for spec in cuda.graph_spec] == [(1, {}), (2, {}), (4, {})]
    assert [sample.batch_size for sample in config.model_warmup] == [1, 2, 4]
    assert any("at batch 2 Triton takes profile 0" in note for note in done.notes)
    assert any("needs tensorrt 10.16.1" in note for note in done.notes)
    assert any("Failed to set cuda graph shape" in note for note in done.notes)
    assert any("not verified on a GPU yet" in note for note in done.notes)


def test_the_speeds_of_auto_are_evidence_too(deployed: Deployed, tmp_path: Path) -> None:
    times = tuple(Latency(batch=b, ms=ms, low=ms, high=ms) for b, ms in ((1, 1.0), (4, 1.5)))
    best = Candidate(name="fp16", precision=Precision.FP16, outcome="shipped", latency=times)
    lost = Candidate(name="fp32", precision=Precision.FP32, outcome="passed", latency=times[:1])
    choice = Choice(rule="fastest", gates={}, candidates=(lost, best), timed_on="G")
    bundle = full(deployed("digits", "fp16"), tmp_path).with_files({CANDIDATES: to_json(choice)})
    done = export_triton(bundle, tmp_path / "models")
    config = config_of(done)
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert (config.dynamic_batching.max_queue_delay_microseconds, config.instance_group[0].count) == (1000, 1)
    assert any("--precision auto on G" in note for note in done.notes)


def test_what_was_timed_wrong_or_built_for_one_batch_is_no_evidence(deployed: Deployed, tmp_path: Path) -> None:
    rows = (row(1, 1.0), row(4, 1.0, right=False), row(4, 1.0, name="trtship, built for this batch"))
    done = export_triton(benched(full(deployed("digits", "fp16"), tmp_path), *rows), tmp_path / "models")
    assert done.batching.preferred == ()


def test_onnxruntimes_own_times_are_the_graphs_evidence(deployed: Deployed, tmp_path: Path) -> None:
    times = [row(b, ms, name="onnxruntime", runtime="onnxruntime 1.32.0, CUDA") for b, ms in ((1, 1.0), (4, 2.0))]
    bundle = benched(Bundle.open(copy_of(deployed("digits", "fp16"), tmp_path)), row(1, 0.1), row(4, 0.1), *times)
    done = export_triton(bundle, tmp_path / "models")
    assert (done.batching.preferred, done.batching.delay_us) == ((4,), 1000)
    assert any("was right too when it was benched" in note for note in done.notes)


def test_an_fp16_graph_that_was_wrong_on_cuda_is_not_served(deployed: Deployed, tmp_path: Path) -> None:
    wrong = row(1, 1.0, name="onnxruntime", runtime="onnxruntime 1.32.0, CUDA", right=False)
    bundle = benched(Bundle.open(copy_of(deployed("digits", "fp16"), tmp_path)), wrong)
    done = export_triton(bundle, tmp_path / "models")
    assert contents(done.model / "1") == {"model.onnx": (bundle.folder / bundle.manifest.graph).read_bytes()}
    assert any("the fp16 one was wrong" in note for note in done.notes)


def test_a_format_that_cannot_work_is_refused_and_one_that_can_is_taken(deployed: Deployed, tmp_path: Path) -> None:
    rtx = Bundle.open(deployed("colours", "fp32"))
    with pytest.raises(SpecError, match="tensorrt backend links full TensorRT") as refused:
        export_triton(rtx, tmp_path / "models", format="plan")
    assert "--format onnx" in refused.value.do
    assert not (tmp_path / "models").exists()
    done = export_triton(full(deployed("colours", "fp32"), tmp_path), tmp_path / "models", format="onnx")
    assert config_of(done).platform == "onnxruntime_onnx"
    assert "as asked" in done.notes[0]


def test_a_plan_that_takes_no_single_row_says_so(deployed: Deployed, tmp_path: Path) -> None:
    done = export_triton(full(deployed("colours", "fp16"), tmp_path), tmp_path / "models")
    assert any("takes no batch below 2" in note for note in done.notes)


def test_what_failed_a_gate_is_not_handed_over(deployed: Deployed, tmp_path: Path) -> None:
    failed = Verdict(subject="plan", gate="rel_l2", state="failed", reason="off by 0.5")
    bundle = full(deployed("colours", "fp16"), tmp_path, verdicts=(failed,))
    with pytest.raises(GateError, match="its gate rel_l2 failed: off by"):
        export_triton(bundle, tmp_path / "models")
    assert config_of(export_triton(bundle, tmp_path / "models", format="onnx"))


def test_a_graph_that_is_not_the_model_is_not_handed_over(deployed: Deployed, tmp_path: Path) -> None:
    folder = copy_of(deployed("colours", "fp32"), tmp_path)

    def swap(model: Any) -> None:
        for node in model.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Neg"

    edit_graph(folder / "model.onnx", swap)
    with pytest.raises(GateError, match="is not the model on onnxruntime"):
        export_triton(reseal(folder), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_an_existing_model_is_replaced_whole_and_only_when_asked(deployed: Deployed, tmp_path: Path) -> None:
    bundle, models = Bundle.open(deployed("colours", "fp32")), tmp_path / "models"
    done = export_triton(bundle, models, name="a")
    first = contents(done.model)
    (done.model / "2").mkdir()
    (done.model / "2" / "model.onnx").write_bytes(b"another version")
    with pytest.raises(OutputError, match="exists"):
        export_triton(bundle, models, name="a")
    with pytest.raises(OutputError, match=r"2/model\.onnx"):
        export_triton(bundle, models, name="a", force=True)
    (done.model / "2" / "model.onnx").unlink()
    (done.model / "config.pbtxt").write_text((done.model / "config.pbtxt").read_text() + "# edited by hand\n")
    export_triton(bundle, models, name="a", force=True)
    assert contents(done.model) == first
    (models / "b").mkdir()
    (models / "b" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="no model of Triton's"):
        export_triton(bundle, models, name="b", force=True)
    assert sorted(path.name for path in models.iterdir()) == ["a", "b"]


def test_a_file_that_changed_leaves_nothing_and_what_stood_there(deployed: Deployed, tmp_path: Path) -> None:
    bundle, models = full(deployed("colours", "fp32"), tmp_path), tmp_path / "models"
    done = export_triton(bundle, models, name="a")
    first = contents(done.model)
    (bundle.folder / "model.plan").write_bytes(b"another")
    for name in ("a", "b"):
        with pytest.raises(BundleCorruptError, match="cannot be trusted"):
            export_triton(bundle, models, name=name, force=True)
    assert contents(done.model) == first
    assert [path.name for path in models.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-a", ".a", "ä", "a" * 201, "a\nb"])
def test_names_that_are_no_folder_or_url_are_refused(deployed: Deployed, tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="no name for a model"):
        export_triton(Bundle.open(deployed("colours", "fp32")), tmp_path / "models", name=name)


def test_a_repository_in_the_bundle_is_refused(deployed: Deployed, tmp_path: Path) -> None:
    bundle = Bundle.open(copy_of(deployed("colours", "fp32"), tmp_path))
    with pytest.raises(OutputError, match="in the bundle itself"):
        export_triton(bundle, bundle.folder / "models")


def test_labels_that_are_of_no_output_are_not_written(deployed: Deployed, tmp_path: Path) -> None:
    folder = copy_of(deployed("colours", "fp32"), tmp_path)
    (folder / "labels.txt").write_text('red "and"\n\ngreen\\n\nblue\n')
    done = export_triton(reseal(folder), tmp_path / "models")
    assert "labels.txt" not in done.files
    assert not config_of(done).output[0].label_filename
    assert any("the 4 labels are not written" in note for note in done.notes)


def test_odd_labels_are_written_as_they_are(deployed: Deployed, tmp_path: Path) -> None:
    folder = copy_of(deployed("colours", "fp32"), tmp_path)
    odd = 'red "\u2028"\n\n  grün\\n\n'.encode()
    (folder / "labels.txt").write_bytes(odd)
    done = export_triton(reseal(folder), tmp_path / "models")
    assert config_of(done).output[0].label_filename == "labels.txt"
    assert (done.model / "labels.txt").read_bytes() == odd


SCALED_IN_FP16 = """(float[B, 8] x) => (float16[B, 8] y) {
    m = ReduceMean<keepdims=1>(x, axes) d = Sub(x, m) p = Pow(d, two) v = ReduceMean<keepdims=1>(p, axes)
    e = Add(v, eps) s = Sqrt(e) n = Div(d, s) h = Cast<to=10>(n) w = Mul(h, scale) y = Add(w, scale)
}"""


def test_a_graph_that_onnxruntimes_own_fusions_break_is_run_without_them(tmp_path: Path) -> None:
    single = {"two": np.float32(2), "eps": np.float32(1e-5), "axes": np.array([-1])}
    tensors = {name: np.asarray(value) for name, value in single.items()}
    broken = written(tmp_path / "a.onnx", SCALED_IN_FP16, scale=np.ones(8, np.float16), **tensors)
    level, reason = level_for(broken)
    assert level == 2
    assert "LayerNormalization" in reason
    assert level_for(written(tmp_path / "b.onnx", "(float[B] x) => (float[B] y) { y = Relu(x) }")) == (0, "")


SIZE = st.one_of(st.integers(1, 512), st.sampled_from(["B", "L", "M"]))
SHAPE = st.lists(SIZE, min_size=1, max_size=4).map(tuple)
BATCHED = st.lists(st.one_of(st.integers(1, 512), st.sampled_from(["L", "M"])), max_size=3).map(lambda s: ("B", *s))
LIMITS = (
    st.lists(st.integers(1, 64), min_size=3, max_size=3)
    .map(sorted)
    .map(lambda n: ShapeRange(min=n[0], opt=n[1], max=n[2]))
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[TensorSpec, ...]:
    names = draw(st.lists(TEXT, min_size=2, max_size=12, unique=True))
    shapes = draw(st.sampled_from([SHAPE, BATCHED]))
    return tuple(TensorSpec(name=n, shape=draw(shapes), dtype=draw(st.sampled_from(sorted(TYPES)))) for n in names)


@settings(deadline=None)
@given(tensors(), st.fixed_dictionaries({"B": LIMITS, "L": LIMITS, "M": LIMITS}), st.sampled_from(["plan", "onnx"]))
def test_any_tensors_make_a_config_that_triton_loads(
    colours: Bundle, specs: tuple[TensorSpec, ...], ranges: dict[str, ShapeRange], kind: Any
) -> None:
    inputs, outputs = specs[: len(specs) // 2], specs[len(specs) // 2 :]
    layout = Layout.of(inputs, outputs, ranges)
    manifest = msgspec.structs.replace(
        colours.manifest, inputs=inputs, outputs=outputs, plan_inputs=inputs, plan_outputs=outputs, ranges=ranges,
        profiles=(),
    )  # fmt: skip
    served = Served(kind, {}, inputs, outputs, 2, "plan", ("why",))
    batching = batching_of(None, layout.batch, what="it", asked=3)
    config = loaded(config_text("m", manifest, served, layout, batching, labelled=None))
    assert [one.name for one in config.input] == [spec.name for spec in inputs]
    assert [one.name for one in config.output] == [spec.name for spec in outputs]
    letter = inputs[0].shape[0]
    together = all(spec.shape[0] == letter and letter not in spec.shape[1:] for spec in specs)
    if together and isinstance(letter, str) and (ranges[letter].min < ranges[letter].max or ranges[letter].max == 1):
        assert config.max_batch_size == ranges[letter].max
    else:
        assert config.max_batch_size == 0
        assert not config.HasField("dynamic_batching")
        assert [len(one.dims) for one in config.input] == [len(spec.shape) for spec in inputs]
    for one, spec in zip(config.output, outputs, strict=True):
        own = spec.shape[1:] if config.max_batch_size else spec.shape
        assert tuple(one.dims) == (tuple(d if isinstance(d, int) else -1 for d in own) or (1,))
        assert one.HasField("reshape") == (not own)
    assert config.optimization.graph.level == (2 if kind == "onnx" else 0)


@pytest.fixture(scope="session")
def colours(deployed: Deployed) -> Bundle:
    return Bundle.open(deployed("colours", "fp32"))


def test_a_fixed_batch_has_all_its_sizes_and_no_queue(colours: Bundle) -> None:
    inputs = (TensorSpec(name="x", shape=(8, 3, "L")), TensorSpec(name="ids", shape=(8, "L"), dtype="int64"))
    outputs = (TensorSpec(name="y", shape=(8, 10)),)
    ranges = {"L": ShapeRange(min=4, opt=16, max=64)}
    manifest = msgspec.structs.replace(
        colours.manifest, inputs=inputs, outputs=outputs, plan_inputs=inputs, plan_outputs=outputs, ranges=ranges
    )
    manifest = msgspec.structs.replace(manifest, profiles=())
    layout = Layout.of(inputs, outputs, ranges)
    served = Served("plan", {}, inputs, outputs, 0, "plan", ())
    batching = batching_of(None, layout.batch, what="the plan", asked=None)
    config = loaded(config_text("m", manifest, served, layout, batching, labelled=outputs[0]))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(one.dims) for one in config.input] == [[8, 3, -1], [8, -1]]
    assert list(config.output[0].dims) == [8, 10]
    (spec,) = config.optimization.cuda.graph_spec
    assert (spec.batch_size, list(spec.input["x"].dim), list(spec.input["ids"].dim)) == (0, [8, 3, 16], [8, 16])
    (sample,) = config.model_warmup
    assert (sample.batch_size, list(sample.inputs["x"].dims)) == (1, [8, 3, 16])


def test_a_range_of_one_batch_is_that_batch(colours: Bundle) -> None:
    """The letter stays in the graph, so that Triton finds -1 in its outputs; a request has all the rows."""
    inputs, outputs = (TensorSpec(name="x", shape=("B", 3)),), (TensorSpec(name="y", shape=("B", 2)),)
    layout = Layout.of(inputs, outputs, {"B": ShapeRange(min=8, opt=8, max=8)})
    assert (layout.max_batch_size, layout.dims(inputs[0]), layout.dims(outputs[0])) == (0, (8, 3), (-1, 2))
    single = Layout.of(inputs, outputs, {"B": ShapeRange(min=1, opt=1, max=1)})
    assert (single.max_batch_size, single.dims(inputs[0])) == (1, (3,))


def test_a_tensor_without_dimensions_is_refused() -> None:
    with pytest.raises(SpecError, match="it has no dimensions"):
        Layout.of(
            (TensorSpec(name="x", shape=("B", 3)),),
            (TensorSpec(name="y", shape=()),),
            {"B": ShapeRange(min=1, opt=2, max=3)},
        )


def test_every_type_that_trtship_knows_is_one_of_tritons() -> None:
    from trtship.spec import DTYPES

    assert set(TYPES) == set(DTYPES)
    assert set(TYPES.values()) <= set(SCHEMA.DataType.keys())
