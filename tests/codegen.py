"""What e3nn makes of equal layers, made once in each process: most of the time in which a small network is built."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.support.e3nn_compat import _moment


def optimised_once() -> None:
    """Let e3nn remember how the contractions of its generated code are best ordered; the code it gets is the same.

    It also remembers the code of whole layers, and moments of activations, as it does while Surgeon opens a network.
    """
    import opt_einsum_fx
    from e3nn.math import _normalize_activation
    from e3nn.o3 import _linear
    from e3nn.o3._tensor_product import _codegen, _tensor_product

    remembered = _remembering(opt_einsum_fx.optimize_einsums_full)
    for module in (_linear, _codegen):
        module.optimize_einsums_full = remembered
    _linear._codegen_linear = _copies_of(_linear._codegen_linear)
    for name in ("_CODEGEN_PROVIDERS_LEFT_RIGHT", "_CODEGEN_PROVIDERS_RIGHT"):
        providers = getattr(_tensor_product, name, [])  # e3nn before 0.5 has none
        providers[:] = map(_copies_of, providers)
    _normalize_activation.moment = functools.partial(_moment, _normalize_activation.moment)


def _copies_of(make: Callable[..., Any]) -> Callable[..., Any]:
    made: dict[Any, Any] = {}

    @functools.wraps(make)
    def copied(*arguments: Any, **named: Any) -> Any:
        key = repr((arguments, named, torch.get_default_dtype()))
        if key not in made:
            made[key] = make(*arguments, **named)
        if isinstance(made[key], fx.GraphModule):
            return _twin(made[key])
        module, *sizes = made[key]
        return _twin(module), *sizes

    return copied


def _twin(module: fx.GraphModule) -> fx.GraphModule:
    """Return a module that runs the same code; a copy by torch.fx would generate and compile it again."""
    twin = object.__new__(type(module))
    vars(twin).update((key, value if key == "_graph" else copy.copy(value)) for key, value in vars(module).items())
    vars(twin)["_buffers"] = {name: buffer.clone() for name, buffer in module._buffers.items()}
    return twin


def _remembering(optimise: Callable[..., Any]) -> Callable[..., Any]:
    graphs: dict[Any, fx.Graph] = {}

    @functools.wraps(optimise)
    def optimised(model: Any, example_inputs: tuple[Tensor, ...]) -> Any:
        if not isinstance(model, fx.GraphModule):
            return optimise(model, example_inputs)
        tensors = [*model.named_parameters(), *model.named_buffers(), *enumerate(example_inputs)]
        key = model.code, tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors)
        if key not in graphs:
            result = optimise(model, example_inputs)
            graphs[key] = copy.deepcopy(result.graph)
            return result
        return fx.GraphModule(model, copy.deepcopy(graphs[key]))

    return optimised
