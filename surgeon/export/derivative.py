"""Models whose forward takes derivatives, such as forces: forward and derivative become one plain graph.

torch.export refuses a call of ``torch.autograd.grad``. Here the forward is recorded below autograd, so that what is
left of a derivative are the operations that compute it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.graph import CodeGen
from torch.overrides import TorchFunctionMode

from surgeon.errors import CheckFailedError
from surgeon.export.capture import symbolic_sizes
from surgeon.export.sample import Sample
from surgeon.support.trees import map_tensors, tensors_in


class _Changed(TorchFunctionMode):
    """Count the derivatives that are taken, and change what they return, zeros included."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.count, self._change = 0, change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.autograd.grad:
            return result
        self.count += 1
        return map_tensors(self._change, result)


def derived_outputs(function: nn.Module, tensors: Sequence[Tensor]) -> frozenset[int] | None:
    """Return the positions of the outputs that hang on a derivative taken inside the forward.

    These are the outputs that change if all such derivatives are changed.

    Args:
        function: from tensors to a tuple of tensors, in eval mode.
        tensors: an example.

    Returns:
        None if no derivative is taken.
    """
    runs = []
    for change in (lambda tensor: tensor, lambda tensor: 2 * tensor + 1):
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), _Changed(change) as mode:
            torch.manual_seed(0)
            runs.append(function(*[tensor.clone() for tensor in tensors]))
    if not mode.count:
        return None
    pairs = enumerate(zip(*runs, strict=True))
    return frozenset(index for index, (a, b) in pairs if not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


class Recorded(nn.Module):
    """A recorded function as a module; it owns the model that was recorded, whose tensors are inputs of the graph."""

    def __init__(self, function: nn.Module, model: nn.Module, graph: GraphModule) -> None:
        super().__init__()
        self.model = model
        self._names = tuple(_state(function))
        constants = {f"constant_{index}": tensor for index, tensor in enumerate(_as_inputs(graph))}
        self._constants = tuple(constants)
        for name, tensor in constants.items():
            self.register_buffer(name, tensor, persistent=False)
        self.graph = graph

    def forward(self, *tensors: Tensor) -> Any:
        """Run the graph with the model's present tensors."""
        state = _state(self)
        named = [state[name] for name in self._names]
        return self.graph(*named, *tensors, *[state[name] for name in self._constants])


def _as_inputs(module: GraphModule) -> list[Tensor]:
    """Turn the constants of a recorded graph into inputs behind the others, and return them.

    torch.export does not find what a graph inside of a module holds.
    """
    graph = module.graph
    constants = []
    for node in graph.find_nodes(op="get_attr"):
        name = str(node.target)
        constants.append(getattr(module, name))
        delattr(module, name)
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            node.replace_all_uses_with(graph.placeholder(f"constant_{len(constants)}"))
        graph.erase_node(node)
    graph.set_codegen(CodeGen())  # plain arguments and a plain tuple
    module.recompile()
    return constants


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and all buffers, each once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def record_derivatives(function: nn.Module, model: nn.Module, sample: Sample, packages: Iterable[str] = ()) -> Recorded:
    """Record a function that takes derivatives as one graph of operations, for any size of the dynamic axes.

    Args:
        function: from the tensors of a batch to a tuple of tensors; it holds the model under the name ``model``.
        sample: the example batch and its dynamic axes.
        packages: in whose modules ``int(n)`` and ``len(x)`` leave sizes what they are, symbols.

    Returns:
        A module that computes the same without autograd.

    Raises:
        CheckFailedError: if the forward gives a dynamic axis a fixed size.
    """
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    state, tensors = _state(function), tensors_in(sample.batch)
    shapes = ShapeEnv(duck_shape=False)  # equal sizes of the example say nothing
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    weights = [_symbolic(mode, tensor, ()) for tensor in state.values()]
    inputs = [_symbolic(mode, tensor, axes) for tensor, axes in zip(tensors, sample.dynamic, strict=True)]

    def run(*flat: Tensor) -> Any:
        return functional_call(function, dict(zip(state, flat, strict=False)), flat[len(state) :])

    with _attributes_kept(function), symbolic_sizes(packages), mode, torch.enable_grad():
        graph = make_fx(run, decomposition_table=_backward_decompositions())(*weights, *inputs)
    _check_still_dynamic(shapes, inputs, sample)
    graph.graph.eliminate_dead_code()
    return Recorded(function, model, graph)


@contextlib.contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Give every module its present attributes back, so that a forward that keeps tensors leaves no stand-ins there."""
    before = {each: dict(each.__dict__) for each in module.modules()}
    try:
        yield
    finally:
        for each, attributes in before.items():
            each.__dict__.clear()
            each.__dict__.update(attributes)


def _symbolic(mode: Any, tensor: Tensor, dynamic: Sequence[int]) -> Tensor:
    """Return a stand-in without values, whose dynamic axes have symbols as sizes."""
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    sizes = [DimDynamic.DYNAMIC if axis in dynamic else DimDynamic.STATIC for axis in range(tensor.dim())]
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
    symbolic: Tensor = mode.from_tensor(tensor.detach(), symbolic_context=context)
    return symbolic


def _backward_decompositions() -> dict[Any, Any]:
    """Return those of torch's decompositions that are of derivatives, which ONNX has no operators for."""
    from torch._decomp import decomposition_table

    return {op: rule for op, rule in decomposition_table.items() if "_backward" in str(op)}


def _check_still_dynamic(shapes: Any, inputs: Sequence[Tensor], sample: Sample) -> None:
    for tensor, name, axes in zip(inputs, sample.names, sample.dynamic, strict=True):
        for axis in axes:
            size: Any = tensor.shape[axis]
            fixed = shapes.replace(size.node._expr)
            if fixed.is_number:
                raise CheckFailedError(
                    f"the forward gives axis {axis} of {name} the fixed size {fixed}{_place(shapes, fixed)}: "
                    "use no size as a plain number"
                )


def _place(shapes: Any, fixed: Any) -> str:
    """Return where a size was set equal to a number."""
    for guard in shapes.guards:
        frame = guard.sloc.framework_loc
        if fixed in guard.expr.args and frame is not None:
            return f" (line {frame.lineno} of {frame.filename.rpartition('/')[2]}, in {frame.name})"
    return ""
