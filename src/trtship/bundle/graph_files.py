"""The ONNX graphs of a bundle, opened from bytes whose hash was checked, never again by their name in the bundle.

A file may be exchanged at any moment after it was hashed. So a graph is read once: its bytes are hashed, searched for
external data that the manifest does not list, and given to onnxruntime as they are. Where code needs a path, or the
graph has external data, it gets a private copy that was hashed while it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from trtship.bundle.bundle import Bundle
from trtship.bundle.external_data import external_locations
from trtship.errors import BundleError
from trtship.files import temporary_folder, writing
from trtship.session.onnxruntime import OnnxRuntimeSession


@contextmanager
def graph_source(bundle: Bundle, name: str) -> Iterator[bytes | Path]:
    """What to open the graph `name` of a bundle from: its bytes, or the path of a private copy, with its external data.

    The copy is gone when the block ends: onnxruntime has mapped, or read, the data once it has opened the graph.

    Raises BundleCorruptError where the bytes are not the manifest's, BundleError for external data that the manifest
    does not list, GraphError for what is no ONNX graph.
    """
    data = bundle.read(name)
    if not _data_files(bundle, name, data):
        yield data
        return
    del data
    with temporary_folder() as folder:
        yield copy_graph(bundle, name, folder)


def graph_session(bundle: Bundle, name: str) -> OnnxRuntimeSession:
    """Open the graph `name` of a bundle with onnxruntime, on the CPU.

    Raises what `graph_source` and `OnnxRuntimeSession` raise.
    """
    with graph_source(bundle, name) as graph:
        return OnnxRuntimeSession(graph, name=str(bundle.folder / name))


def copy_graph(bundle: Bundle, name: str, folder: Path) -> Path:
    """Write the graph `name` and its external data to `folder`, hashed on the way; return the graph's path there.

    Raises BundleCorruptError, BundleError, GraphError, as `graph_source`; OutputError where `folder` cannot be written.
    """
    data = bundle.read(name)
    target = folder / PurePosixPath(name).name
    files = _data_files(bundle, name, data)
    with writing(target):
        target.write_bytes(data)
        del data
        for file in files:
            place = folder / PurePosixPath(file).relative_to(PurePosixPath(name).parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as out:
                bundle.copy(file, out)
    return target


@contextmanager
def private_graphs(bundle: Bundle) -> Iterator[Callable[[str], Path]]:
    """A function from a graph's name to the path of a private copy, made when it is first asked for.

    The copies are gone when the block ends. The function raises what `copy_graph` raises.
    """
    with temporary_folder() as folder:
        made: dict[str, Path] = {}

        def path(name: str) -> Path:
            if name not in made:
                place = folder / str(len(made))
                place.mkdir()
                made[name] = copy_graph(bundle, name, place)
            return made[name]

        yield path


def _data_files(bundle: Bundle, name: str, data: bytes) -> tuple[str, ...]:
    """The files of the manifest that the graph keeps tensors in. Raises BundleError for any other file."""
    what = str(bundle.folder / name)
    parent = PurePosixPath(name).parent
    found = []
    for location in external_locations(data, what=what):
        plain = PurePosixPath(location)
        file = str(parent / plain)
        if plain.is_absolute() or ".." in plain.parts or str(plain) != location or file not in bundle.manifest.files:
            raise BundleError(
                f"{what} is not opened",
                why=f"it keeps tensors in {location!r}, which the bundle's manifest does not list: nobody hashed them",
                do="deploy the model again, or copy the bundle again from where it was made",
            )
        found.append(file)
    return tuple(found)
