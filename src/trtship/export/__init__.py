"""torch.nn.Module -> ONNX graph, checked against PyTorch before anybody may use it."""

from trtship.export.onnx import EXPORTERS, ExportReport, onnx_from_torch
from trtship.export.sizes import sizes_around
from trtship.export.source import export_source, graph_from_source

__all__ = ["EXPORTERS", "ExportReport", "export_source", "graph_from_source", "onnx_from_torch", "sizes_around"]
