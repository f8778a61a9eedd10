"""Run tensors through anything: torch, onnxruntime, TensorRT."""
