"""Small e3nn networks that the tests of the engine cut open, and brute-force references to compare with."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.equivariance import Symmetry, equivariance_error
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import irreps
from surgeon.editing.relaxation import Relaxation
from surgeon.plan import CHILD, Plan, Site
from surgeon.support.e3nn_compat import import_e3nn
from surgeon.support.modes import default_dtype

o3 = import_e3nn()

MODES = {"uvw": 3, "uvu": 2, "uvv": 2, "uuw": 3, "uuu": 2, "uvuv": 4}
ATTRIBUTES = "2x0e+2x1o"


def linear_with_missing_paths() -> nn.Module:
    """Only 0e -> 0e of the first block and 1o -> 1o have weights; 2e and 3o are on one side only."""
    return o3.Linear("2x0e+3x0e+2x1o+2e", "3x0e+2x1o+3o", instructions=[(0, 0), (2, 1)], biases=[True, False, False])


def product(mode: str) -> nn.Module:
    """Paths of one connection mode: 0 x 0 -> 0, 1 x 0 -> 1, 0 x 1 -> 1, 1 x 1 -> 0."""
    mul = MODES[mode]
    paths = [(0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 0)]
    return o3.TensorProduct(ATTRIBUTES, ATTRIBUTES, f"{mul}x0e+{mul}x1o", [(*path, mode, True) for path in paths])


def attributes(rows: int, dtype: torch.dtype, scalars: tuple[float, float] = (1.0, 0.7)) -> Tensor:
    """Two constant scalars and two random vectors."""
    vectors = torch.randn(rows, 6, dtype=dtype)
    return torch.cat([torch.tensor([scalars], dtype=dtype).expand(rows, -1), vectors], dim=1)


class Linears(nn.Module):
    """Biased layers with several blocks per irrep, unmatched irreps and missing paths; scalars gate the rest."""

    rho_in, rho_out = "2x0e+2x1o+3x0e", "3x0e+2x1o+3o"

    def __init__(self) -> None:
        super().__init__()
        self.first = o3.Linear(self.rho_in, "2x0e+3x0e+2x1o+2e", biases=True)
        self.second = linear_with_missing_paths()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        gate = torch.tanh(hidden[:, :1])
        return self.second(torch.cat([hidden[:, :5].tanh(), hidden[:, 5:] * gate], dim=1))


class Products(nn.Module):
    """A fully connected product and one of every connection mode."""

    rho_in = ATTRIBUTES
    rho_out = "+".join(["3x0e+2x1o", *(f"{mul}x0e+{mul}x1o" for mul in MODES.values())])

    def __init__(self) -> None:
        super().__init__()
        self.full = o3.FullyConnectedTensorProduct(ATTRIBUTES, ATTRIBUTES, "3x0e+2x1o")
        self.by_mode = nn.ModuleDict({mode: product(mode) for mode in MODES})

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([self.full(x, y), *(layer(x, y) for layer in self.by_mode.values())], dim=1)


class Reused(nn.Module):
    """One layer that is called twice, and one that stands under two names."""

    rho_in = rho_out = "2x0e+2x1o"

    def __init__(self) -> None:
        super().__init__()
        self.twice = o3.Linear(self.rho_in, self.rho_in)
        self.shared = o3.Linear(self.rho_in, self.rho_in)
        self.alias = self.shared

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.twice(self.shared(self.twice(x)) + x))


class Forces(nn.Module):
    """A scalar energy of two layers, and its gradient taken inside the forward."""

    rho_in, rho_out = "2x1o", "2x1o"

    def __init__(self) -> None:
        super().__init__()
        self.mix = o3.Linear("2x1o", "4x1o")
        self.pair = o3.FullyConnectedTensorProduct("4x1o", "2x1o", "3x0e")

    def forward(self, x: Tensor) -> Tensor:
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        energy = self.pair(self.mix(leaf), leaf).tanh().sum()
        return torch.autograd.grad(energy, leaf, create_graph=True)[0]


NETS: dict[str, Callable[[], Any]] = {"linears": Linears, "products": Products, "reused": Reused, "forces": Forces}


@functools.cache
def built(name: str, dtype: torch.dtype) -> Any:
    """Return a network to be copied, built in its own dtype, so that all constants are exact."""
    with default_dtype(dtype), torch.random.fork_rng():
        return copy.deepcopy(NETS[name]())  # a first copy of e3nn's generated code can gain keys, a second does not


@functools.cache
def plan_of(name: str, dtype: torch.dtype = torch.float64) -> Plan:
    """Return what is found in a network, which is the same for all weights and samples."""
    with torch.random.fork_rng():
        net, inputs = build(name, dtype)
        return surgeon.find(net, "O3", *inputs)


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, tuple[Tensor, ...]]:
    """Return a network with weights of its own, and a sample call of 6 rows."""
    net = copy.deepcopy(built(name, dtype))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.any():  # all but biases
                parameter.normal_()
    x = torch.randn(6, o3.Irreps(net.rho_in).dim, dtype=dtype)
    return net, (x, attributes(6, dtype)) if name == "products" else (x,)


def relaxed(
    name: str, dtype: torch.dtype = torch.float64, *, mode: Any = "drop", scale: float = 1.0, form: Any = "gram"
) -> tuple[Any, Any, Relaxation, tuple[Tensor, ...]]:
    """Return an untouched twin, the relaxed network, its handle and a sample call."""
    net, inputs = build(name, dtype)
    twin = copy.deepcopy(net)
    plan = plan_of(name, dtype)
    exact = {"penalty_form": form, "penalty_rows": None, "penalty_every": 1}
    return twin, net, surgeon.relax(net, plan, dense=True, mode=mode, init_scale=scale, **exact), inputs


def network_error(net: Any, inputs: tuple[Tensor, ...], group: Group | None = None) -> float:
    """Return the largest relative equivariance error of a network of this file."""
    group = group or parse_group("O3")
    rho_in, rho_out, rho_y = (irreps(group, labels) for labels in (net.rho_in, net.rho_out, ATTRIBUTES))

    def act(g: Tensor, *batch: Tensor) -> Any:
        moved = [rho.action(g).to(x).apply(x)[0] for rho, x in zip((rho_in, rho_y), batch, strict=False)]
        return tuple(moved) if len(moved) > 1 else moved[0]

    def act_output(g: Tensor, output: Tensor) -> Tensor:
        return rho_out.action(g).to(output).apply(output)[0]

    errors = equivariance_error(net, [inputs], Symmetry(group, act, act_output), count=3)
    return max(summary.maximum for summary in errors.values())


def state(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Return the state dict in a form whose equality is equality of order, dtypes, shapes and bytes."""
    return {
        key: (position, value.dtype, tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes())
        for position, (key, value) in enumerate(module.state_dict().items())
    }


def traces(module: nn.Module) -> dict[str, Any]:
    """Return everything of a module tree that an insertion could leave behind."""
    return {
        name: (
            f"{type(part).__module__}.{type(part).__qualname__}",
            sorted(vars(part)),
            tuple(child for child, _ in part.named_children()),
            len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks),
            len(part._forward_hooks_with_kwargs) + len(part._forward_pre_hooks_with_kwargs),
            part.training,
        )
        for name, part in module.named_modules()
        if not isinstance(part, torch.jit.ScriptModule)
    } | {CHILD: any(CHILD in name for name, _ in module.named_modules())}


def linear_map(op: Any, y: Tensor | None, d_in: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the matrix (d_out, d_in) of an op in its first argument, at one row ``y`` of its second."""
    x = torch.cat([torch.zeros(1, d_in, dtype=dtype), torch.eye(d_in, dtype=dtype)])
    with torch.no_grad():
        out = op(x) if y is None else op(x, y.expand(len(x), -1))
    return (out[1:] - out[:1]).T.contiguous()


def weight_jacobian(op: Any, y: Tensor | None, d_in: int) -> Tensor:
    """Return d(matrix)/d(weight) of an op by setting one weight at a time; shape (d_out * d_in, n_weights)."""
    probe = copy.deepcopy(op)
    columns = []
    with torch.no_grad():
        for k in range(probe.weight.numel()):
            probe.weight.zero_()
            probe.weight.view(-1)[k] = 1.0
            columns.append(linear_map(probe, y, d_in).flatten())
    return torch.stack(columns, dim=1)


def site_of(proposal: Any, fold: dict[str, Any] | None) -> Site:
    """Return the site that a proposal of the e3nn adapter would become at the model itself."""
    shape = (proposal.rho_out.dimension, proposal.rho_in.dimension)
    return Site("", proposal.argument, proposal.kind, "e3nn", proposal.rho_in, proposal.rho_out, shape, fold=fold)
