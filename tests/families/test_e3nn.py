"""Networks of e3nn layers, l up to 3 and both parities, in both layouts: annotation and measurement agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.build import irreps
from surgeon.algebra.representations.core import Representation
from surgeon.plan import Plan
from surgeon.registry import Proposal, Refusal
from surgeon_adapters.e3nn_layers.adapter import adapter
from tests.families.cases import FamilyCase, double, keys
from tests.nets import o3

pytestmark = pytest.mark.e3nn

BLOCKS = ((3, "0e"), (2, "0o"), (2, "1o"), (2, "1e"), (2, "2e"), (1, "2o"), (2, "3o"), (1, "3e"))
HIDDEN = "+".join(f"{mul}x{irrep}" for mul, irrep in BLOCKS)
ROWS = 12


def gated(x: Tensor, ir_mul: bool) -> Tensor:
    """Scale each copy by a function of its norm."""
    parts, start = [], 0
    for mul, irrep in BLOCKS:
        size = 2 * int(irrep[0]) + 1
        block = x[:, start : start + mul * size].unflatten(1, (size, mul) if ir_mul else (mul, size))
        parts.append((block * torch.tanh(block.square().sum(1 if ir_mul else 2, keepdim=True))).flatten(1))
        start += mul * size
    return torch.cat(parts, dim=1)


class Trunk(nn.Module):
    """Linear, gate, product with attributes, gate, linear; all features are kept in ``mul_ir``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = o3.Linear(HIDDEN, HIDDEN, biases=True)
        self.product = o3.FullyConnectedTensorProduct(HIDDEN, "1x0e+1x1o", HIDDEN)
        self.last = o3.Linear(HIDDEN, "2x0e+1x1o+1x2e")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last(gated(self.product(gated(self.first(x), False), y), False))


class ComponentsFirst(nn.Module):
    """A linear layer on features in ``ir_mul``: the components of an irrep vary slowest."""

    def __init__(self) -> None:
        super().__init__()
        self.irreps = HIDDEN
        self.weight = nn.ParameterList([nn.Parameter(torch.randn(mul, mul)) for mul, _ in BLOCKS])

    def forward(self, x: Tensor) -> Tensor:
        parts, start = [], 0
        for (mul, irrep), weight in zip(BLOCKS, self.weight, strict=True):
            size = mul * (2 * int(irrep[0]) + 1)
            parts.append((x[:, start : start + size].unflatten(1, (-1, mul)) @ weight).flatten(1))
            start += size
        return torch.cat(parts, dim=1)


class OtherLayout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ComponentsFirst(), ComponentsFirst()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(gated(self.first(x), True))


def components_first(group: Group) -> Representation:
    blocks = [irreps(group, f"{mul}x{irrep}", "ir_mul") for mul, irrep in BLOCKS]
    return sum(blocks[1:], start=blocks[0])


class ComponentsFirstAdapter:
    """What a third party would write for such a layer."""

    name = "components first"
    groups = ("O3", "SO3")

    def __init__(self, rho: Any = components_first) -> None:
        self.rho = rho

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | None:
        if not isinstance(module, ComponentsFirst):
            return None
        return Proposal("x", "linear", self.rho(group), self.rho(group))

    def rebuild(self, tensors: Mapping[str, Tensor]) -> nn.Module | None:
        return None


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def case(other_layout: bool, group: str) -> FamilyCase:
    torch.manual_seed(0)
    with double():
        module = OtherLayout() if other_layout else Trunk()

    def rho(name: str, g: Tensor, x: Tensor) -> Tensor:
        from surgeon.algebra.groups.parse import parse_group

        made = components_first(parse_group(group)) if other_layout else irreps(parse_group(group), name)
        return made.action(g).apply(x)[0]

    batch = {"x": random(ROWS, o3.Irreps(HIDDEN).dim)} | ({} if other_layout else {"y": random(ROWS, 4)})

    def act(g: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {"x": rho(HIDDEN, g, given["x"])}
        return moved if other_layout else moved | {"y": rho("1x0e+1x1o", g, given["y"])}

    return FamilyCase(
        "e3nn",
        module.eval(),
        batch,
        lambda model, given: model(**given),
        act,
        lambda g, out: rho("2x0e+1x1o+1x2e", g, out),
        group,
    )


def compare(found: FamilyCase, adapters: dict[str, Any], sites: set[str]) -> Plan:
    annotated = surgeon.find(found.module, found.group, found.batch, forward=found.forward, adapters=adapters)
    measured, both = found.find(adapters={}), found.find(adapters=adapters)
    assert keys(annotated) == keys(measured) == keys(both) == sites
    assert {site.source for site in both.sites} == {"both"}
    assert not both.notes
    found.check(measured)
    return both


@pytest.mark.parametrize("group", ["O3", "SO3"])
def test_copies_first(group: str) -> None:
    plan = compare(case(False, group), {"e3nn": adapter}, {"first.features", "product.x", "last.features"})
    assert all(site.fold is not None for site in plan.sites if site.kind == "linear")


@pytest.mark.parametrize("group", ["O3", "SO3"])
def test_components_first(group: str) -> None:
    plan = compare(case(True, group), {"components first": ComponentsFirstAdapter()}, {"first.x", "second.x"})
    assert {site.adapter for site in plan.sites} == {"components first"}


def test_a_lying_label_is_found_out_and_the_measurement_used() -> None:
    """All odd and even labels exchanged: each layer by itself agrees with that, the model does not."""

    def lying(group: Group) -> Representation:
        swap = str.maketrans("eo", "oe")
        blocks = [irreps(group, f"{mul}x{irrep.translate(swap)}", "ir_mul") for mul, irrep in BLOCKS]
        return sum(blocks[1:], start=blocks[0])

    found, adapters = case(True, "O3"), {"components first": ComponentsFirstAdapter(lying)}
    alone = surgeon.find(found.module, "O3", found.batch, forward=found.forward, adapters=adapters)
    assert {site.source for site in alone.sites} == {"annotation"}
    plan = found.find(adapters=adapters)
    assert {site.source for site in plan.sites} == {"measurement"}
    assert sum("the measured representations are used" in note for note in plan.notes) == 2
    found.check(plan)
