"""Which TensorRT is here, and the calls in which its families and versions differ."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from trtship.errors import BuildError, DependencyError, SpecError
from trtship.family.context import refused
from trtship.family.engine import Engine
from trtship.family.logger import logger_of, recording
from trtship.family.profiles import Profile
from trtship.family.spares import Owner
from trtship.family.tf32 import environment, environment_for, settle

# family -> names under which pip may have installed it, and what installs it
FAMILIES: dict[str, tuple[tuple[str, ...], str]] = {
    "tensorrt": (("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "pip install 'trtship[tensorrt]'"),
    "tensorrt_rtx": (("tensorrt-rtx", "tensorrt_rtx"), "pip install 'trtship[rtx]'"),
}

StepCallback = Callable[[float, str], bool]


class ParseProblem(msgspec.Struct, frozen=True):
    """One thing that TensorRT's ONNX parser refused: its code, its words, the node and the node's operator."""

    code: str
    text: str
    node: str
    operator: str


def installed_families() -> dict[str, str]:
    """`{"tensorrt_rtx": "1.6.1.120"}`: what pip has installed, without importing it."""
    found = {}
    for family, (names, _) in FAMILIES.items():
        for name in names:
            try:
                found[family] = version(name)
                break
            except PackageNotFoundError:
                continue
    return found


def check_family(name: object) -> None:
    """Raises SpecError for what is no family's name, installed or not."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise SpecError(
            f"unknown TensorRT family {name!r}",
            why=f"the families are {', '.join(FAMILIES)}",
            do="name one, or leave it away",
        )


def choose_family(wanted: str | None = None, *, tf32: bool = True) -> tuple[Family, str]:
    """The family to use and one sentence why. `tf32=False`: fp32 products must not be multiplied in TF32.

    Raises SpecError for a name unknown, DependencyError where none is usable.

    Full TensorRT is preferred where both are installed and it can be imported: it supports every GPU.
    """
    if wanted is not None:
        check_family(wanted)
    present = installed_families()
    broken = []
    for name in [wanted] if wanted else [f for f in FAMILIES if f in present]:
        try:
            family = Family(name, tf32=tf32)
        except DependencyError as error:
            broken.append(f"{name}: {error.why}")
            continue
        why = "as asked" if wanted else "the only one installed" if len(present) == 1 else "preferred where both are"
        return family, f"{family}, {why}" + (f" ({'; '.join(broken)})" if broken else "")
    names = [wanted] if wanted else ["tensorrt_rtx"]
    raise DependencyError(
        f"no usable {wanted or 'TensorRT'} on this machine",
        why="; ".join(broken) or "it is not installed",
        do=FAMILIES[names[0]][1] + "; trtship doctor shows what fits this machine",
    )


class Family:
    """One installed TensorRT, imported. `name` is `tensorrt` or `tensorrt_rtx`, `version` its own version string."""

    def __init__(self, name: str, *, tf32: bool = True) -> None:
        settle(name, tf32=tf32)
        try:
            self.module: Any = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            why = "it is not installed" if isinstance(error, ModuleNotFoundError) else f"importing it failed: {error}"
            raise DependencyError(f"cannot use {name}", why=why, do=FAMILIES[name][1]) from error
        self.name = name
        self.version: str = self.module.__version__
        self.logger = logger_of(self.module)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt_rtx"

    def builds_without_gpu(self) -> bool:
        """TensorRT for RTX builds ahead of time; full TensorRT times kernels on the GPU that it builds for."""
        return self.is_rtx

    def compute_capabilities(self) -> dict[str, Any]:
        """What `--target` may name, `{"8.6": ComputeCapability.SM86}`; empty for full TensorRT."""
        known = getattr(self.module, "ComputeCapability", None)
        if not self.is_rtx or known is None:
            return {}
        members = [m for m in known.__members__.values() if m.name.startswith("SM")]
        return {f"{m.name[2:-1]}.{m.name[-1]}": m for m in members} | {"current": known.CURRENT}

    def environment(self, *, tf32: bool) -> dict[str, str]:
        """Variables that a plan built with this choice needs wherever it runs; see `trtship.family.tf32`."""
        return environment_for(self.name, tf32=tf32)

    def times_kernels(self) -> bool:
        """Whether a build times kernels, so that `timings` of an earlier one make it shorter."""
        return not self.is_rtx

    def create_builder(self) -> Any:
        try:
            return self.module.Builder(self.logger)
        except TypeError as error:  # pybind11's word for a factory that returned null
            raise BuildError(
                f"{self} could not create a builder",
                why="" if self.is_rtx else "full TensorRT needs an NVIDIA GPU and its driver to build",
                do="trtship doctor shows what this machine lacks; --family tensorrt_rtx builds without a GPU",
            ) from error

    def create_network(self, builder: Any) -> Any:
        """A strongly typed network. 11.x knows no other kind; it takes the flag, and ignores it."""
        return builder.create_network(1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    def parse(self, network: Any, graph: Path) -> tuple[ParseProblem, ...]:
        """Read an ONNX file into the network; empty when all of it was understood.

        The parser reads external data from the file's own folder.
        """
        parser = self.module.OnnxParser(network, self.logger)
        if parser.parse_from_file(str(graph)):
            return ()
        problems = []
        for i in range(parser.num_errors):
            error = parser.get_error(i)
            code = str(error.code()).rsplit(".", 1)[-1]
            problems.append(
                ParseProblem(code, error.desc(), error.node_name() or f"#{error.node()}", error.node_operator())
            )
        return tuple(problems) or (ParseProblem("UNKNOWN", "the parser gave no reason", "", ""),)

    def create_config(
        self,
        builder: Any,
        network: Any,
        *,
        profiles: Sequence[Profile],
        tf32: bool,
        targets: Sequence[str],
        on_step: StepCallback,
        timings: bytes | None = None,
    ) -> Any:
        """The builder's configuration: `profiles` in their order, TF32 or not. `timings` are what `self.timings` gave
        after an earlier build, b"" for none; it must be bytes whose hash was checked. None: they will not be asked for.
        """
        config = builder.create_builder_config()
        for shapes in profiles:
            profile = builder.create_optimization_profile()
            for name, (low, opt, high) in shapes.items():
                profile.set_shape(name, low, opt, high)
            if config.add_optimization_profile(profile) < 0:
                raise BuildError("TensorRT refused the optimization profile", why=f"shapes: {dict(shapes)}")
        (config.set_flag if tf32 else config.clear_flag)(self.module.BuilderFlag.TF32)
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED
        if targets:
            known = self.compute_capabilities()
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                config.set_compute_capability(known[target], index)
        config.progress_monitor = progress_monitor(self.module, on_step)
        if timings is not None and not config.set_timing_cache(config.create_timing_cache(timings), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)  # of another GPU, or another TensorRT
        return config

    def timings(self, config: Any) -> bytes:
        """All kernels' times that a build with this configuration measured or was given; b"" where it kept none."""
        timing_cache = config.get_timing_cache()
        memory = None if timing_cache is None else timing_cache.serialize()
        return b"" if memory is None else bytes(memory)

    def build(self, builder: Any, network: Any, config: Any, *, tf32: bool) -> bytes | None:
        """The serialized plan, or None where TensorRT failed or was cancelled: its log tells."""
        with environment(self.environment(tf32=tf32)):
            plan = builder.build_serialized_network(network, config)
        return None if plan is None else bytes(plan)

    def load(self, plan: bytes, *, tf32: bool = True, kernels: bytes = b"", owner: Owner | None = None) -> Engine:
        """Deserialize; `tf32` as the plan was built, `kernels` as an engine of the same plan serialized them. With an
        `owner`, kernels that an engine of the same owner left in this process when it was closed are used in place of
        those. Raises DeviceError.

        Only ever call this with bytes whose hash was checked: a plan is code, and so are kernels.
        """
        with recording(self.module) as log:
            try:
                runtime = self.module.Runtime(self.logger)
                engine = runtime.deserialize_cuda_engine(plan)
            except TypeError:  # pybind11's word for a factory that returned null
                engine = None
        if engine is None:
            reasons = [line[4:] for line in log if line.startswith(("[E]", "[F]"))]
            raise type(refused("", log))(  # GpuMemoryError, or DeviceError
                f"{self} cannot load this plan here",
                why=reasons[0] if reasons else "it gave no reason",
                do="trtship doctor shows what this machine has; trtship.load rebuilds a plan that does not fit",
            )
        return Engine(
            self.module,
            engine,
            runtime,
            variables=self.environment(tf32=tf32),
            kernels=kernels,
            owner=owner,
            plan_size=len(plan),
        )


def progress_monitor(module: Any, on_step: StepCallback) -> Any:
    """An IProgressMonitor that reports the fraction done of the outermost phase, with the innermost phase's name.

    A phase's steps share its own part of its parent's current step evenly. `on_step` returns False to cancel.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.steps: dict[str, tuple[str | None, int, int]] = {}

        def fraction(self, name: str | None) -> float:
            if name is None or name not in self.steps:
                return 0.0
            parent, total, done = self.steps[name]
            within = done / max(total, 1)
            if parent is None or parent not in self.steps:
                return within
            return self.fraction(parent) + within / max(self.steps[parent][1], 1)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = (parent_phase, num_steps, 0)
            on_step(min(self.fraction(phase_name), 1.0), phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            parent, total, _ = self.steps.get(phase_name, (None, 1, 0))
            self.steps[phase_name] = (parent, total, step + 1)
            return on_step(min(self.fraction(phase_name), 1.0), phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()
