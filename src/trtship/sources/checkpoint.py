"""Checkpoints: read without pickle, found inside what training scripts wrap them in, and loaded strictly."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtship.errors import CheckpointError
from trtship.needs import need
from trtship.sources.base import check_checkpoint_file
from trtship.sources.inputs import one_line

if TYPE_CHECKING:
    import torch

# where training scripts put the state dict; averaged weights first, as timm's load_state_dict prefers them
NESTS = ("model_ema", "state_dict", "model")
# what DataParallel, DistributedDataParallel and torch.compile prepend to every key
PREFIXES = ("module.", "_orig_mod.")
SHOWN = 10


def load_checkpoint(module: torch.nn.Module, path: Path) -> list[str]:
    """Put the file's weights into the module, strictly; returns notes on what was done to them. Raises CheckpointError.

    Keys that only repeat a non-persistent buffer with the value the module computes itself (Swin's
    `relative_position_index`) are dropped. Values are cast to the module's dtypes.
    """
    state, notes = read_state_dict(path)
    expected = module.state_dict()
    repeated = _repeated_buffers(module, state.keys() - expected.keys(), state)
    state = {key: tensor for key, tensor in state.items() if key not in repeated}
    _check_fit(path, expected, state)
    if repeated:
        notes.append(f"checkpoint: dropped {len(repeated)} buffers that the model computes itself to the same values")
    cast = {
        f"{_short(tensor.dtype)} to {_short(expected[key].dtype)}"
        for key, tensor in state.items()
        if tensor.dtype != expected[key].dtype
    }
    notes += [f"checkpoint: cast {what}" for what in sorted(cast)]
    module.load_state_dict(state, strict=True)
    return notes


def read_state_dict(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file by key, and notes. Raises CheckpointError.

    All but safetensors are read by `torch.load(weights_only=True)` alone, which runs no code from the file.
    """
    import torch

    check_checkpoint_file(path)
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    content, notes = _unnest(content)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"there is no state dict in {path}", why=f"it holds {_describe(content)}", do="save model.state_dict()"
        )
    strange = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise CheckpointError(
            f"there is no state dict in {path}",
            why=f"it holds {_describe(content)}, and {strange[0]} is no tensor",
            do=f"save model.state_dict(), alone or under one of {', '.join(NESTS)}",
        )
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
            notes.append(f"checkpoint: stripped {prefix!r} from every key")
    return dict(content), notes


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    loader = need("safetensors.torch", purpose="reading a checkpoint")
    try:
        state: dict[str, torch.Tensor] = loader.load_file(path, device="cpu")
    except Exception as error:
        raise CheckpointError(
            f"{path} is no safetensors file", why=one_line(error), do="fetch or write it again"
        ) from error
    return state


def _read_torch(path: Path) -> object:
    torch = need("torch", purpose="reading a checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about TorchScript, which is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
        if named is None and "Weights only load failed" not in str(error):
            raise _unreadable(path, error) from error
        raise CheckpointError(
            f"refused to unpickle {path}",
            why=f"it holds more than tensors ({named[1] if named else 'Python objects'}), and pickle runs any code",
            do="where you trust it, save its state dict alone with safetensors.torch.save_file",
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript program, not a checkpoint",
                why="its weights cannot be read without running it",
                do="save model.state_dict() instead",
            ) from error
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is no PyTorch checkpoint", why=one_line(error), do="fetch or write it again")


def _unnest(content: Any) -> tuple[Any, list[str]]:
    notes: list[str] = []
    while isinstance(content, Mapping):
        nests = [key for key in NESTS if isinstance(content.get(key), Mapping)]
        if not nests:
            break
        others = f" (there is {', '.join(nests[1:])} too)" if nests[1:] else ""
        notes.append(f"checkpoint: took the state dict under {nests[0]!r}{others}")
        content = content[nests[0]]
    return content, notes


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict with {', '.join(str(key) for key in list(content)[:5])} ..." if content else "an empty dict"
    return f"a {type(content).__name__}"


def _repeated_buffers(module: torch.nn.Module, keys: set[str], state: Mapping[str, torch.Tensor]) -> set[str]:
    import torch

    buffers = dict(module.named_buffers())
    return {
        key
        for key in keys
        if key in buffers
        and buffers[key].shape == state[key].shape
        and torch.equal(buffers[key], state[key].to(buffers[key].dtype))
    }


def _check_fit(path: Path, expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    wrong = [
        f"{key} (file {_form(state[key])}, model {_form(expected[key])})"
        for key in expected
        if key in state and not _fits(state[key], expected[key])
    ]
    lists = {"missing from the file": missing, "unknown to the model": unexpected, "of another shape": wrong}
    if not any(lists.values()):
        return
    raise CheckpointError(
        f"the checkpoint {path} does not fit the model",
        why="; ".join(f"{len(keys)} {what}: {_first(keys)}" for what, keys in lists.items() if keys),
        do="check the model's name and its --model-arg against how the checkpoint was trained",
    )


def _fits(tensor: torch.Tensor, expected: torch.Tensor) -> bool:
    return tensor.shape == expected.shape and tensor.is_floating_point() == expected.is_floating_point()


def _form(tensor: torch.Tensor) -> str:
    return f"{_short(tensor.dtype)} {list(tensor.shape)}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
