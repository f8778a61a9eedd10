"""ONNX graph -> TensorRT plan: build with progress, cancel cleanly, and say what went wrong."""

from trtship.engine.build import BuildReport, Plan, check_can_build, plan_from_onnx
from trtship.engine.file import plan_file_from_onnx

__all__ = ["BuildReport", "Plan", "check_can_build", "plan_file_from_onnx", "plan_from_onnx"]
