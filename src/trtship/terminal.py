"""Text from outside, made safe to show: control characters are written as escapes.

Names, labels, keys and messages come from files that somebody else may have written. A terminal obeys the control
characters in them: it clears its screen, renames its window or fills the clipboard. `shown` and `shown_json` are
applied where text leaves the process, so that no place that builds a message needs to think of it.
"""

from __future__ import annotations

import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks and overrides of the writing direction
    "\u2028\u2029"  # line and paragraph separators
    "\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # invisible characters
    "\ud800-\udfff]"  # halves of pairs: bytes of a file name that are no UTF-8
)


def shown(text: str) -> str:
    r"""Return the text with `\x1b` and its like for control characters; tabs and newlines stay as they are."""
    return _CONTROLS.sub(_escape, text.replace("\r\n", "\n"))


def shown_json(document: str) -> str:
    r"""Return a JSON document that means the same, with `\u009b` and its like for control characters."""
    return _CONTROLS.sub(_escape_in_json, document)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that `os.fsdecode` kept
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escape_in_json(found: re.Match[str]) -> str:
    """As JSON has it: UTF-16, a pair of escapes for what is beyond."""
    units = found[0].encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
