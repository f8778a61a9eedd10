"""The C++ example: its hash is SHA-256, it compiles, and TensorRT sees nothing whose hash is wrong.

Neither PyPI nor Debian has TensorRT's headers. `TENSORRT_INCLUDE` is a folder with NvInfer.h: that of an SDK, or
include/ of NVIDIA/TensorRT on GitHub. What needs them is skipped without it; running a plan also needs a GPU, and
headers of the very TensorRT for RTX that is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trtship.bundle import Bundle
from trtship.gpu import list_gpus
from trtship.measure import measure

HERE = Path(__file__).parents[2] / "examples" / "cpp"
HEADERS = os.environ.get("TENSORRT_INCLUDE", "")
PRINT_HASH = """
#include "sha256.h"
#include <iostream>
#include <iterator>
int main() { std::cout << sha256::of(std::string(std::istreambuf_iterator<char>(std::cin), {})); }
"""
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
headers = pytest.mark.skipif(
    not (Path(HEADERS) / "NvInfer.h").is_file() or not HEADERS, reason="TENSORRT_INCLUDE names no folder with NvInfer.h"
)


def package(name: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    found = importlib.util.find_spec(name)
    places = found.submodule_search_locations if found else None
    return Path(next(iter(places))) if places else None


def cuda_headers() -> Path:
    """The wheel of triton, the compiler, has all of them; those of NVIDIA's own lack some."""
    places = [Path("/usr/local/cuda/include"), (package("triton") or Path()) / "backends" / "nvidia" / "include"]
    found = [place for place in places if (place / "crt" / "host_defines.h").is_file()]
    if not found:
        pytest.skip("no CUDA headers here")
    return found[0]


def compile_example(*more: str) -> None:
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations"]
    system = ["-isystem", HEADERS, "-isystem", str(cuda_headers())]
    done = subprocess.run([*command, *system, str(HERE / "run_plan.cpp"), *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run_plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The example, linked with the installed TensorRT for RTX."""
    library = (package("tensorrt_rtx_libs") or Path()) / "libtensorrt_rtx.so.1"
    runtime = (package("nvidia") or Path()) / "cu13" / "lib" / "libcudart_static.a"
    if not library.is_file() or not runtime.is_file():
        pytest.skip("no libraries of TensorRT for RTX and CUDA here to link with")
    program = tmp_path_factory.mktemp("cpp") / "run_plan"
    compile_example("-DTRTSHIP_RTX", "-o", str(program), str(library), str(runtime), "-lpthread", "-ldl", "-lrt")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
        return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)

    return run


@compiler
def test_its_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "print.cpp").write_text(PRINT_HASH)
    command = ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{HERE}", "-o", tmp_path / "print"]
    subprocess.run([*command, tmp_path / "print.cpp"], check=True)
    maker = random.Random(0)
    for size in (0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 128, 1_000_003):  # around where the length's block begins
        data = maker.randbytes(size)
        done = subprocess.run([tmp_path / "print"], input=data, capture_output=True, check=True)
        assert done.stdout.decode() == hashlib.sha256(data).hexdigest(), size


@compiler
@headers
@pytest.mark.parametrize("more", [(), ("-DTRTSHIP_RTX",)], ids=["tensorrt", "tensorrt_rtx"])
def test_it_compiles_without_a_warning(more: tuple[str, ...]) -> None:
    compile_example("-fsyntax-only", "-Wpedantic", *more)


@compiler
@headers
def test_tensorrt_sees_no_plan_whose_hash_is_wrong(
    run_plan: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "model.plan").write_bytes(b"no plan at all")
    (tmp_path / "x.bin").write_bytes(bytes(12))
    digest = hashlib.sha256(b"no plan at all").hexdigest()
    given = f"x=1x3={tmp_path / 'x.bin'}"
    done = run_plan(tmp_path / "model.plan", digest[:-1], tmp_path / "out", given)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {tmp_path / 'model.plan'} has the SHA-256 {digest}, and {digest[:-1]} is expected"
    ]
    right = run_plan(tmp_path / "model.plan", digest, tmp_path / "out", given)
    assert right.returncode not in (
        0,
        2,
    )  # TensorRT has it, and refuses it; with another version's headers it may crash
    assert not (tmp_path / "out").exists()


@compiler
@headers
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a", "b", "c"), "it takes PLAN SHA256 OUT_FOLDER"),
        (("a", "b", "c", "x"), "is no input"),
        (("a", "b", "c", "x=1xQ=/dev/null"), "has no shape"),
        (("a", "b", "c", "x=1x3=nowhere"), "cannot read nowhere"),
        (("nowhere", "b", "c", "x=1x3=/dev/null"), "cannot read nowhere"),
    ],
)
def test_a_mistake_is_told(
    run_plan: Callable[..., subprocess.CompletedProcess[str]], arguments: tuple[str, ...], said: str
) -> None:
    done = run_plan(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@compiler
@headers
@pytest.mark.skipif(not list_gpus(), reason="needs an NVIDIA GPU")
def test_it_gives_the_bundles_reference(
    run_plan: Callable[..., subprocess.CompletedProcess[str]], deployed: Callable[[str, str], Path], tmp_path: Path
) -> None:
    bundle = Bundle.open(deployed("digits", "fp16"))
    m = bundle.manifest
    for batch in (1, 3, 4):
        feeds, expected = bundle.reference().at(batch)
        given = []
        for spec in m.plan_inputs:
            array = np.ascontiguousarray(feeds[spec.name].astype(spec.dtype))
            array.tofile(tmp_path / f"{spec.name}.bin")
            given.append(f"{spec.name}={'x'.join(map(str, array.shape))}={tmp_path / spec.name}.bin")
        done = run_plan(bundle.folder / m.plan, m.files[m.plan], tmp_path / "out", *given)
        assert done.returncode == 0, done.stderr
        for spec in m.plan_outputs:
            found = np.fromfile(tmp_path / "out" / f"{spec.name}.bin", spec.dtype).reshape(expected[spec.name].shape)
            error = measure(expected[spec.name], found, output=spec.name, sizes={"B": batch})
            assert error.rel_l2 is not None
            assert error.rel_l2 <= m.bounds["plan"].value
