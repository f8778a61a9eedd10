"""The rules on sizes that a graph keeps: those of its conditions that matter within the user's ranges, each tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

import msgspec

from trtship.errors import SpecError
from trtship.export.check import Comparer, Difference, mismatch, where
from trtship.export.conditions import Condition
from trtship.export.sizes import Sizes, corners, sizes_within
from trtship.progress import Progress
from trtship.spec import ShapeRange, SizeRule, broken_rule

MOST_PROVED = 16
"""Sizes that a rule excludes, and that are all compared."""
MOST_COMBINED = 8
"""Rules among which those are looked for that follow from the others; a rule too many does no harm."""
MOST_SHOWN = 200
"""Characters of a rule in a message."""
MOST_EDGES = 4
"""Sizes next to those that a rule excludes, and that are compared."""
MOST_BESIDE = 6
"""Sizes beside a rule that are compared before it is dropped."""


class Asked(msgspec.Struct, frozen=True):
    """What a rule is held against: the ranges, the traced sizes, and the letter of the batch."""

    ranges: Mapping[str, ShapeRange]
    traced: Sizes
    batch: str | None

    def promises(self, sizes: Sizes) -> bool:
        """Return whether the sizes are within the ranges, as far as there are such."""
        return all(size >= 1 and (x not in self.ranges or size in self.ranges[x]) for x, size in sizes.items())


def that_exclude(conditions: Sequence[Condition], asked: Asked) -> tuple[Condition, ...]:
    """Return the conditions that do not hold for all sizes in the ranges."""
    return tuple(condition for condition in conditions if _excludes(condition, asked))


def freezes_batch(condition: Condition, asked: Asked) -> bool:
    """Return whether a condition is on the batch alone, and of the batches 1 to 64 only the traced one meets it.

    The model then computes with the batch in Python (`int(x.shape[0] / n)`), and the exporter took the result for a
    constant.
    """
    if asked.batch is None or condition.rule.letters != {asked.batch} or condition.decides:
        return False
    traced = asked.traced[asked.batch]
    return all(condition.rule.allows({asked.batch: n}) == (n == traced) for n in range(1, 65))


def settle_rules(conditions: Sequence[Condition], asked: Asked, comparer: Comparer) -> tuple[Condition, ...]:
    """Return those of the conditions, each of which excludes some sizes, that are needed.

    Each is compared at sizes that break it and no condition of the model's own code that is still kept. It is dropped
    where graph and PyTorch are the same at all of these, or neither takes the size. Where the model's own code asks for
    it (`if h % 2`), code that the export has not seen may run at sizes not tried: then it is dropped only where all
    sizes that it excludes were tried.

    Raises:
        ExportMismatchError: the graph is not the model at a size next to those that a rule excludes.
    """
    kept = list(conditions)
    for condition in list(kept):
        others = [c.rule for c in kept if c is not condition and c.decides]
        beside, are_all = _beside(condition, others, asked)
        if (are_all or not condition.decides) and _are_same(beside, comparer):
            kept.remove(condition)
    found = _without_implied(kept, asked)
    rules = [condition.rule for condition in found]
    for condition in found:
        for sizes in _edges(condition, rules, asked):
            try:
                comparer.compare(sizes)
            except Difference as difference:
                if not difference.model_fails:
                    raise mismatch(sizes, asked.traced, difference.why) from difference
    return found


def refuse_broken_corners(conditions: Iterable[Condition], asked: Asked) -> None:
    """Raises SpecError where MIN, OPT or MAX of the user's ranges breaks a rule."""
    for condition in conditions:
        rule = condition.rule
        for sizes in corners(asked.ranges, asked.traced):
            if rule.letters & asked.ranges.keys() and not rule.allows(sizes):
                raise _broken(condition, {x: sizes[x] for x in sorted(rule.letters)}, asked)


def tell_rules(conditions: Sequence[Condition], progress: Progress) -> None:
    """A note for each rule."""
    for condition in conditions:
        rule = condition.rule
        place = f" (from {rule.where})" if rule.where else ""
        progress.note(f"the graph is the model only where {_short(rule)}{place}: other sizes are refused at run time")


def _short(rule: SizeRule) -> str:
    return rule.text if len(rule.text) <= MOST_SHOWN else f"{rule.text[:MOST_SHOWN]} ..."


def _excludes(condition: Condition, asked: Asked) -> bool:
    """Whether some size in the ranges breaks it; a condition that cannot be tried everywhere may."""
    every, sizes = sizes_within(condition.rule.letters, asked.ranges, asked.traced, batch=asked.batch)
    return any(not condition.rule.allows(s) for s in sizes) or not every


def _beside(condition: Condition, others: Sequence[SizeRule], asked: Asked) -> tuple[list[dict[str, int]], bool]:
    """Return sizes that break this rule and none of `others`, and whether those are all of them.

    Where they are many, they are the nearest to the traced ones and the farthest. Where each breaks one of `others`
    too, they are sizes that do.
    """
    every, counted = sizes_within(condition.rule.letters, asked.ranges, asked.traced, batch=asked.batch)
    breaking = [sizes for sizes in counted if not condition.rule.allows(sizes)]
    alone = [sizes for sizes in breaking if broken_rule(others, sizes) is None] or breaking
    if every and len(alone) <= MOST_PROVED:
        return alone, True
    alone.sort(key=lambda sizes: sum(abs(size - asked.traced[letter]) for letter, size in sizes.items()))
    half = MOST_BESIDE // 2
    return alone[:half] + alone[half:][-half:], False


def _are_same(beside: Sequence[Sizes], comparer: Comparer) -> bool:
    """Whether graph and PyTorch are the same at these sizes, but for those that neither takes: no answer is wrong."""
    found = []
    for sizes in beside:
        found.append(comparer.judge(sizes))
        if found[-1] == "differ":
            return False
    return "same" in found


def _edges(condition: Condition, rules: Sequence[SizeRule], asked: Asked) -> list[dict[str, int]]:
    """Sizes that keep to all rules, one away from a size that breaks this one: the nearest to the traced ones."""
    _, counted = sizes_within(condition.rule.letters, asked.ranges, asked.traced, batch=asked.batch)
    found = []
    for sizes in counted:
        beside = ({**sizes, x: sizes[x] + step} for x in condition.rule.letters for step in (-1, 1))
        if broken_rule(rules, sizes) is None and any(
            asked.promises(there) and not condition.rule.allows(there) for there in beside
        ):
            found.append(sizes)
    found.sort(key=lambda sizes: sum(abs(size - asked.traced[letter]) for letter, size in sizes.items()))
    return found[:MOST_EDGES]


def _without_implied(conditions: Sequence[Condition], asked: Asked) -> tuple[Condition, ...]:
    """Without those that no size breaks which keeps to the others: PyTorch's checks of what the model checks too."""
    kept = list(conditions)
    if len(kept) > MOST_COMBINED:
        return tuple(kept)
    for condition in sorted(conditions, key=lambda c: (c.decides, -len(c.rule.text))):
        others = [c.rule for c in kept if c is not condition]
        letters = condition.rule.letters.union(*(rule.letters for rule in others))
        every, sizes = sizes_within(letters, asked.ranges, asked.traced, batch=asked.batch)
        if every and all(condition.rule.allows(s) for s in sizes if broken_rule(others, s) is None):
            kept.remove(condition)
    return tuple(kept)


def _broken(condition: Condition, sizes: Sizes, asked: Asked) -> SpecError:
    rule, place = condition.rule, condition.line
    letters = sorted(rule.letters)
    options = {x: "--batch" if x == asked.batch else f"--size {x}=" for x in letters}
    given = ", ".join(
        f"--batch {asked.ranges[x]}" if x == asked.batch else f"--size {x}={asked.ranges[x]}"
        for x in letters
        if x in asked.ranges
    )
    asks = f"{place} asks for it" if place else "PyTorch's operators need it"
    return SpecError(
        f"the exported graph is the model only where {_short(rule)}, and {where(sizes)} breaks that",
        why=f"{asks}; {given} promises it for MIN, OPT and MAX",
        do=_advice(rule, letters, options, asked) + _rewrite(condition),
    )


def _rewrite(condition: Condition) -> str:
    if condition.line is None:
        return ""
    if condition.decides:
        return ", or write the model without a condition on the size"
    return ", or compute with the size as PyTorch follows it: (h * w) ** 0.5 stays dynamic, math.sqrt(h * w) does not"


def _advice(rule: SizeRule, letters: Sequence[str], options: Mapping[str, str], asked: Asked) -> str:
    if len(letters) > 1:
        same = f" (one letter in --input for both, where {letters[0]} and {letters[1]} are to be equal)"
        return f"choose ranges that keep to it{same if '==' in rule.text else ''}"
    letter = letters[0]
    allowed = [n for n in _near(letter, asked) if rule.allows({**asked.traced, letter: n})]
    if not allowed:
        return f"choose another {options[letter].rstrip('=')} range"
    ends = [min(allowed, key=_distance(n)) for n in (asked.ranges[letter].min, asked.ranges[letter].opt)]
    last = min(allowed, key=_distance(asked.ranges[letter].max))
    low, opt = sorted(ends)
    example = ShapeRange(min=low, opt=min(opt, max(last, low)), max=max(last, low))
    separator = " " if letter == asked.batch else ""
    return f"choose MIN, OPT and MAX that keep to it, for example {options[letter]}{separator}{example}"


def _distance(size: int) -> Callable[[int], int]:
    return lambda n: abs(n - size)


def _near(letter: str, asked: Asked) -> list[int]:
    sizes = asked.ranges[letter]
    return list(islice(range(sizes.min, sizes.max + 1), 5_000))
