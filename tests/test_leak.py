"""What must never be destroyed is not, even as the interpreter ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import gc, weakref
from trtship.leak import leak

class Native:
    def __del__(self):
        print("destroyed", flush=True)

held = {{"one": Native(), "many": [Native()]}}
held["itself"] = held
gone = weakref.ref(held["one"])
{leaks}
del held
gc.collect()
print("alive" if gone() else "dead", flush=True)
"""


@pytest.mark.parametrize(
    ("leaks", "said"), [("", ["destroyed", "destroyed", "dead"]), ("leak(held)", ["alive"])], ids=["not", "leaked"]
)
def test_leaked_objects_outlive_the_interpreter(leaks: str, said: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(leaks=leaks)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == said
