"""The Chromium that the tests of the report run. As a command: where it is, else exit code 1."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """One that is installed, else one that `playwright install chromium` fetched."""
    for name in NAMES:
        path = shutil.which(name)
        # on Ubuntu the package of this name is a script that asks for a snap
        if path is not None and "snap" not in os.path.realpath(path) and not _is_stub(Path(path)):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def _is_stub(path: Path) -> bool:
    start = path.read_bytes()[:4000]
    return start.startswith(b"#!") and b"snap install" in start


@contextmanager
def opened() -> Iterator[Any]:
    """A running browser (playwright's)."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium has none for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


if __name__ == "__main__":
    found = find_chromium()
    print(found or "no Chromium found")
    sys.exit(found is None)
