"""Updates that are added to the base weights and merged: of low rank, as a rival method trains, or a second copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from surgeon.algebra.folding import FoldMap
from surgeon.algebra.intertwiners import spread_over_copies
from surgeon.editing.insert import fold_map_of
from surgeon.errors import PlanError
from surgeon.finding.unit_features import tried_copies
from surgeon.finding.weight_usage import Ties
from surgeon.plan import Plan, Site
from surgeon.registry import Adapter, installed_adapters
from surgeon.support.modules import named_module

Copies = list[tuple[Tensor, Tensor]]
"""Per irrep the flat indices of its copies in the output and in the input."""


class _LowRank(nn.Module):
    """Parametrization ``w + change(B A)``: per irrep a multiplicity-level matrix of low rank (ELoRA, ICML 2025)."""

    def __init__(
        self, fold_map: FoldMap, copies: Copies, parameter: str, like: Tensor, rank: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self._fold_map, self._copies, self._parameter = fold_map, copies, parameter
        down, up = [], []
        for rows, columns in copies:
            used = min(rank, len(rows), len(columns))
            drawn = torch.randn((used, len(columns)), generator=generator, dtype=torch.float64) / len(columns) ** 0.5
            down.append(nn.Parameter(drawn.to(like)))
            up.append(nn.Parameter(torch.zeros(len(rows), used).to(like)))
        self.down, self.up = nn.ParameterList(down), nn.ParameterList(up)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated parameter, shaped as ``weight``."""
        wanted = torch.zeros(self._fold_map.shape, dtype=torch.float64, device=weight.device)
        for (rows, columns), up, down in zip(self._copies, self.up, self.down, strict=True):
            wanted = spread_over_copies((up @ down).double(), rows.to(weight.device), columns.to(weight.device), wanted)
        return weight + self._fold_map.weight_change(wanted)[self._parameter].to(weight.dtype)


class _Copy(nn.Module):
    """Parametrization ``w + v``: a second copy, which starts at 0."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.copy = nn.Parameter(torch.zeros_like(like))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated parameter, shaped as ``weight``."""
        return weight + self.copy


def copied_weights(model: nn.Module) -> dict[int, Tensor]:
    """Return the weights that have a second copy, by the id of that."""
    lists = [each for each in model.modules() if isinstance(each, parametrize.ParametrizationList)]
    return {id(update.copy): each.original for each in lists for update in each if isinstance(update, _Copy)}


def _copied(model: nn.Module, site: Site) -> dict[str, nn.Module]:
    """Return a second copy of each weight that a plan names for a site, by name."""
    op, fold = named_module(model, site.name), site.fold or {}
    return {name: _Copy(op.get_parameter(name)) for name in fold.get("parameters", ())}


def _low_ranks(
    ties: Ties, site: Site, plan: Plan, adapters: Mapping[str, Adapter], rank: int, generator: torch.Generator
) -> dict[str, nn.Module]:
    """Return an update of low rank for each weight that enters the linear map of a site, by name."""
    fold_map = fold_map_of(ties, site, plan.group_object, adapters)
    copies = tried_copies(site) if site.convolution is None else None
    if fold_map is None or not copies:
        return {}
    op = named_module(ties.model, site.name)
    given = [(name, op.get_parameter(name), rank, generator) for name in fold_map.parameters]
    return {each[0]: _LowRank(fold_map, [*copies.values()], *each) for each in given}


class WeightUpdates:
    """A model whose base weights are trained together with updates that only do what these could do themselves.

    Args:
        model: edited in place; its function does not change, since B, or the copy, starts at 0.
        plan: updates go to the weights that its foldable sites name.
        rank: of each irrep's matrix, at most its dimensions; None for a second copy of every weight instead.
        seed: of the initial A.
        adapters: adapters by name; default all installed ones.

    Raises:
        PlanError: if no site can hold an update.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        rank: int | None,
        seed: int = 0,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        adapters = installed_adapters() if adapters is None else adapters
        generator = torch.Generator().manual_seed(seed)
        self.model, ties = model, Ties(model)
        updates: dict[tuple[str, str], nn.Module] = {}
        for site in plan.sites:
            found = _copied(model, site) if rank is None else _low_ranks(ties, site, plan, adapters, rank, generator)
            for parameter, update in found.items():
                module, _, own = f".{site.name}.{parameter}".rpartition(".")
                updates.setdefault((module.strip("."), own), update)
        if not updates:
            raise PlanError(
                "expected sites whose own weights can hold an equivariant update, but none of the plan can be folded: "
                "use another arm"
            )
        self._order = {name: list(named_module(model, name)._parameters) for name, _ in updates}
        self._places = list(updates)
        for (name, parameter), update in updates.items():
            parametrize.register_parametrization(named_module(model, name), parameter, update)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the factors A and B of all updates, or the second copies."""
        for module in self.modules():
            yield from module.parameters()

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules that hold them."""
        for name, parameter in self._places:
            yield named_module(self.model, name).get_submodule(f"parametrizations.{parameter}.0")

    def merged_state(self) -> dict[str, Tensor]:
        """Return the state dict that merging would leave; the updates stay in the model."""
        # Not a deep copy that is merged: both share the class from which merging takes the parametrized attribute.
        state: dict[str, Tensor] = {}
        for key, value in self.model.state_dict().items():
            name, inside, rest = f".{key}".partition(".parametrizations.")
            if not inside:
                state[key] = value
            elif rest.endswith(".original"):
                parameter, op = rest.removesuffix(".original"), name.removeprefix(".")
                merged: Tensor = getattr(named_module(self.model, op), parameter)
                state[f"{op}.{parameter}".removeprefix(".")] = merged.detach()
        return state

    def merge(self) -> None:
        """Add the updates to the base weights, in place, and take everything else off again."""
        for name, parameter in self._places:
            parametrize.remove_parametrizations(named_module(self.model, name), parameter)
        for name, order in self._order.items():  # the order of the keys is a part of the architecture
            parameters = named_module(self.model, name)._parameters
            for key in order:
                parameters[key] = parameters.pop(key)
