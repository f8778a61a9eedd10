"""Is what will be shipped still the model? Comparisons, evaluation, gates, and the verdicts that record them."""

from trtship.verify.compare import compare
from trtship.verify.evaluate import Evaluation, Picture, evaluate
from trtship.verify.reference import Reference
from trtship.verify.verdict import Bound, Verdict, not_run

__all__ = ["Bound", "Evaluation", "Picture", "Reference", "Verdict", "compare", "evaluate", "not_run"]
