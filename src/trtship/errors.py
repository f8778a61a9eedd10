"""Every error that trtship raises on purpose.

    TrtshipError                     exit 70   our bug, when nothing below fits
    |- UserError                     exit 2    what was asked for cannot be done as asked
    |  |- SourceError                          the source names no model that can be loaded
    |  |- CheckpointError                      the checkpoint does not fit the model
    |  |- SpecError                            an option, a shape or a range is malformed
    |  |- GraphError                           the ONNX graph is invalid, or has an op TensorRT lacks
    |  |- ImageError                           a picture, or a folder of them, cannot be read
    |  |- InputError                           arrays that do not fit the session's inputs
    |  |- ForkedError                          a session in a process that was forked after it was opened
    |  |- OutputError                          the result cannot be written where it was asked for
    |  `- BundleError                          the folder is no bundle, or one that must not be used
    |     |- BundleCorruptError                a file's SHA-256 is not the manifest's
    |     |- BundleSignatureError              not signed, or not by the one who is trusted
    |     `- BundleSchemaError                 written by a newer trtship, or not in its schema
    |- GateError                     exit 1    something was measured and did not pass
    |  `- ExportMismatchError                  the exported graph differs from PyTorch
    |- MachineError                  exit 3    this machine lacks something
    |  |- DependencyError                      a Python package that this step needs
    |  |- DeviceError                          a GPU, or one that this plan supports
    |  |  |- GpuMemoryError                    the GPU's memory, or the session's share of it, is used up
    |  |  `- GpuFaultError                     the GPU does no more work for this process
    |  `- BuildError                           TensorRT could not build, or not load, a plan
    |     `- BuildCrashed                      its process ended without a word of ours
    `- Cancelled                     exit 130  Ctrl-C, after cleaning up

Each says three things: *what* went wrong, *why*, and what to *do*. `str(error)` is all of it, as it may be shown on a
terminal: control characters, which names from files may hold, are escapes there. The command line prints it without a
traceback (`--debug` shows that too), `--json` as `{"error": {...}}`. The attributes have the texts as they are.
"""

from __future__ import annotations

from typing import ClassVar

from trtship.terminal import shown


class TrtshipError(Exception):
    """The root: `what` happened, `why` (may be empty) and what to `do` (may be empty)."""

    exit_code: ClassVar[int] = 70

    def __init__(self, what: str, *, why: str = "", do: str = "") -> None:
        super().__init__(what, why, do)
        self.what, self.why, self.do = what, why, do

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.do:
            lines.append(f"  do:  {self.do}")
        return "\n".join(shown(line).replace("\n", "\n       ") for line in lines)  # no text can pose as another line

    def as_dict(self) -> dict[str, object]:
        """`{"type", "what", "why", "do", "exit_code"}`, what `--json` prints under `error`."""
        return {
            "type": type(self).__name__,
            "what": self.what,
            "why": self.why,
            "do": self.do,
            "exit_code": self.exit_code,
        }


class UserError(TrtshipError):
    exit_code = 2


class SourceError(UserError):
    pass


class CheckpointError(UserError):
    pass


class SpecError(UserError):
    pass


class GraphError(UserError):
    pass


class ImageError(UserError):
    pass


class InputError(UserError):
    pass


class ForkedError(UserError):
    pass


class OutputError(UserError):
    pass


class BundleError(UserError):
    pass


class BundleCorruptError(BundleError):
    pass


class BundleSignatureError(BundleError):
    """The bundle is not signed, or not by the one who is trusted."""


class BundleSchemaError(BundleError):
    pass


class GateError(TrtshipError):
    """`evidence` is what was measured, as plain JSON values; `as_dict` has it too."""

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", do: str = "", evidence: object = None) -> None:
        super().__init__(what, why=why, do=do)
        self.evidence = evidence

    def as_dict(self) -> dict[str, object]:
        return {**super().as_dict(), **({} if self.evidence is None else {"evidence": self.evidence})}


class ExportMismatchError(GateError):
    pass


class MachineError(TrtshipError):
    exit_code = 3


class DependencyError(MachineError):
    pass


class DeviceError(MachineError):
    pass


class GpuMemoryError(DeviceError):
    pass


class GpuFaultError(DeviceError):
    pass


class BuildError(MachineError):
    pass


class BuildCrashed(BuildError):
    pass


class Cancelled(TrtshipError):
    exit_code = 130


def error_named(name: str) -> type[TrtshipError]:
    """The class of that name in the tree; its root for any other, so that an error from elsewhere is never lost."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, TrtshipError) else TrtshipError
