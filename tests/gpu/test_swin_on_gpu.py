"""Swin-T, deployed and run on a GPU."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from test_session_on_gpu import gpu_mib

import trtship
from trtship.bundle.bundle import Bundle, write_manifest
from trtship.errors import DeviceError, InputError
from trtship.measure import measure
from trtship.spec import as_plain

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
Deployed = Callable[[str], Path]


def assert_same(found: Any, expected: Any, bundle: Path) -> None:
    """Equal but for rounding, by the plan's own bound (both round). Not bit for bit: TensorRT for RTX compiles kernels
    for a shape in the background and changes over to them when they are done. Another row, another input, or one that
    was not there yet, is off by far more."""
    limit = 2 * Bundle.open(bundle).manifest.bounds["plan"].value
    distance = measure(expected, found, output="logits", sizes={}).rel_l2
    assert distance is not None
    assert distance <= limit


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plan_passes_its_gate_at_every_size(
    swin_t: Deployed, precision: str, record_property: Callable[[str, object], None]
) -> None:
    verdicts = {(v.subject, v.gate): v for v in Bundle.open(swin_t(precision)).manifest.verdicts}
    plan = verdicts["plan", "rel_l2"]
    record_property("verdicts", [as_plain(v) for v in verdicts.values()])
    assert plan.state == "passed", plan.reason
    assert {m.sizes["B"] for m in plan.measures} == {1, 2, 3, 8, 17, 31, 32}
    assert plan.worst is not None
    assert plan.bound is not None
    assert 0 < plan.worst <= plan.bound.value


def test_lower_precision_is_really_lower(swin_t: Deployed) -> None:
    """No lower precision would pass for fp32: each is further off than fp32's own bound allows."""
    plans = {
        p: next(v for v in Bundle.open(swin_t(p)).manifest.verdicts if (v.subject, v.gate) == ("plan", "rel_l2"))
        for p in PRECISIONS
    }
    worst = {p: v.worst for p, v in plans.items() if v.worst is not None}
    assert set(worst) == set(PRECISIONS)
    fp32_bound = plans["fp32"].bound
    assert fp32_bound is not None
    assert worst["fp32"] <= fp32_bound.value < min(worst[p] for p in PRECISIONS if p != "fp32")
    assert worst["bf16"] > worst["fp16"]


def test_load_chooses_the_bundles_own_plan_and_says_so(swin_t: Deployed) -> None:
    with trtship.load(swin_t("fp16")) as session:
        assert session.runtime.startswith("tensorrt")
        assert "the bundle's own plan" in session.runtime


def test_numpy_and_torch_on_the_gpu_and_on_the_host_agree(swin_t: Deployed) -> None:
    import torch

    images = np.random.default_rng(5).standard_normal((3, 3, 224, 224), dtype=np.float32)
    with trtship.load(swin_t("fp16")) as session:
        from_numpy = session(images)
        on_gpu = session(torch.from_numpy(images).cuda())
        on_host = session(torch.from_numpy(images))
    assert isinstance(from_numpy, np.ndarray)
    assert on_gpu.device.type == "cuda"
    assert on_host.device.type == "cpu"
    np.testing.assert_array_equal(from_numpy, on_gpu.cpu().numpy())
    np.testing.assert_array_equal(from_numpy, on_host.numpy())


def test_results_are_ordered_on_the_callers_stream(swin_t: Deployed) -> None:
    """The input is still being computed when the session is called, and the output is used at once."""
    import torch

    images = torch.randn(8, 3, 224, 224, device="cuda")
    with trtship.load(swin_t("fp16")) as session:
        expected = session(images * 2 + 1) * 3
        torch.cuda.synchronize()
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                late = images.clone()
                torch.cuda._sleep(200_000_000)
                late = late * 2 + 1
                found = session(late) * 3
            stream.synchronize()
            assert_same(found.cpu().numpy(), expected.cpu().numpy(), swin_t("fp16"))


def test_tensors_that_are_not_contiguous_give_the_same(swin_t: Deployed) -> None:
    import torch

    images = torch.randn(4, 3, 224, 224, device="cuda")
    with trtship.load(swin_t("fp16")) as session:
        torch.testing.assert_close(
            session(images.to(memory_format=torch.channels_last)), session(images), rtol=0, atol=0
        )


def test_a_batch_beyond_the_profile_is_run_in_parts(swin_t: Deployed) -> None:
    images = np.random.default_rng(6).standard_normal((37, 3, 224, 224), dtype=np.float32)
    with trtship.load(swin_t("fp16")) as session:
        parts = np.concatenate([session(images[:32]), session(images[32:])])
        assert_same(session(images), parts, swin_t("fp16"))
        with pytest.raises(InputError, match="outside 1:8:32"):
            session(images[:0])


def test_threads_take_turns(swin_t: Deployed) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((n, 3, 224, 224), dtype=np.float32) for n in (1, 2, 5, 8)]
    with trtship.load(swin_t("fp16")) as session:
        expected = [session(x) for x in inputs]
        wrong: list[int] = []

        def work(i: int) -> None:
            for _ in range(10):
                try:
                    assert_same(session(inputs[i]), expected[i], swin_t("fp16"))
                except AssertionError:
                    wrong.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.alone
def test_closing_gives_the_memory_back(swin_t: Deployed) -> None:
    images = np.zeros((8, 3, 224, 224), np.float32)
    used: list[float] = []
    for _ in range(4):
        with trtship.load(swin_t("fp16")) as session:
            session(images)
        used.append(gpu_mib())
    assert used[-1] - used[1] < 1, used


def test_a_plan_of_another_version_is_rebuilt_into_the_cache_or_refused(
    swin_t: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    copy = tmp_path / "other.trtship"
    shutil.copytree(swin_t("fp16"), copy)
    write_manifest(copy, msgspec.structs.replace(Bundle.open(copy).manifest, family_version="0.0.1"))
    with pytest.raises(DeviceError, match="does not fit this machine"):
        trtship.load(copy, rebuild=False)
    images = np.random.default_rng(1).standard_normal((2, 3, 224, 224), dtype=np.float32)
    with trtship.load(copy) as session, trtship.load(swin_t("fp16")) as own:
        assert "rebuilt" in session.runtime
        np.testing.assert_allclose(session(images), own(images), rtol=0, atol=2e-2)
    assert list((tmp_path / "cache").rglob("model.plan"))


def test_a_damaged_plan_never_reaches_tensorrt(swin_t: Deployed, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "damaged.trtship"
    shutil.copytree(swin_t("fp16"), copy)
    plan = copy / "model.plan"
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with pytest.raises(trtship.TrtshipError, match="cannot be trusted"):
        trtship.load(copy)


def test_verify_completes_a_bundle_that_was_made_without_a_gpu(swin_t: Deployed, tmp_path: Path) -> None:
    import shutil

    from trtship.verify import not_run

    copy = tmp_path / "elsewhere.trtship"
    shutil.copytree(swin_t("fp16"), copy)
    bundle = Bundle.open(copy)
    kept = tuple(v for v in bundle.manifest.verdicts if v.subject != "plan")
    bundle.with_verdicts((*kept, not_run("plan", "rel_l2", "no NVIDIA GPU here")))
    trtship.verify_bundle(copy)
    assert {v.state for v in Bundle.open(copy).manifest.verdicts if v.subject == "plan"} == {"passed"}


LOADS = """
import sys, numpy as np, trtship
for bundle in sys.argv[1:]:
    try:
        with trtship.load(bundle) as session:
            session(np.zeros((8, 3, 224, 224), np.float32))
            print("ran")
    except trtship.TrtshipError as error:
        print(type(error).__name__)
"""


def loads(*bundles: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", LOADS, *map(str, bundles)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_fp32_plan_is_loaded_in_a_fresh_process(swin_t: Deployed) -> None:
    assert loads(swin_t("fp32")) == ["ran"]


def test_an_fp32_plan_after_another_one_is_right_or_refused(swin_t: Deployed) -> None:
    first, second = loads(swin_t("fp16"), swin_t("fp32"))
    assert first == "ran"
    assert second in ("ran", "GateError")
