"""`model.onnx`: a graph that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from trtship.errors import GraphError, SourceError, SpecError
from trtship.files import sha256_of
from trtship.graphs.wellformed import check_wellformed
from trtship.needs import need
from trtship.progress import SILENT, Progress
from trtship.sources.base import Source
from trtship.sources.graph_specs import specs_of_graph
from trtship.sources.inputs import one_line
from trtship.sources.loaded import LoadedGraph
from trtship.sources.options import SourceOptions


class OnnxSource(Source):
    kind: ClassVar[str] = "onnx"
    form: ClassVar[str] = "path/to/model.onnx"

    @classmethod
    def accepts(cls, text: str) -> bool:
        return text.endswith(".onnx")

    @classmethod
    def parse(cls, text: str) -> Source:
        return cls(text)

    def check_files(self, options: SourceOptions) -> None:
        if not Path(self.name).is_file():
            why = "it is a folder" if Path(self.name).is_dir() else "no such file"
            raise SourceError(f"there is no ONNX file {self.name}", why=why, do="check the path")

    def check_weights(self, options: SourceOptions) -> None:
        given = {
            "--checkpoint": options.checkpoint is not None,
            "--pretrained": options.pretrained,
            "--random-weights": options.random_weights,
            "--model-arg": bool(options.model_args),
            "--input": bool(options.inputs),
        }
        for flag, is_given in given.items():
            if is_given:
                raise SpecError(
                    f"{flag} does not apply to {self.name}",
                    why="an ONNX file has its weights, its arguments and its inputs inside",
                    do=f"leave {flag} out",
                )

    def fingerprint(self, options: SourceOptions) -> dict[str, str]:
        path = Path(self.name)
        data = external_data_of(path, read_graph(path))
        return {
            "source": self.kind,
            "graph": sha256_of(path),
            **{f"data {file.relative_to(path.parent)}": sha256_of(file) for file in data},
        }

    def load(self, options: SourceOptions, progress: Progress = SILENT) -> LoadedGraph:
        path = Path(self.name)
        with progress.stage("load", options.source):
            model = read_graph(path)
            external = external_data_of(path, model)
            _check(path)
            inputs, outputs, notes = specs_of_graph(model)
            for note in notes:
                progress.note(note)
            return LoadedGraph(
                source=options.source,
                path=path,
                external_data=external,
                inputs=inputs,
                outputs=outputs,
                opset=max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
                notes=notes,
            )


def read_graph(path: Path) -> Any:
    """The `onnx.ModelProto` without its external data. Raises GraphError for what is no ONNX file."""
    onnx = need("onnx", purpose=f"reading {path}")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:
        raise GraphError(
            f"{path} is not an ONNX file", why=f"it cannot be parsed ({one_line(error)})", do="export it again"
        ) from error
    if not model.ir_version or not model.graph.node:
        raise GraphError(f"{path} is not an ONNX file", why="it holds no graph", do="export it again")
    return model


def external_data_of(path: Path, model: Any) -> tuple[Path, ...]:
    """Return the files beside `path` that hold the graph's weights. Raises GraphError for a graph that is none (see
    `trtship.graphs.wellformed`), and for a data file that is missing, short or elsewhere."""
    return check_wellformed(model, path)


def _check(path: Path) -> None:
    checker = need("onnx.checker", purpose=f"checking {path}")
    try:
        checker.check_model(str(path))
    except Exception as error:
        raise GraphError(f"{path} is not a valid ONNX graph", why=one_line(error), do="export it again") from error
