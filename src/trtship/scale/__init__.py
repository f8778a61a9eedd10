"""Hand a bundle over to what serves it at scale: a Triton model repository."""

from trtship.scale.repository import Exported, export_triton

__all__ = ["Exported", "export_triton"]
