"""ONNX graph -> TensorRT plan: build with progress, cancel cleanly, say what went wrong, and what the plan runs."""

from trtship.engine.apart import plan_apart, sturdy_plan
from trtship.engine.build import BuildReport, Plan, check_can_build, plan_from_onnx
from trtship.engine.file import plan_file_from_onnx
from trtship.engine.kernels import KernelReport, kernels_of
from trtship.engine.layers import LAYERS_FILE, PlanLayers

__all__ = [
    "LAYERS_FILE",
    "BuildReport",
    "KernelReport",
    "Plan",
    "PlanLayers",
    "check_can_build",
    "kernels_of",
    "plan_apart",
    "plan_file_from_onnx",
    "plan_from_onnx",
    "sturdy_plan",
]
