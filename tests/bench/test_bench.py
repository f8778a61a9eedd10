"""The parts of bench that need no GPU."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtship.bench import BenchReport, Row, bench
from trtship.bench.original import options_of, original_of
from trtship.bench.peers import find, names
from trtship.bench.plot import throughput_svg
from trtship.bench.timing import Timing, median_interval
from trtship.bundle import Bundle
from trtship.cli.bench import peer_paths
from trtship.errors import DeviceError, SourceError, SpecError
from trtship.gpu import Gpu, list_gpus
from trtship.measure import Measure

GPU = Gpu(index=0, name="G", compute_capability="9.0", memory_mib=1, driver="1", uuid="u")


def row(batch: int, name: str, ms: float, *, ours: bool = False, right: bool = True, build: int = 0) -> Row:
    timing = Timing(median_ms=ms, low_ms=ms, high_ms=ms, rounds=1, calls=1)
    error = Measure(sizes={"B": batch}, output="logits", finite=True, rel_l2=0.0)
    return Row(batch=batch, name=name, build=build, ours=ours, gpu=timing, error=error, right=right)


def report(*rows: Row) -> BenchReport:
    return BenchReport(model="m", precision="fp16", gpu=GPU, states=(), rows=rows)


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=40))
def test_the_interval_holds_the_median_and_lies_in_the_samples(samples: list[float]) -> None:
    median, low, high = median_interval(samples)
    assert min(samples) <= low <= median <= high <= max(samples)


def test_the_interval_of_fifteen_samples_is_that_of_the_binomial_table() -> None:
    """n = 15: P(X < 4) = 0.0176, P(X < 5) = 0.0592 for Binomial(15, 1/2), so 4th to 12th of the ordered samples."""
    assert median_interval(list(range(1, 16))) == (8, 4, 12)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        _, low, high = median_interval(rng.exponential(size=15).tolist())
        hits += low <= np.log(2) <= high
    assert 0.94 < hits / 2000 < 0.985  # 0.965 by the table above


def test_a_peer_that_is_wrong_wins_nothing() -> None:
    found = report(row(1, "ours", 2.0, ours=True), row(1, "wrong", 0.1, right=False), row(1, "peer", 3.0))
    ratio = found.ratio(1)
    assert ratio is not None
    assert (ratio.ratio, ratio.peer) == (1.5, "peer")
    assert found.ratio(8) is None


def test_ours_wrong_is_not_compared() -> None:
    assert report(row(1, "ours", 2.0, ours=True, right=False), row(1, "peer", 3.0)).ratio(1) is None


def test_of_several_builds_ours_is_the_median_and_the_peers_the_fastest() -> None:
    ours = [row(1, "ours", ms, ours=True, build=i + 1) for i, ms in enumerate((1.0, 2.0, 4.0))]
    peers = [row(1, "peer", ms, build=i + 1) for i, ms in enumerate((2.5, 3.0, 5.0))]
    ratio = report(*ours, *peers).ratio(1)
    assert ratio is not None
    assert (ratio.ours_ms, ratio.peer_ms, ratio.ratio) == (2.0, 2.5, 1.25)


def test_the_plot_is_well_formed_names_every_line_and_leaves_out_what_is_wrong() -> None:
    rows = [row(b, n, b / 10 + 0.1) for b in (1, 32, 128) for n in ("a & b", "<peer>")]
    svg = ET.fromstring(throughput_svg(report(*rows, row(1, "bad", 1, right=False)), title="T"))
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "<peer>", "1", "32", "128", "images/s"} <= set(texts)
    assert "bad" not in texts
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_a_plot_of_nothing_says_so() -> None:
    assert "nothing timed" in throughput_svg(report(), title="T")


def test_each_peer_is_found_by_its_name_and_another_is_refused_with_the_names() -> None:
    assert set(names()) == {"eager", "compile", "torch-tensorrt", "onnx-tensorrt", "onnxruntime"}
    assert [find(name).name for name in names()] == list(names())
    with pytest.raises(SpecError, match="names no peer") as caught:
        find("tensorflow")
    assert "torch-tensorrt" in caught.value.why


def test_the_original_is_found_again_from_the_manifest_and_another_model_is_refused(
    deployed: Callable[[str, str], Path], tmp_path: Path
) -> None:
    bundle = Bundle.open(deployed("colours", "fp32"))
    assert original_of(bundle, options_of(bundle)).outputs == ("logits",)
    other = tmp_path / "colours.py"
    source = bundle.manifest.source.options.source.rsplit(":", 1)[0]
    other.write_text(Path(source).read_text().replace("scale=1.0", "scale=1.1"))
    with pytest.raises(SourceError, match="is not the model that this bundle was made of"):
        original_of(bundle, options_of(bundle, source=f"{other}:colours"))
    with pytest.raises(SpecError, match="--checkpoint does not apply"):
        options_of(bundle, checkpoint="weights.safetensors")


@pytest.mark.skipif(bool(list_gpus()), reason="there is a GPU")
def test_without_a_gpu_nothing_is_timed(deployed: Callable[[str, str], Path]) -> None:
    bundle = Bundle.open(deployed("colours", "fp32"))
    options = options_of(bundle)
    with pytest.raises(DeviceError, match="no NVIDIA GPU here"):
        bench(bundle, original_of(bundle, options), options, against=["eager"], batches=[2])


@pytest.mark.parametrize("text", ["torch-tensorrt", "=/x", "eager=", "=", ""])
def test_a_peer_path_needs_a_peer_and_a_folder(text: str) -> None:
    with pytest.raises(SpecError, match="is no path of a peer"):
        peer_paths([text])


def test_a_peer_has_one_path() -> None:
    assert peer_paths(["eager=/a", "compile=/b=c"]) == {"eager": Path("/a"), "compile": Path("/b=c")}
    with pytest.raises(SpecError, match="given twice"):
        pytest.fail(str(peer_paths(["eager=/a", "eager=/b"])))
