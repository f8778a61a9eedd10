"""Why something failed, in one line of a table."""

from __future__ import annotations

from trtship.errors import TrtshipError


def reason_of(error: BaseException) -> str:
    if isinstance(error, TrtshipError):
        return f"{error.what}: {error.why}" if error.why else error.what
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
