"""Real inputs that a user supplies: read from files, checked against the model's inputs."""

from __future__ import annotations

import msgspec
import numpy as np


class Samples(msgspec.Struct, frozen=True):
    """Rows of real inputs.

    `groups` holds arrays [rows, ...] by input name. All arrays of one group have equally many rows and the same dynamic
    sizes; the sizes may differ between groups. `origin` names the files for people, `digest` is the SHA-256 of
    what was read.
    """

    groups: tuple[dict[str, np.ndarray], ...]
    origin: str
    digest: str

    @property
    def rows(self) -> int:
        """The number of rows in all groups."""
        return sum(len(next(iter(group.values()))) for group in self.groups)
