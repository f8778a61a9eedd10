"""Objects that are never destroyed: what they would do then, such as to call a CUDA that is lost, ends the process."""

from __future__ import annotations

import ctypes


def leak(*things: object) -> None:
    """Keep them, and all that they refer to, until the process has ended: one reference more than anybody gives back,
    which holds in the interpreter's last steps too, when modules let go of what they have."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(things))
