"""Gates that the user sets, in place of the derived bounds or beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from trtship.errors import SpecError
from trtship.measure import Measure
from trtship.spec import Record
from trtship.verify.verdict import COSINE, Bound, Verdict


class Gates(Record, frozen=True):
    """`max_rel_l2`: the largest relative L2, worst row, in place of what is derived; `min_cosine`: the least cosine,
    worst row, which nothing is derived for. None where the user named none."""

    max_rel_l2: float | None = None
    min_cosine: float | None = None

    def check(self) -> None:
        """Raises SpecError for numbers that are no bounds."""
        for option, value, top in (("--max-rel-l2", self.max_rel_l2, math.inf), ("--min-cosine", self.min_cosine, 1.0)):
            if value is not None and not (0 < value <= top and math.isfinite(value)):
                raise SpecError(
                    f"{option} {value:g} is no bound",
                    why="it takes a finite number above 0" + (f", at most {top:g}" if top == 1.0 else ""),
                    do=f"for example {option} {0.99 if top == 1.0 else 0.01}",
                )

    def over(self, other: Gates) -> Gates:
        """These, and `other`'s where these name none."""
        return Gates(
            max_rel_l2=other.max_rel_l2 if self.max_rel_l2 is None else self.max_rel_l2,
            min_cosine=other.min_cosine if self.min_cosine is None else self.min_cosine,
        )

    def bound(self, derived: Bound, *, loosen: bool = True) -> Bound:
        """`derived`, or the user's. Without `loosen` a larger one does not count: who lets int8 lose much says nothing
        about the fp32 graph that it was made from. What two runs may differ by stays derived."""
        if self.max_rel_l2 is None or (not loosen and self.max_rel_l2 > derived.value):
            return derived
        sizes = {key: self.bound(bound, loosen=loosen) for key, bound in derived.sizes.items()}
        return msgspec.structs.replace(derived.replaced(self.max_rel_l2, "--max-rel-l2"), sizes=sizes)

    def cosine(self, compared: Verdict) -> Verdict | None:
        """The verdict on the cosine of what was compared; None where no bound was named."""
        if self.min_cosine is None:
            return None
        least = _least(compared.measures)
        reason = ""
        if least is None:
            reason = compared.reason or "nothing was measured"
        elif least < self.min_cosine:
            reason = f"the cosine with the original falls to {least:.6f}, below {self.min_cosine:g}"
        return msgspec.structs.replace(
            compared,
            gate=COSINE,
            state="failed" if reason else "passed",
            reason=reason,
            bound=Bound(value=self.min_cosine, source="--min-cosine"),
            worst=least,
            limit=None,
            measures=(),
        )


def _least(measures: Sequence[Measure]) -> float | None:
    """None where an output was not finite, or had another shape."""
    found = [m.cosine for m in measures]
    return None if not found or None in found else min(v for v in found if v is not None)
