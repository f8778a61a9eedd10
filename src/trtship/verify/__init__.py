"""Is what will be shipped still the model? Comparisons, probes, evaluation, and the verdicts that record them."""

from trtship.verify.attack import attack
from trtship.verify.compare import compare
from trtship.verify.evaluate import Evaluation, Picture, evaluate
from trtship.verify.probes import Attack, Probe, all_probes
from trtship.verify.reference import Reference
from trtship.verify.verdict import Bound, Verdict, not_run

__all__ = [
    "Attack",
    "Bound",
    "Evaluation",
    "Picture",
    "Probe",
    "Reference",
    "Verdict",
    "all_probes",
    "attack",
    "compare",
    "evaluate",
    "not_run",
]
