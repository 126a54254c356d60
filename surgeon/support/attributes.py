"""What modules hold beside parameters, buffers and children, in words that can be compared: attributes and hooks."""

from __future__ import annotations

import enum
import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")

_NUMBERS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.layout, enum.Enum)
_MANGLED = re.compile(r"___torch_mangle_\d+\.")
_PACKAGE = re.compile(r"^<torch_package_\d+>\.")


def tensor_bytes(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes in row-major order, shape (n,), uint8."""
    # A copy, because a tensor can count as contiguous and still have a last stride that forbids the view.
    return tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def tensor_sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes in row-major order as 64 hex digits; any shape and dtype."""
    return hashlib.sha256(tensor_bytes(tensor.cpu()).numpy().data).hexdigest()


def attributes_of(model: nn.Module) -> dict[str, str]:
    """Return qualified name to description of every public attribute that is no parameter, buffer or child.

    Numbers, words, tensors, arrays, containers of them, dataclasses and functions are described by value, so that two
    models whose descriptions agree hold the same; any other object is described by its class alone.

    Args:
        model: only read; of scripted modules, attributes, constants and code.

    Example:
        >>> attributes_of(nn.Dropout(0.25))
        {'p': '0.25', 'inplace': 'False'}
    """
    return {
        f"{name}.{key}" if name else key: described(value)
        for name, module in model.named_modules()
        for key, value in _own_attributes(module)
        if not key.startswith("_") and key != "training" and not isinstance(value, nn.Module | nn.Parameter)
    }


def _own_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    if not isinstance(module, torch.jit.ScriptModule):
        yield from vars(module).items()
        return
    inside, named = module._concrete_type, (module.named_parameters, module.named_buffers)
    known = {name for each in named for name, _ in each(recurse=False)} | {name for name, _ in module.named_children()}
    for key, value in inside.get_constants().items():
        yield key, value
    for key in inside.get_attributes():
        if key not in known and hasattr(module, key):
            yield key, getattr(module, key)
    if hasattr(module, "forward"):
        yield "code", _MANGLED.sub("", module.code)


def hooks_of(module: nn.Module) -> str:
    """Return the hooks of a module and of its own parameters in words; "none" if it has none."""
    found = [f"{kind[1:-1]} {described(hook)}" for kind in HOOKS for hook in getattr(module, kind, {}).values()]
    for parameter in module.parameters(recurse=False):
        on_parameter = (hook for kind in _PARAMETER_HOOKS for hook in (getattr(parameter, kind, None) or {}).values())
        found += [f"hook of a parameter {described(hook)}" for hook in on_parameter]
    return ", ".join(found) or "none"


def full_name(value: Any) -> str:
    """Return the name of a class or function, without the number by which torch.package tells opened archives apart."""
    return f"{_PACKAGE.sub('', str(value.__module__))}.{value.__qualname__}"


def described(value: Any, above: frozenset[int] = frozenset()) -> str:
    """Return a value in words; two values of a kind that :func:`attributes_of` names agree if and only if they do."""
    if isinstance(value, _NUMBERS):
        return repr(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, type):
        return full_name(value)
    if id(value) in above:
        return "itself"
    above |= {id(value)}
    name, parts = _class(value), _parts(value)
    if parts is not None:
        return f"{name}({', '.join(described(part, above) for part in parts)})"
    if isinstance(value, set | frozenset):
        return f"{name}({', '.join(sorted(described(part, above) for part in value))})"
    if isinstance(value, torch.jit.ScriptFunction):
        return f"{name}({_MANGLED.sub('', str(value.code))})"
    if isinstance(value, FunctionType):
        return _function(value, above)
    if type(value).__module__ == "numpy" and hasattr(value, "tobytes") and not value.dtype.hasobject:
        return f"{name}({value.shape}, {value.dtype}, {hashlib.sha256(value.tobytes()).hexdigest()})"
    if callable(value) and hasattr(value, "__qualname__"):  # builtin
        return full_name(value)
    return name


def _class(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else full_name(kind)


def _parts(value: Any) -> list[Any] | None:
    """Return what a container, or a callable made from others, consists of; None for anything else."""
    if isinstance(value, MethodType):
        return [type(value.__self__), value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.items()]
    if type(value).__name__ == "_WrappedHook":  # torch's, around hooks that want their module
        return [value.hook]
    if isinstance(value, tuple | list):  # in the plain way, since e3nn's Irrep is a tuple that refuses to be a list
        return [*tuple.__iter__(value)] if isinstance(value, tuple) else [*list.__iter__(value)]
    if isinstance(value, dict):
        return [*dict.items(value)]
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    return None


def _tensor(value: Tensor) -> str:
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return f"tensor({tuple(value.shape)}, {value.dtype}, {value.layout})"
    return f"tensor({tuple(value.shape)}, {value.dtype}, {tensor_sha256(value)})"


def _function(value: FunctionType, above: frozenset[int]) -> str:
    """Return name, code, defaults and closure of a function; two lambdas on one line have one name."""
    held = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
    for cell in value.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    digest = hashlib.sha256(repr(_code(value.__code__)).encode()).hexdigest()
    parts = ", ".join([digest[:16], *(described(part, above) for part in held)])
    return f"{full_name(value)}({parts})"


def _code(code: CodeType) -> tuple[Any, ...]:
    constants = (_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts)
    return code.co_code, code.co_names, tuple(constants)
