"""Checkpoint files: which format a file has, by its content, its SHA-256, and what it holds.

Three formats are read: safetensors, what `torch.save` writes (read with `weights_only=True` alone), and the JSON index
of a checkpoint in shards (`model.safetensors.index.json`, `pytorch_model.bin.index.json`). A name says nothing:
links in the Hugging Face cache have none, and `.ckpt`, `.pth.tar` and `.bin` are all written by `torch.save`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import re
import stat
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

from trtship.errors import CheckpointError
from trtship.needs import need
from trtship.sources.checkpoint_pickles import danger_in
from trtship.sources.checkpoint_tensors import why_unusable
from trtship.sources.checkpoint_trees import printable
from trtship.sources.inputs import one_line

FileFormat = Literal["safetensors", "torch", "index"]

READ = "checkpoints are .safetensors files, files of torch.save, and the .index.json of such files in shards"
MAX_INDEX_BYTES = 64 * 2**20
MAX_SHARDS = 500
# the limit of safetensors itself, in its Rust source
MAX_SAFETENSORS_HEADER_BYTES = 100_000_000
# torch.serialization.MAGIC_NUMBER as pickle writes it: the first object of a file in torch's format before 1.6
LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
OTHER_FORMATS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself (git lfs pull fetches it)",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"\x89HDF": "an HDF5 file, such as Keras writes",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"GGUF": "a GGUF file",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"<": "a web page or XML",
    b"\x80": "a pickle that torch.save did not write",
}


def check_checkpoint_file(path: Path) -> None:
    """Check that `path` is a file in a format that is read; an index's shards are checked as well.

    Raises:
        CheckpointError: If it is not.
    """
    with _opened(path) as file:
        if _format_of(file, path) == "index":
            _, shards = _read_index(file, path)
            for shard in shards:
                with _opened(shard) as opened:
                    _format_of_shard(opened, shard)


def checkpoint_digest(path: Path) -> str:
    """Return the hex SHA-256 of a checkpoint: of the file's bytes, or of an index and all its shards.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    with _opened(path) as file:
        return _digest(file, path)[0]


@contextmanager
def opened_checkpoint(path: Path, *, digest: str | None = None) -> Iterator[Any]:
    """Give what the checkpoint holds, read through the same open files that were hashed.

    Args:
        path: The checkpoint.
        digest: The `checkpoint_digest` that it must have; None for any.

    Yields:
        A mapping from key to tensor, or whatever else the file holds: nothing of it is checked. Tensors may be views
        of the file, so they are copied before the block ends.

    Raises:
        CheckpointError: If the file cannot be read, does not have `digest`, or changes inside the block.
    """
    with ExitStack() as stack:
        file = stack.enter_context(_opened(path))
        stamps = [(file, path, _stamp(file))]
        kind = _format_of(file, path)
        if kind == "index":
            weight_map, shards = _read_index(file, path)
            opened = [stack.enter_context(_opened(shard)) for shard in shards]
            stamps += [(shard, where, _stamp(shard)) for shard, where in zip(opened, shards, strict=True)]
            found = _digest_of([file, *opened], shards)
        else:
            found = _digest_of([file], [])
        if digest not in (None, found):
            raise _changed(path)
        if kind == "index":
            content: Any = _join(path, weight_map, dict(zip(shards, opened, strict=True)))
        else:
            content = _read(file, path, kind)
        yield content
        for each, where, stamp in stamps:
            if _stamp(each) != stamp:
                raise _changed(where)


def check_plain_weights(path: Path) -> None:
    """Check a file that a library reads on its own: its format, and that it holds named tensors with values only.

    Raises:
        CheckpointError: If it does not.
    """
    with opened_checkpoint(path) as content:
        if not isinstance(content, Mapping):
            raise _unknown(path, f"a {type(content).__name__}, not a mapping from names to tensors")
        for key, value in content.items():
            problem = f"is a key of type {type(key).__name__}" if not isinstance(key, str) else why_unusable(value)
            if problem is not None:
                name = printable(key) if isinstance(key, str) else "it"
                raise _unknown(path, f"not a mapping from names to tensors ({name} {problem})")


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file, without waiting for a FIFO's other end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else one_line(error)
        raise CheckpointError(f"there is no checkpoint {path}", why=why, do="check the path") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        inside = sorted(path.glob("*.index.json")) or sorted(path.glob("*.safetensors"))
        raise CheckpointError(
            f"there is no checkpoint {path}",
            why="it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file",
            do=f"name a file, for example {inside[0]}" if inside else "check the path",
        )
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _stamp(file: BufferedReader) -> tuple[int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} changed while it was read",
        why="its bytes are not those that were hashed",
        do="wait until it is written, and try again",
    )


def _digest(file: BufferedReader, path: Path) -> tuple[str, list[Path]]:
    """The digest of a checkpoint, and its shards."""
    if not _begins_as_index(file, path):
        return _digest_of([file], []), []
    _, shards = _read_index(file, path)
    with ExitStack() as stack:
        return _digest_of([file, *(stack.enter_context(_opened(shard)) for shard in shards)], shards), shards


def _digest_of(files: list[BufferedReader], shards: list[Path]) -> str:
    each = [_sha256(file) for file in files]
    if not shards:
        return each[0]
    names = ["index", *(shard.name for shard in shards)]
    return hashlib.sha256("\n".join(f"{d} {n}" for d, n in zip(each, names, strict=True)).encode()).hexdigest()


def _sha256(file: BufferedReader) -> str:
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return digest


def _head(file: BufferedReader) -> bytes:
    file.seek(0)
    head = file.read(512)
    file.seek(0)
    return head


def _begins_as_index(file: BufferedReader, path: Path) -> bool:
    return _head(file).lstrip()[:1] == b"{" and not _is_safetensors(_head(file), os.fstat(file.fileno()).st_size)


def _is_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (header,) = struct.unpack("<Q", head[:8])
    return bool(header <= min(MAX_SAFETENSORS_HEADER_BYTES, size - 8))


def _format_of(file: BufferedReader, path: Path) -> FileFormat:
    """The format by content. Raises CheckpointError with what the file is instead."""
    head, size = _head(file), os.fstat(file.fileno()).st_size
    if _is_safetensors(head, size):
        return "safetensors"
    if head.startswith(b"PK"):
        _check_zip(file, path, size)
        return "torch"
    if head[:1] == b"\x80" and LEGACY_MAGIC in head[:24]:
        return "torch"
    if head.lstrip()[:1] == b"{":
        return "index"
    raise _unknown(path, _what_else(head, path))


def _what_else(head: bytes, path: Path) -> str:
    if not head:
        return "an empty file"
    if head[257:262] == b"ustar":
        return "a tar archive (torch before 0.2 wrote such files)"
    if len(head) > 8 and head[8:9] == b"{":
        return "a safetensors file that is cut short or damaged"
    return next((what for magic, what in OTHER_FORMATS.items() if head.startswith(magic)), "of an unknown format")


def _unknown(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a checkpoint that can be read", why=f"it is {what}", do=READ)


def _check_zip(file: BufferedReader, path: Path, size: int) -> None:
    """That a zip archive is torch's, stores its entries as they are, and does not overlap them to seem larger."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise _unreadable(path, error) from error
    finally:
        file.seek(0)
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript program, not a checkpoint",
            why="its weights cannot be read without running it",
            do="save model.state_dict() instead",
        )
    if not any(name.endswith("data.pkl") for name in names):
        arrays = any(name.endswith(".npy") for name in names)
        raise _unknown(path, "a NumPy archive (.npz)" if arrays else "a zip archive that torch.save did not write")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise _unknown(path, "a zip archive with compressed or overlapping entries, which torch.save does not write")


def _format_of_shard(file: BufferedReader, path: Path) -> Literal["safetensors", "torch"]:
    kind = _format_of(file, path)
    if kind == "index":
        raise _unknown(path, "JSON, though an index lists it as a shard")
    return kind


def _read(file: BufferedReader, path: Path, kind: Literal["safetensors", "torch"]) -> Any:
    return _read_safetensors(file, path) if kind == "safetensors" else _read_torch(file, path)


def _read_safetensors(file: BufferedReader, path: Path) -> dict[str, Any]:
    loader = need("safetensors.torch", purpose="reading a checkpoint")
    try:
        state: dict[str, Any] = loader.load_file(f"/proc/self/fd/{file.fileno()}", device="cpu")
    except Exception as error:
        raise CheckpointError(
            f"{path} is no safetensors file", why=one_line(error), do="fetch or write it again"
        ) from error
    return state


def _read_torch(file: BufferedReader, path: Path) -> Any:
    torch = need("torch", purpose="reading a checkpoint")
    try:
        danger = danger_in(file)
    except (zipfile.BadZipFile, struct.error, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if danger is not None:
        raise _more_than_tensors(path, danger)
    file.seek(0)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            # timm, DeiT and others save their command line, a Namespace: building one runs no code
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
        if named is None and "Weights only load failed" not in str(error):
            raise _unreadable(path, error) from error
        raise _more_than_tensors(path, named[1] if named else "Python objects") from error
    except Exception as error:
        raise _unreadable(path, error) from error


def _more_than_tensors(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"refused to unpickle {path}",
        why=f"it holds more than tensors ({what}), and pickle runs any code",
        do="where you trust it, save its state dict alone with safetensors.torch.save_file",
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is no PyTorch checkpoint", why=one_line(error), do="fetch or write it again")


def _read_index(file: BufferedReader, path: Path) -> tuple[dict[str, str], list[Path]]:
    """The index's weight map, and the shards, each once, beside the index. Raises CheckpointError."""
    file.seek(0)
    data = file.read(MAX_INDEX_BYTES + 1)
    file.seek(0)
    try:
        content = json.loads(data) if len(data) <= MAX_INDEX_BYTES else None
    except (ValueError, RecursionError):
        content = None
    weight_map = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise _unknown(path, "text or JSON, and not the index of a checkpoint in shards")
    names = sorted(set(weight_map.values()))
    if not names or len(names) > MAX_SHARDS:
        raise _unknown(path, f"an index of {len(names)} shards (1 to {MAX_SHARDS} are read)")
    for name in names:
        if not name.isprintable() or name in ("", ".", "..") or set(name) & set("/\\"):
            raise CheckpointError(
                f"the index {path} names a shard outside its folder",
                why=f"a shard is a file beside the index, not {name!a}",
                do="fetch the checkpoint again",
            )
    shards = [path.parent / name for name in names]
    gone = [shard.name for shard in shards if not shard.exists()]
    if gone:
        raise CheckpointError(
            f"shards of the checkpoint {path} are missing",
            why=f"there is no {', '.join(gone[:5])} beside it" + (f" and {len(gone) - 5} more" if gone[5:] else ""),
            do="put all shards beside the index",
        )
    return weight_map, shards


def _join(path: Path, weight_map: Mapping[str, str], shards: Mapping[Path, BufferedReader]) -> dict[str, Any]:
    """The shards' tensors in one mapping, each from the shard that the index says, none left over."""
    joined: dict[str, Any] = {}
    for shard, file in shards.items():
        content = _read(file, shard, _format_of_shard(file, shard))
        here = {key for key, name in weight_map.items() if name == shard.name}
        if not isinstance(content, Mapping) or content.keys() != here:
            got = content.keys() if isinstance(content, Mapping) else set()
            wrong = sorted(str(key)[:100] for key in got ^ here if isinstance(key, str))
            raise CheckpointError(
                f"the shard {shard} does not fit the index {path}",
                why=f"{len(got ^ here)} keys are in one of them only: {', '.join(wrong[:5])!a}",
                do="fetch the index and all shards again",
            )
        joined.update(content)
    return joined
