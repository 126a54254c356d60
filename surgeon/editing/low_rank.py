"""An equivariant low-rank update of the base weights: what a rival method trains instead of branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.intertwiners import FoldMap
from surgeon.editing.insert import fold_map_of
from surgeon.errors import PlanError
from surgeon.plan import Plan, named_module
from surgeon.registry import Adapter, installed_adapters


class _Update(nn.Module):
    """Parametrization ``w + change(B A)``: per irrep a multiplicity-level matrix of low rank (ELoRA, ICML 2025)."""

    def __init__(self, fold_map: FoldMap, like: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self._fold_map = fold_map
        self._labels = list(fold_map.entries)
        down, up = [], []
        for part in fold_map.entries.values():
            n_out, n_in = len(part.rows), len(part.columns)
            used = min(rank, n_out, n_in)
            drawn = torch.randn((used, n_in), generator=generator, dtype=torch.float64) / n_in**0.5
            down.append(nn.Parameter(drawn.to(like)))
            up.append(nn.Parameter(torch.zeros(n_out, used).to(like)))
        self.down, self.up = nn.ParameterList(down), nn.ParameterList(up)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated parameter, shaped as ``weight``."""
        matrices = {
            label: (up @ down).double() for label, up, down in zip(self._labels, self.up, self.down, strict=True)
        }
        change = self._fold_map.parameter_change(matrices, weight.numel())
        return weight + change.reshape(weight.shape).to(weight.dtype)


class LowRankUpdates:
    """A model whose base weights are trained together with equivariant low-rank updates.

    Args:
        model: edited in place; its function does not change, since B starts at 0.
        plan: updates go to its foldable sites.
        rank: of each irrep's matrix, at most its dimensions.
        seed: of the initial A.
        adapters: adapters by name; default all installed ones.

    Raises:
        PlanError: if no site can hold an update.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, rank: int, seed: int = 0, adapters: Mapping[str, Adapter] | None = None
    ) -> None:
        group, adapters = parse_group(plan.group), installed_adapters() if adapters is None else adapters
        generator = torch.Generator().manual_seed(seed)
        self.model = model
        found: dict[tuple[str, str], FoldMap] = {}
        for site in plan.sites:
            fold_map = fold_map_of(model, site, group, adapters)
            if fold_map is not None and fold_map.entries:
                found.setdefault((site.name, fold_map.parameter), fold_map)
        if not found:
            raise PlanError(
                "expected sites whose own weights can hold an equivariant low-rank update, but none of the plan can be "
                "folded: use another arm"
            )
        self._order = {name: list(named_module(model, name)._parameters) for name, _ in found}
        self._places = list(found)
        for (name, parameter), fold_map in found.items():
            op = named_module(model, name)
            update = _Update(fold_map, op.get_parameter(parameter), rank, generator)
            parametrize.register_parametrization(op, parameter, update)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the factors A and B of all updates."""
        for module in self.modules():
            yield from module.parameters()

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules that hold them."""
        for name, parameter in self._places:
            yield named_module(self.model, name).get_submodule(f"parametrizations.{parameter}.0")

    def merge(self) -> None:
        """Add the updates to the base weights, in place, and take everything else off again."""
        for name, parameter in self._places:
            parametrize.remove_parametrizations(named_module(self.model, name), parameter)
        for name, order in self._order.items():  # the order of the keys is a part of the architecture
            parameters = named_module(self.model, name)._parameters
            for key in order:
                parameters[key] = parameters.pop(key)
