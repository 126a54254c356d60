"""What e3nn makes of equal layers, made once in each process: most of the time in which a small network is built."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx


def optimised_once() -> None:
    """Let e3nn remember how the contractions of its generated code are best ordered; the code it gets is the same.

    It also remembers the code of whole linear layers: all that is handed out is a copy.
    """
    import opt_einsum_fx
    from e3nn.o3 import _linear
    from e3nn.o3._tensor_product import _codegen

    remembered = _remembering(opt_einsum_fx.optimize_einsums_full)
    for module in (_linear, _codegen):
        module.optimize_einsums_full = remembered
    _linear._codegen_linear = _copies_of(_linear._codegen_linear, repr)


def _copies_of(make: Callable[..., Any], key: Callable[[Any], Any]) -> Callable[..., Any]:
    made: dict[Any, Any] = {}

    @functools.wraps(make)
    def copied(*arguments: Any, **named: Any) -> Any:
        of = key((arguments, named))
        if of not in made:
            made[of] = make(*arguments, **named)
        return copy.deepcopy(made[of])

    return copied


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
