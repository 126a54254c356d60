"""Which of a model's weights are matrices: said by adapters, or by torch, or found by differentiation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from surgeon.algebra.folding import FoldMap
from surgeon.algebra.matrix_blocks import MatrixBlock, blocks_of_map
from surgeon.editing.insert import fold_map_of, require_plan
from surgeon.editing.weight_updates import copied_weights
from surgeon.errors import PlanError, SurgeonError, first_line
from surgeon.finding.weight_usage import Ties
from surgeon.plan import Plan, Site
from surgeon.registry import Adapter, installed_adapters
from surgeon.support.modules import named_module, own_weight, require_network
from surgeon.support.sharding import is_sharded


@dataclass(frozen=True, eq=False)
class WeightBlocks:
    """What is known of one trainable weight.

    Attributes:
        name: of the parameter, the first of its names if it is tied.
        parameter: itself.
        blocks: the matrices inside it; they do not overlap.
        why: where they are known from; without blocks, why there are none.
    """

    name: str
    parameter: nn.Parameter
    blocks: tuple[MatrixBlock, ...]
    why: str

    @property
    def covered(self) -> int:
        """Number of entries that lie in a block."""
        return sum(block.size for block in self.blocks)

    def to_data(self) -> dict[str, Any]:
        """Return everything but the numbers as JSON-compatible data."""
        blocks = [{"shape": list(block.shape), "offset": block.offset, "label": block.label} for block in self.blocks]
        return {"parameter": self.name, "shape": list(self.parameter.shape), "blocks": blocks, "why": self.why}


def find_blocks(
    model: nn.Module,
    plan: Plan | None = None,
    *,
    adapters: Mapping[str, Adapter] | None = None,
    folds: Mapping[str, FoldMap | None] | None = None,
) -> list[WeightBlocks]:
    """Find the matrices inside every trainable weight of a model; nothing is changed.

    What an adapter says of a layer comes first; a weight with two axes, and a kernel of torch's convolutions, is one
    matrix; for what remains the ops of the plan are run with other weights, which shows what each number does. A second
    copy of a weight has the matrices of that weight.

    Args:
        model: the network, relaxed or not.
        plan: as :func:`surgeon.find` made it; without one, weights that nobody explains have no blocks.
        adapters: default all that are installed.
        folds: what is known already of the plan's sites, by key; the others are looked at again.

    Returns:
        One entry for each trainable parameter, in the model's order.

    Raises:
        PlanError: if the plan does not fit the model.
    """
    require_network(model)
    if plan is not None:
        require_plan(plan)
    adapters = installed_adapters() if adapters is None else adapters
    said = _said(model, adapters.values())
    measured = _Measured(model, plan, adapters, folds or {})
    copies, found = copied_weights(model), []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weight = copies.get(id(parameter), parameter)
            blocks, why = said.get(id(weight)) or measured.blocks(weight)
            found.append(WeightBlocks(name, parameter, *_usable(parameter, tuple(blocks), why)))
    return found


def blocks_in_words(weights: Sequence[WeightBlocks]) -> str:
    """Say in words how much of the weights lies in blocks."""
    total, covered = sum(each.parameter.numel() for each in weights), sum(each.covered for each in weights)
    count = sum(len(each.blocks) for each in weights)
    share = f", {100 * covered / total:.0f} % of their numbers" if total else ""
    inside = sum(bool(each.blocks) for each in weights)
    return f"{count} matrices in {inside} of {len(weights)} trainable weights{share}"


Known = tuple[Sequence[MatrixBlock], str]


def _said(model: nn.Module, adapters: Iterable[Adapter]) -> dict[int, Known]:
    """Return what adapters and torch itself say, by the id of the parameter."""
    adapters, known = list(adapters), dict[int, Known]()
    for parameter in model.parameters():
        if parameter.is_complex():
            known[id(parameter)] = [], "its numbers are complex"
        elif parameter.ndim == 2:
            known[id(parameter)] = ([MatrixBlock.whole(parameter.shape)], "a weight with two axes")
    for module in model.modules():
        kernel = own_weight(module, "weight") if isinstance(module, _ConvNd) else None
        if kernel is not None and kernel.is_floating_point():
            known[id(kernel)] = ([MatrixBlock.whole(kernel.shape)], "a kernel: its first axis x all others")
    for module in model.modules():
        answers = ((adapter.name, adapter.blocks(module)) for adapter in adapters)
        name, answer = next(((name, answer) for name, answer in answers if answer is not None), ("", {}))
        for own, blocks in answer.items():
            words = blocks if isinstance(blocks, str) else f"said by the adapter {name}"
            with suppress(AttributeError):  # a layer of no weights has a buffer of their name
                known[id(own_weight(module, own))] = ([] if isinstance(blocks, str) else blocks, words)
    return known


class _Measured:
    """Blocks of weights that nobody explains, from the ops of a plan; each op is run once at most."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan | None,
        adapters: Mapping[str, Adapter],
        folds: Mapping[str, FoldMap | None],
    ) -> None:
        self._model, self._plan, self._adapters, self._folds = model, plan, adapters, folds
        self._sites: dict[int, Site] = {}
        self._found: dict[str, dict[int, Sequence[MatrixBlock]] | str] = {}
        for site in [] if plan is None else plan.sites:
            op = named_module(model, site.name)
            for name in [] if site.fold is None else site.fold["parameters"]:
                self._sites.setdefault(id(_of_plan(op, site, name)), site)

    def blocks(self, parameter: Tensor) -> Known:
        """Return the blocks of a parameter, or why there are none."""
        if parameter.ndim < 2 and id(parameter) not in self._sites:
            return [], "one axis, and no matrix that is known"
        site = self._sites.get(id(parameter))
        if site is None:
            of_plan = "there is no plan that does" if self._plan is None else "no op of the plan does"
            return [], f"no adapter explains its {parameter.ndim} axes, and {of_plan}"
        found = self._at(site)
        if isinstance(found, str):
            return [], found
        if id(parameter) not in found:
            return [], "what its numbers do for the op makes no matrices at regular places"
        return found[id(parameter)], "found by differentiation"

    @cached_property
    def _ties(self) -> Ties:
        return Ties(self._model)

    def _at(self, site: Site) -> dict[int, Sequence[MatrixBlock]] | str:
        if site.key not in self._found:
            self._found[site.key] = self._differentiated(site)
        return self._found[site.key]

    def _differentiated(self, site: Site) -> dict[int, Sequence[MatrixBlock]] | str:
        assert self._plan is not None
        fold_map = self._folds.get(site.key)
        try:
            if fold_map is None:
                fold_map = fold_map_of(self._ties, site, self._plan.group_object, self._adapters)
        except SurgeonError as error:
            return f"its op could not be run with other weights ({first_line(error)})"
        op = named_module(self._model, site.name)
        found = {} if fold_map is None else blocks_of_map(fold_map)
        return {id(_of_plan(op, site, name)): blocks for name, blocks in found.items()}


def _of_plan(op: nn.Module, site: Site, name: str) -> nn.Parameter:
    try:
        return own_weight(op, name)
    except AttributeError as error:
        raise PlanError(
            f"expected a parameter {name!r} of {site.name!r}, which the plan folds into, but there is none: the plan "
            "was made for another model, make a new one with `surgeon inspect`"
        ) from error


def _usable(parameter: nn.Parameter, blocks: tuple[MatrixBlock, ...], why: str) -> tuple[tuple[MatrixBlock, ...], str]:
    """Leave out what no optimiser of matrices can use."""
    kept = tuple(block for block in blocks if min(block.shape) > 1)
    if blocks and not kept:
        return (), "a single row or column"
    if kept and is_sharded(parameter):
        return (), "no process holds it whole"
    if kept and not _can_be_viewed(parameter, kept):
        return (), "its numbers do not lie one after the other in memory"
    return kept, why


def _can_be_viewed(parameter: Tensor, blocks: Sequence[MatrixBlock]) -> bool:
    try:
        return all(block.of(parameter.detach()).shape == block.shape for block in blocks)
    except RuntimeError:
        return False
