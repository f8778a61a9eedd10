"""What `import trtship` gives, and what it costs."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import trtship
from deployed import run_python

HEAVY = {
    "torch", "torchvision", "timm", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxsim", "onnxruntime",
    "tensorrt", "tensorrt_rtx", "cuda", "safetensors", "huggingface_hub", "scipy", "matplotlib",
}  # fmt: skip
MODULES = sorted(m.name for m in pkgutil.walk_packages(trtship.__path__, "trtship.") if not m.name.endswith("__main__"))


def test_every_public_name_is_where_its_home_says() -> None:
    names = [name for names in trtship._HOMES.values() for name in names]
    assert sorted(trtship.__all__) == trtship.__all__ == dir(trtship)
    assert sorted([*names, "__version__"]) == trtship.__all__
    for home, public in trtship._HOMES.items():
        for name in public:
            assert getattr(trtship, name) is getattr(importlib.import_module(home), name)


def test_a_star_import_gives_exactly_the_public_names() -> None:
    found: dict[str, object] = {}
    exec("from trtship import *", found)
    assert sorted(found.keys() - {"__builtins__"}) == trtship.__all__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'deplot'"):
        trtship.deplot  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'version = "{trtship.__version__}"' in text


def loaded_by(code: str, among: set[str]) -> set[str]:
    done = run_python(f"import sys\n{code}\nprint(*sorted({among!r} & set(sys.modules)))")
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_next_to_nothing() -> None:
    assert loaded_by("import trtship", HEAVY | {"numpy", "msgspec", "PIL", "rich"}) == set()


def test_importing_every_module_loads_no_heavy_package() -> None:
    """They are imported where they are used: a machine that only runs bundles has none of most of them."""
    assert len(MODULES) > 80
    code = "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in MODULES)
    assert loaded_by(code, HEAVY) == set()


def test_the_public_names_load_no_heavy_package() -> None:
    assert loaded_by("from trtship import *", HEAVY) == set()


def test_every_room_says_what_it_offers() -> None:
    rooms = [m.name for m in pkgutil.iter_modules(trtship.__path__, "trtship.") if m.ispkg]
    for name in rooms:
        room = importlib.import_module(name)
        for public in getattr(room, "__all__", ()):
            assert hasattr(room, public), f"{name}.{public}"
