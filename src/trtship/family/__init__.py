"""The one adapter over TensorRT's two families. No other room imports TensorRT.

`tensorrt_rtx` (TensorRT for RTX, 1.4 to 1.7) installs from PyPI alone and builds plans without a GPU; `tensorrt`
(10.x and 11.x) is the full library, preferred on data-centre GPUs. What differs between them is in `family.py`;
`engine.py` is a loaded plan, `logger.py` the process-wide log.
"""

from trtship.family.engine import Engine
from trtship.family.family import FAMILIES, Family, ParseProblem, check_family, choose_family, installed_families

__all__ = ["FAMILIES", "Engine", "Family", "ParseProblem", "check_family", "choose_family", "installed_families"]
