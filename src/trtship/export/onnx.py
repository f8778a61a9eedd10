"""Export with the dynamo exporter, or with the TorchScript one where that fails, and believe neither.

1. An exporter that finds a decision by a value of an input's in the model's Python ends it all: no graph is that model.
   torch.export runs the code on tensors without values, so there is none that it could freeze; TorchScript's traces are
   made of values, so they are watched, and repeated at other values.
2. What torch.export relied on about sizes becomes rules (`trtship.export.rules`), whoever wrote the graph. Without its
   conditions, TorchScript's traces at several sizes are compared, and each size with another trace is checked.
3. The graph's outputs must be PyTorch's at every set of sizes of `sizes_to_compare` that the rules allow: exporters
   turn sizes into constants without a word where a model computes with them (`int(x.shape[0] / n)`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtship.errors import ExportMismatchError, GateError, GraphError, SpecError, TrtshipError
from trtship.export.check import Checked, check_export, comparing
from trtship.export.conditions import Condition, Conditions
from trtship.export.exporters import Exporter, Job, Made, conditions_only, example_of, export_dynamo, export_torchscript
from trtship.export.isolated import ChildTraceback, ExporterDied
from trtship.export.lines import Line
from trtship.export.mend import Thaw, check_and_mend
from trtship.export.outputs import settle_outputs
from trtship.export.rules import Asked, freezes_batch, refuse_broken_corners, settle_rules, tell_rules, that_exclude
from trtship.export.sizes import sizes_to_compare
from trtship.export.values import value_lines
from trtship.graphs import EXTERNAL_OVER
from trtship.input_values import InputDomain, TriedInput
from trtship.measure import Measure
from trtship.needs import need
from trtship.progress import SILENT, Progress
from trtship.spec import Record, ShapeRange, SizeRule, TensorSpec, allowed_by, batch_letter

EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")
DEFAULT_OPSET = 20
OPSETS = range(17, 24)
"""17 brought LayerNormalization as one operator, which the precision pass relies on."""

TRACED = 2
"""The batch size to trace with: torch.export specializes on 0 and 1."""


class ExportReport(Record, frozen=True):
    """How the graph was made and how far it is from PyTorch; `fell_back` says why the dynamo exporter was not used,
    `thawed` names the nodes in which the batch was a constant and is dynamic again, `inputs` tell what values it was
    checked on. `rules` are the conditions on sizes under which the graph is the model."""

    exporter: str
    opset: int
    traced: dict[str, int]
    fell_back: str
    bound: float
    bound_from: str
    checks: tuple[Measure, ...]
    outputs: tuple[TensorSpec, ...]
    thawed: tuple[str, ...] = ()
    inputs: tuple[TriedInput, ...] = ()
    rules: tuple[SizeRule, ...] = ()


def onnx_from_torch(
    module: Any,
    target: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    ranges: Mapping[str, ShapeRange] | None = None,
    opset: int | None = None,
    exporter: Exporter | None = None,
    thaw: Thaw | None = None,
    external_over: int = EXTERNAL_OVER,
    domains: Mapping[str, InputDomain] | None = None,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write `module` to `target` as a checked ONNX graph; each letter of `inputs` becomes a dynamic size of that name.

    Args:
        module: The module, in eval mode, on the CPU. The exporters run on copies of it.
        target: The ONNX file; weights of more than `external_over` bytes go to `target.name + ".data"`.
        inputs: The inputs, in the order of forward's arguments.
        outputs: Names for the outputs.
        ranges: The sizes of the letters that will be used; only the batch may lack one. Their MIN, OPT and MAX must
            keep to the rules of the graph.
        opset: The ONNX opset, 20 unless given.
        exporter: The only exporter to try.
        thaw: Gets a graph that is wrong at other batches than the traced one; the graph is then checked again.
        external_over: In bytes.
        domains: The values that each input may hold.
        progress: Is told of stages, of the fallback, and of each rule.

    Returns:
        What was made, with the rules on sizes under which it is the model.

    Raises:
        SpecError: an opset that is not supported, a letter without a range, a range that breaks a rule.
        GraphError: no exporter takes the model, or the model decides by the values of its inputs.
        SourceError: the model itself fails, or gives NaN.
        ExportMismatchError: the graph is not the model at some size.
    """
    check_opset(opset)
    need("torch", purpose="exporting a PyTorch model")
    need("onnxscript", purpose="exporting to ONNX")
    ranges, batch = dict(ranges or {}), batch_letter(inputs)
    traced = traced_sizes(inputs, ranges)
    job = Job(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        traced=traced,
        ranges={letter: sizes for letter, sizes in ranges.items() if letter in traced},
        opset=DEFAULT_OPSET if opset is None else opset,
        external_over=external_over,
        domains=domains,
    )
    exporting = _Exporting(module, target, job, batch, thaw, progress)
    failures: list[TrtshipError] = []
    for candidate in [exporter] if exporter else EXPORTERS:
        try:
            return exporting.run(candidate, fell_back=_line(failures[0]) if failures else "")
        except (GraphError, GateError, SpecError) as error:
            failures.append(error)
            if exporting.is_final or exporter is not None or candidate == EXPORTERS[-1]:
                break
            progress.note(f"the {candidate} exporter will not do: {_line(error)}; trying the TorchScript exporter")
    if exporting.is_final:
        raise failures[-1]
    wrong = [f for f in failures if isinstance(f, ExportMismatchError | SpecError)]
    first = (wrong or failures)[0]  # the dynamo exporter's graph tells the lines of the model
    raise _with_decision(first, module, job) if isinstance(first, ExportMismatchError) else first


class _Exporting:
    """One module on its way through the exporters, and what is known of it: `conditions` once torch.export has run, and
    whether a failure is one of the model's, which no exporter changes."""

    def __init__(
        self, module: Any, target: Path, job: Job, batch: str | None, thaw: Thaw | None, progress: Progress
    ) -> None:
        self.module, self.target, self.job, self.thaw, self.progress = module, target, job, thaw, progress
        self.asked = Asked(job.ranges, job.traced, batch)
        self.conditions: Conditions | None = None
        self.is_final = self._is_captured = False

    def run(self, exporter: Exporter, *, fell_back: str) -> ExportReport:
        """Export, check, and settle the rules. Raises GraphError, GateError, SpecError."""
        job = self.job
        with self.progress.stage("export", f"with the {exporter} exporter, opset {job.opset}"):
            made = self._made(exporter)
        with self.progress.stage("check the export", "against PyTorch"):
            checked, thawed, conditions = self._checked(made)
        tell_rules(conditions, self.progress)
        return ExportReport(
            exporter=exporter,
            opset=job.opset,
            traced=job.traced,
            fell_back=fell_back,
            bound=checked.bound,
            bound_from=checked.bound_from,
            checks=checked.measures,
            outputs=settle_outputs(
                self.target,
                checked.outputs,
                checked.shapes,
                sizes=[m.sizes for m in checked.measures if m.output == job.outputs[0]],
                external_over=job.external_over,
            ),
            thawed=thawed,
            rules=tuple(condition.rule for condition in conditions),
        )

    def _made(self, exporter: Exporter) -> Made:
        """The exporter's graph, written. Raises GraphError."""
        if exporter == "torchscript":
            if not self._is_captured:
                self._learn(conditions_only)
            made = export_torchscript(self.module, self.job, self.target, self.conditions)
        else:
            made = self._learn(export_dynamo)
        if made.decides is not None:
            self.is_final = True
            raise _decides(made.decides)
        if made.traced.differs:
            self.is_final = True
            raise _frozen_value(made.traced.differs)
        unknown = self.conditions.unknown if self.conditions and exporter == "dynamo" else ()
        if made.failure or unknown:
            raise GraphError(
                f"the {exporter} exporter cannot export this model",
                why=made.failure
                or f"it relies on a condition on sizes that trtship cannot write as a rule: {unknown[0]}",
                do="try the other --exporter, or another --opset; --debug shows the exporter's own traceback",
            ) from (ChildTraceback(made.details) if made.details else None)
        return made

    def _learn(self, run: Any) -> Made:
        """Run torch.export, and keep what it relied on. Raises GraphError where the model decides by values."""
        self._is_captured = True
        try:
            made: Made = run(self.module, self.job, self.target)
        except ExporterDied:
            if run is conditions_only:  # the TorchScript exporter was asked for: traces at other sizes stand in
                return Made()
            raise
        self.conditions = made.conditions
        if made.decides is not None:
            self.is_final = True
            raise _decides(made.decides)
        return made

    def _checked(self, made: Made) -> tuple[Checked, tuple[str, ...], tuple[Condition, ...]]:
        """What the check found, the nodes that were mended, and the conditions that stay."""
        job, asked = self.job, self.asked
        known = self.conditions.known if self.conditions else ()
        # a batch that became a constant by arithmetic: other batches are compared below, which proves more
        known = tuple(condition for condition in known if not freezes_batch(condition, asked))
        frozen = asked.batch is not None and self.conditions is not None and asked.batch in self.conditions.fixed
        # a batch that became a constant is a fault, to be mended, before it is a rule
        strict = [c.rule for c in known if not (frozen and asked.batch in c.rule.letters)]

        def check(rules: Sequence[SizeRule]) -> Checked:
            return check_export(
                self.module,
                self.target,
                inputs=job.inputs,
                outputs=job.outputs,
                traced=job.traced,
                ranges=job.ranges,
                allowed=allowed_by(rules),
                suspects=made.traced.suspects,
                domains=job.domains,
            )

        checked, thawed = check_and_mend(
            lambda: check(strict),
            self.target,
            thaw=self.thaw,
            batch=asked.batch,
            traced=job.traced.get(asked.batch or "", TRACED),
            sizes=job.traced,
            external_over=job.external_over,
            progress=self.progress,
        )
        kept = excluding = that_exclude(known, asked)
        if excluding:
            with comparing(
                self.module, self.target, inputs=job.inputs, outputs=job.outputs, domains=job.domains
            ) as comparer:
                kept = settle_rules(excluding, asked, comparer)
        try:
            refuse_broken_corners(kept, asked)
        except SpecError:
            self.is_final = any(condition.decides for condition in kept)
            raise
        dropped = [condition for condition in excluding if condition not in kept]
        rules = [condition.rule for condition in known if condition not in dropped]
        if self._to_compare(rules) != self._to_compare(strict):  # sizes that were left out at first
            checked = check(rules)
        return checked, thawed, kept

    def _to_compare(self, rules: Sequence[SizeRule]) -> tuple[dict[str, int], ...]:
        return sizes_to_compare(
            self.job.traced,
            self.job.ranges,
            batch=self.asked.batch,
            allowed=allowed_by(rules),
        )


DECIDE_OTHERWISE = "write it with torch.where or torch.cond, or decide outside the model and export each case"


def _decides(line: Line) -> GraphError:
    return GraphError(
        "the model decides by the values of its inputs in Python, which a graph cannot",
        why=f"{line}; an exported graph would do the same for every input as for the example",
        do=DECIDE_OTHERWISE,
    )


def _with_decision(error: ExportMismatchError, module: Any, job: Job) -> ExportMismatchError:
    """Return the error with the line at which the model takes values into Python, if there is one: some models skip
    that line while they are exported (`if not torch.compiler.is_compiling()`), and no exporter sees it."""
    lines = value_lines(module, example_of(job))
    if not lines:
        return error
    why = f"{error.why}; in PyTorch the model decides by the values of its inputs in Python at {lines[0]}"
    return ExportMismatchError(error.what, why=why, do=DECIDE_OTHERWISE)


def _frozen_value(difference: str) -> GraphError:
    return GraphError(
        "the model makes constants of the values of its inputs",
        why=difference,
        do="find where it takes numbers out of tensors (compiled code, data_ptr), and use PyTorch's operators there",
    )


def check_opset(opset: int | None) -> None:
    """Raises SpecError for one that is not supported; None is the default."""
    if opset is not None and opset not in OPSETS:
        raise SpecError(
            f"--opset {opset} is not supported",
            why=f"it takes {OPSETS[0]} to {OPSETS[-1]}",
            do=f"leave it away for {DEFAULT_OPSET}",
        )


def traced_sizes(inputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange]) -> dict[str, int]:
    """Return the size that each letter has in the example: 2 for the batch, or the least of its range that is more; OPT
    for the others. Raises SpecError for one of these that has no range: a model need not take any size that one could
    guess."""
    batch = batch_letter(inputs)
    letters = dict.fromkeys(letter for spec in inputs for letter in spec.letters)
    missing = [letter for letter in letters if letter != batch and letter not in ranges]
    if missing:
        raise SpecError(
            f"no range for the dynamic size {missing[0]}",
            why=f"the inputs are {', '.join(map(str, inputs))}",
            do=f"add --size {missing[0]}=MIN:OPT:MAX",
        )
    return {
        letter: (max(TRACED, ranges[letter].min) if letter in ranges else TRACED)
        if letter == batch
        else ranges[letter].opt
        for letter in letters
    }


def _line(error: TrtshipError) -> str:
    return (error.why or error.what).strip().splitlines()[0][:200]
