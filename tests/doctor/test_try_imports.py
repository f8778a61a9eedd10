from __future__ import annotations

from pathlib import Path

import pytest

from trtship.doctor.imports import try_imports

MODULES = {
    "good": "print('a library that talks on stdout')",
    "raising": "raise ImportError('libnvinfer.so.10: cannot open shared object file\\nsecond line')",
    "crashing": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "exiting": "import os; os._exit(7)",
    "quitting": "raise SystemExit",
    "hanging": "import threading; threading.Event().wait()",
}


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


def test_a_crash_is_blamed_on_its_module_and_the_rest_of_the_row_is_still_tried() -> None:
    results = try_imports([("good", "crashing", "raising", "exiting", "quitting")])
    assert {name: r.error for name, r in results.items()} == {
        "good": "",
        "crashing": "importing it killed Python with SIGSEGV",
        "raising": "ImportError: libnvinfer.so.10: cannot open shared object file",
        "exiting": "importing it ended Python (7)",
        "quitting": "SystemExit",
    }


def test_an_import_that_hangs_is_given_up() -> None:
    results = try_imports([("hanging",)], timeout_s=1)
    assert results["hanging"].error == "importing it took longer than 1 s"


def test_what_is_not_installed_is_left_out() -> None:
    assert try_imports([("no_such_module_anywhere",), ("good",)]).keys() == {"good"}


def test_a_file_in_the_working_folder_does_not_pass_for_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "msgspec.py").write_text("raise ImportError('the wrong file')")
    monkeypatch.chdir(folder)
    assert try_imports([("msgspec",)])["msgspec"].error == ""
