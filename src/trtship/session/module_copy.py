"""Private copies of PyTorch modules: what runs on a copy leaves the user's module as it is.

`copy.deepcopy` alone is not enough. It refuses tensors that were computed (the old `weight_norm` keeps one), Python
modules and locks, and it shares functions: a forward that was replaced by a closure, or a hook, goes on to use the
original. Weak references go on to point at it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trtship.errors import SourceError
from trtship.needs import need

REGISTERED = ("_parameters", "_buffers", "_modules")
SHARED_KINDS = (types.ModuleType, type(threading.Lock()), type(threading.RLock()))
"""What cannot be copied and has no state that a forward computes with: the copy uses the original's."""
WITHOUT_PARTS = (str, bytes, int, float, complex, type, types.FunctionType, types.BuiltinFunctionType)


def copy_module(module: Any) -> Any:
    """Return a deep copy of an `nn.Module`, dtypes, device, training flags and hooks included.

    What the module's own functions close over is copied with it, and what they take of the module from globals is the
    copy's; weak references to parts of the module point to the copy's parts. What a closure holds that cannot be copied
    stays shared.

    Raises:
        SourceError: an attribute cannot be copied; the error names it.
    """
    torch = need("torch", purpose="running a PyTorch model")
    memo: dict[int, Any] = {}
    for value in _reachable(torch, module):
        if isinstance(value, (*SHARED_KINDS, torch.jit.ScriptFunction)):
            memo[id(value)] = value
        elif isinstance(value, torch.Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    try:
        with torch.no_grad():  # TorchScript's parameters would be copied as computed tensors
            copied = copy.deepcopy(module, memo)
    except Exception as error:
        raise _cannot_copy(torch, module, error) from error
    redirect = _Redirect(torch, memo)
    for part in _python_modules(torch, copied):
        redirect.items(vars(part), skip=REGISTERED)
    return copied


def convert(module: Any, dtypes: Mapping[Any, Any]) -> Any:
    """Convert a private copy in place: tensors of the dtypes that are keys become the dtypes that are values.

    Tensors that are plain attributes of a module, also in lists and dicts, are converted like its buffers. Other dtypes
    stay: complex tensors keep their imaginary part.
    """
    torch = need("torch", purpose="running a PyTorch model")

    def converted(tensor: Any) -> Any:
        return tensor.to(dtypes.get(tensor.dtype, tensor.dtype))

    module._apply(converted)
    for part in _python_modules(torch, module):
        _convert_items(torch, vars(part), converted, skip=REGISTERED)
    return module


def widen(module: Any) -> Any:
    """Convert a private copy in place: real floating tensors to float64, complex ones to complex128."""
    return convert(module, wide_dtypes())


def wide_dtypes() -> dict[Any, Any]:
    """The dtype that each floating and complex dtype has in a float64 run."""
    torch = need("torch", purpose="running a PyTorch model")
    real = dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64)
    return {**real, torch.complex32: torch.complex128, torch.complex64: torch.complex128}


def set_to_infer(module: Any) -> Any:
    """Put a private copy into eval mode, its parameters without gradients.

    The mode of a `torch.export` program was decided when it was exported: it stays.
    """
    with contextlib.suppress(NotImplementedError):
        module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def _python_modules(torch: Any, module: Any) -> Iterator[Any]:
    """All submodules but those of TorchScript, whose attributes are not Python's."""
    return (part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule))


def _reachable(torch: Any, module: Any) -> Iterator[Any]:
    """Every object that `copy.deepcopy` may come to, as far as it is held by attributes and containers."""
    seen: set[int] = set()
    todo = [module]
    while todo:
        value = todo.pop()
        if isinstance(value, WITHOUT_PARTS) or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, torch.Tensor | types.ModuleType | torch.jit.ScriptModule):
            continue
        if isinstance(value, Mapping):
            todo += list(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            todo += list(value)
        if isinstance(value, types.MethodType):
            todo.append(value.__self__)
        elif isinstance(value, functools.partial):
            todo += [value.func, *value.args, *value.keywords.values()]
        todo += list(getattr(value, "__dict__", {}).values())


def _convert_items(torch: Any, items: Any, converted: Callable[[Any], Any], skip: tuple[str, ...] = ()) -> None:
    """Convert the tensors in a dict or list, and in those within it."""
    for key, value in list(items.items() if isinstance(items, dict) else enumerate(items)):
        if key in skip:
            continue
        if isinstance(value, torch.Tensor):
            items[key] = converted(value)
        elif type(value) is tuple and any(isinstance(item, torch.Tensor) for item in value):
            items[key] = tuple(converted(item) if isinstance(item, torch.Tensor) else item for item in value)
        elif type(value) in (dict, list):
            _convert_items(torch, value, converted)


class _Redirect:
    """Makes functions and weak references within a copy use the copy. `memo` is `copy.deepcopy`'s."""

    def __init__(self, torch: Any, memo: dict[int, Any]) -> None:
        self._torch, self._memo = torch, memo
        self._functions: dict[int, Any] = {}

    def items(self, items: Any, skip: tuple[str, ...] = ()) -> None:
        """Redirect what a dict or list of the copy holds, in place."""
        for key, value in list(items.items() if isinstance(items, dict) else enumerate(items)):
            if key in skip or isinstance(value, self._torch.nn.Module):
                continue
            if isinstance(value, dict | list):
                self.items(value)
                continue
            new = self._value(value)
            if new is not value:
                items[key] = new

    def _value(self, value: Any) -> Any:
        if id(value) in self._memo:
            return self._memo[id(value)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self._value(value.__func__), self._value(value.__self__))
        if type(value) is functools.partial:
            keywords = {name: self._value(item) for name, item in value.keywords.items()}
            return functools.partial(self._value(value.func), *map(self._value, value.args), **keywords)
        if type(value) is weakref.ref:
            target = value()
            return weakref.ref(self._memo[id(target)]) if id(target) in self._memo else value
        if type(value) is tuple:
            new = tuple(self._value(item) for item in value)
            return new if any(a is not b for a, b in zip(new, value, strict=True)) else value
        return value

    def _function(self, function: types.FunctionType) -> Any:
        """The function over cells of its own. torch's are left: they keep no state of a model's."""
        if id(function) in self._functions:
            return self._functions[id(function)][1]
        if (function.__module__ or "").startswith("torch."):
            return function
        variables = self._globals(function)
        if not (function.__closure__ or function.__defaults__ or function.__kwdefaults__ or variables):
            return function
        old = function.__closure__ or ()
        cells = tuple(types.CellType() for _ in old)
        code, name = function.__code__, function.__name__
        namespace = {**function.__globals__, **variables} if variables else function.__globals__
        new = types.FunctionType(code, namespace, name, None, cells if old else None)
        self._functions[id(function)] = (function, new)
        new.__dict__.update(function.__dict__)
        new.__qualname__, new.__module__, new.__doc__ = function.__qualname__, function.__module__, function.__doc__
        new.__annotations__ = function.__annotations__
        for cell, source in zip(cells, old, strict=True):
            with contextlib.suppress(ValueError):  # an empty cell stays one
                cell.cell_contents = self._closed_over(source.cell_contents)
        if function.__defaults__:
            new.__defaults__ = tuple(map(self._closed_over, function.__defaults__))
        if function.__kwdefaults__:
            new.__kwdefaults__ = {key: self._closed_over(item) for key, item in function.__kwdefaults__.items()}
        return new

    def _globals(self, function: types.FunctionType) -> dict[str, Any]:
        """The global variables of its code that are parts of the module, or their methods, as the copy's."""
        found = {}
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            if id(value) in self._memo or id(getattr(value, "__self__", None)) in self._memo:
                new = self._value(value)
                if new is not value:
                    found[name] = new
        return found

    def _closed_over(self, value: Any) -> Any:
        new = self._value(value)
        if new is not value or id(value) in self._memo:
            return new
        try:
            copied = copy.deepcopy(value, self._memo)
        except Exception:
            return value
        if isinstance(copied, dict | list) and copied is not value:
            self.items(copied)
        return copied


def _names(code: types.CodeType) -> set[str]:
    """The names of globals and attributes in a function's code and in the functions within it."""
    inner = (_names(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*inner)


def _cannot_copy(torch: Any, module: Any, error: Exception) -> SourceError:
    """The error that names the first attribute that cannot be copied on its own."""
    why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for key, value in vars(part).items():
            if key in REGISTERED or isinstance(value, torch.nn.Module):
                continue
            try:
                copy.deepcopy(value, {id(module): module, id(part): part})
            except Exception as own:
                where = f"{name}.{key}" if name else key
                why = f"its attribute {where} (a {type(value).__name__}) cannot be copied: {own}"
                return _refusal(why)
    return _refusal(why)


def _refusal(why: str) -> SourceError:
    return SourceError(
        "the model cannot be copied",
        why=why,
        do="trtship runs copies, so that your module never changes: create this object inside forward, keep it outside "
        "of the module, or give its class a __deepcopy__",
    )
