"""ONNX graphs, for every room that handles them: files, what their operators do, and how far rounding moves them."""

from trtship.graphs.rounding import RoundingBound, precision_of, rounding_bound
from trtship.graphs.storage import EXTERNAL_OVER, check_graph, graph_files, load_graph, save_graph

__all__ = [
    "EXTERNAL_OVER",
    "RoundingBound",
    "check_graph",
    "graph_files",
    "load_graph",
    "precision_of",
    "rounding_bound",
    "save_graph",
]
