"""Triton's own schema, and the rules of its core and backends that a config must keep to load."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf import text_format


def _schema() -> ModuleType:
    """tritonclient's model_config_pb2, generated from Triton's model_config.proto; loaded alone, since the package
    around it imports grpc."""
    file = next(f for f in metadata.files("tritonclient") or () if f.match("tritonclient/grpc/model_config_pb2.py"))
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(file.locate()))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA = _schema()


def parsed(text: str) -> Any:
    """A ModelConfig; fails for a field that the schema has not, or a value of another kind."""
    return text_format.Parse(text, SCHEMA.ModelConfig())


def type_name(value: int) -> str:
    return str(SCHEMA.DataType.Name(value))


def loaded(text: str, *, model: Path | None = None) -> Any:
    """The config, checked as tritonserver checks it when it loads a model: model_config_utils.cc (ValidateModelConfig,
    ValidateModelIOConfig), instance_state.cc (ValidateGraphSpec), backend_model_instance.cc (GenerateWarmupData)."""
    config = parsed(text)
    assert (config.platform, config.backend) in (("tensorrt_plan", "tensorrt"), ("onnxruntime_onnx", "onnxruntime"))
    for tensor in (*config.input, *config.output):
        assert tensor.name
        assert tensor.data_type != SCHEMA.TYPE_INVALID
        assert tensor.dims
        assert all(dim >= 1 or dim == -1 for dim in tensor.dims)
        assert not tensor.HasField("reshape") or config.max_batch_size > 0
    for size in config.dynamic_batching.preferred_batch_size:
        assert 0 < size <= config.max_batch_size
    for spec in config.optimization.cuda.graph_spec:
        assert (spec.batch_size == 0) if config.max_batch_size == 0 else (1 <= spec.batch_size <= config.max_batch_size)
        assert not spec.input or set(spec.input) == {tensor.name for tensor in config.input}
    for sample in config.model_warmup:
        assert 1 <= sample.batch_size <= max(config.max_batch_size, 1)
        assert set(sample.inputs) == {tensor.name for tensor in config.input}
        for tensor in config.input:
            own = sample.inputs[tensor.name]
            assert own.data_type == tensor.data_type
            assert own.WhichOneof("input_data_type") == "zero_data"
            assert len(own.dims) == len(tensor.dims)
            assert all(given == dim or dim == -1 for given, dim in zip(own.dims, tensor.dims, strict=True))
            assert all(dim >= 1 for dim in own.dims)
    for group in config.instance_group:
        assert group.count >= 1
        assert group.kind == SCHEMA.ModelInstanceGroup.KIND_GPU
        assert not group.profile or config.backend == "tensorrt"
    if model is not None:
        assert config.name == model.name
        (version,) = config.version_policy.specific.versions
        assert (model / str(version) / config.default_model_filename).is_file()
        for tensor in config.output:
            assert not tensor.label_filename or (model / tensor.label_filename).is_file()
    return config
