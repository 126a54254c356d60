"""Run a network in float64, also one that asks for float32 in its forward."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from surgeon.algebra.equivariance import relative_difference
from surgeon.errors import PrecisionError, TaskError
from surgeon.support.imports import one_line
from surgeon.support.modes import default_dtype
from surgeon.support.trees import tensors_in, to_dtype

How = Literal["plain", "answered"]
"""How a network runs in float64: by itself, or if its requests for float32 are answered with float64."""

ROUNDING = 1e-12
"""Relative difference between two runs in float64 that rounding explains."""

COARSE = 0.05
"""Relative difference from the network's own outputs beyond which an answered one is another function."""

_DOUBLE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
_NAMES = dict.fromkeys(["torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"], "torch.DoubleTensor")
_METHODS: dict[Any, Any] = {
    Tensor.float: Tensor.double,
    Tensor.half: Tensor.double,
    Tensor.bfloat16: Tensor.double,
    Tensor.cfloat: lambda x: x.to(torch.complex128),  # type: ignore[attr-defined]
    Tensor.chalf: lambda x: x.to(torch.complex128),
}


class AnsweringInDouble(TorchFunctionMode):
    """Answer every request for a shorter floating dtype with float64, and take shorter arguments as float64.

    What writes in place keeps the tensor that it writes to.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        if name in ("__set__", "__get__"):  # attributes of a tensor: `x.dtype`, `x.data = y`
            return func(*args, **given)
        in_place = "out" in given or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        args = (*args[:1], *map(_lengthened, args[1:])) if in_place else tuple(map(_lengthened, args))
        given = {key: value if key == "out" else _lengthened(value) for key, value in given.items()}
        result = _METHODS.get(func, func)(*args, **given)
        return result if in_place else _lengthened(result)


def _lengthened(value: Any) -> Any:
    """Return an argument or a result with float64 for every shorter floating dtype."""
    if isinstance(value, Tensor):
        longer = _DOUBLE.get(value.dtype)
        return value if longer is None else value.to(longer)
    if isinstance(value, torch.dtype):
        return _DOUBLE.get(value, value)
    if isinstance(value, str):
        return _NAMES.get(value, value)
    if type(value) in (list, tuple) and any(isinstance(each, Tensor | torch.dtype) for each in value):
        return type(value)(map(_lengthened, value))
    return value


def run_in_double(model: nn.Module, run: Callable[[], Any], expected: Callable[[], Any] | None = None) -> How:
    """Make sure that a float64 network runs in float64; change it in place if it only does with help.

    A network that rounds to float32 somewhere inside and returns float64 needs help, too.

    Args:
        model: its weights are float64.
        run: runs it on float64 inputs, and returns its outputs.
        expected: returns the outputs of the same network in its own dtype; an answered one is compared with them.

    Returns:
        How it runs.

    Raises:
        PrecisionError: if it does not; then it is as it was.
    """
    if any(_is_answered(module) for module in model.modules()):
        return "answered"
    own, complaint = _outcome(run)
    answer_in_double(model)
    answered, still = _outcome(run)
    if not still and (complaint or _differ(answered, own, ROUNDING)):
        if expected is None or not _differ(answered, other := expected(), _coarse(other)):
            return "answered"
        still = "with its requests for float32 answered it computes something else"
    for module in model.modules():
        module.__dict__.pop("_compiled_call_impl", None)
    if complaint:
        raise PrecisionError(f"the network does not run in float64: {complaint}{still and f', and then {still}'}")
    return "plain"


def answer_in_double(model: nn.Module) -> None:
    """Let all modules of a float64 network compute in float64 whatever dtype they ask for, in place.

    TorchScript does its own asking. A deep copy has to be changed again.
    """
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module._compiled_call_impl = MethodType(_call_in_double, module)


def _is_answered(module: nn.Module) -> bool:
    return getattr(vars(module).get("_compiled_call_impl"), "__func__", None) is _call_in_double


def _call_in_double(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Stand in for a module's call, hooks included; what ``Module.compile`` replaces, and copies leave out."""
    call: Callable[..., Any] = module._call_impl
    modes: list[Any] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if any(isinstance(mode, AnsweringInDouble) for mode in modes):
        return call(*args, **kwargs)
    if any(leaf.dtype in _DOUBLE for leaf in tensors_in((args, kwargs))):
        args, kwargs = to_dtype((args, kwargs), torch.float64)
    with default_dtype(torch.float64), AnsweringInDouble():
        return call(*args, **kwargs)


def _outcome(run: Callable[[], Any]) -> tuple[Any, str]:
    """Return what a run gives, and why it is none in float64; empty if it is one."""
    try:
        outputs = run()
    except Exception as error:  # the model is foreign code
        return None, f"it fails with {one_line(error)}"
    short = next((leaf.dtype for leaf in tensors_in(outputs) if leaf.dtype in _DOUBLE), None)
    return outputs, "" if short is None else f"an output is {short}"


def _differ(left: Any, right: Any, tolerance: float) -> bool:
    try:
        return not relative_difference(left, right) <= tolerance
    except TaskError:  # other tensors
        return True


def _coarse(outputs: Any) -> float:
    dtypes = {leaf.dtype for leaf in tensors_in(outputs) if leaf.is_floating_point()}
    return max([COARSE, *(50 * torch.finfo(dtype).eps for dtype in dtypes)])
