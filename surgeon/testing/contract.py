"""What every adapter has to satisfy, as a base class for its tests."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import unittest
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.intertwiners import average
from surgeon.editing.branch import Branch
from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.errors import CheckFailedError, GroupError, SurgeonError
from surgeon.finding.find import find
from surgeon.opening.loading import load_into
from surgeon.opening.task_calls import task_batches, task_forward, task_loss, task_symmetry
from surgeon.plan import Plan, Task
from surgeon.proof.architecture import Architecture
from surgeon.registry import ENTRY_POINTS, Adapter, has_task, installed_adapters
from surgeon.support.imports import import_attribute
from surgeon.support.trees import map_tensors, tensors_in
from surgeon.testing.soundness import Model, check_plan

ROUNDING = 1e-9
"""Largest relative deviation that counts as rounding in float64."""

BROKEN = 1e-3
"""Smallest relative deviation that counts as a broken symmetry when a group element is applied to one end only."""


class AdapterContract:
    """Subclass it as ``TestMyAdapter(AdapterContract)``, name the adapter, and return a sample; pytest does the rest.

    Attributes:
        adapter: ``package.module:attribute``, as it is registered.
        libraries: import names of the libraries that importing the adapter must not import.
        annotates: False for an adapter that leaves all annotations to others.
        folds: False for a family in which no op's own weights can hold a branch.
        tolerance: largest relative deviation, in float64, of what only rounding may change.

    Example::

        class TestE3nn(AdapterContract):
            adapter = "surgeon_adapters.e3nn_layers.adapter:adapter"
            libraries = ("e3nn",)

            def sample(self) -> Model:
                return Model(Net().double(), (batch,), Symmetry(parse_group("O3"), act, act_output, forward))
    """

    adapter: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()
    annotates: ClassVar[bool] = True
    folds: ClassVar[bool] = True
    tolerance: ClassVar[float] = ROUNDING

    def sample(self) -> Model:
        """Return a network of the family in float64, an input, and how the group acts on both ends.

        At least one op has to be proposed. Each call returns a new network with the same random weights.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define sample()")

    def data(self) -> Path | None:
        """Return a data file for the adapter's task, if it has one; it has to fit the sample."""
        return None

    def loaded(self) -> Adapter:
        """Return the adapter."""
        found: Adapter = import_attribute(self.adapter, "an adapter", SurgeonError)
        return found

    def test_it_is_registered_under_its_name(self) -> None:
        """The entry point of its name gives this very object."""
        adapter, installed = self.loaded(), installed_adapters()
        assert installed.get(adapter.name) is adapter, f"installed are {list(installed)}"
        assert adapter.groups

    def test_importing_it_imports_no_library(self) -> None:
        """Its library is imported inside of functions only, so that everybody else does not wait for it."""
        module = self.adapter.partition(":")[0]
        found = _imported_with_all(module) & set(self.libraries) and _imported_with(module) & set(self.libraries)
        assert not found, f"importing {module} imports {', '.join(sorted(found))}"

    def test_the_sample_is_equivariant(self) -> None:
        """Otherwise nothing that follows means anything; and the group really acts on its inputs."""
        model = self.sample()
        elements = _elements(model, seed=0)
        assert model.error(elements) <= self.tolerance
        changes = [relative_difference(model.symmetry.moved(g, model.inputs), model.inputs) for g in elements]
        assert max(changes) > BROKEN, "the group does not act on the sample's inputs"

    def test_proposals_are_found_and_verified(self) -> None:
        """Each site of this adapter holds on what its op really receives."""
        model = self.sample()
        plan = self._plan(model)
        own = [site for site in plan.sites if site.adapter == self.loaded().name]
        assert bool(own) == self.annotates, [site.adapter for site in plan.sites]
        for site in plan.sites:
            assert site.verified, f"{site.key}: {site.evidence}"

    def test_foreign_modules_are_left_alone(self) -> None:
        """A module of no family gets neither proposal nor description, and nothing is rebuilt from its tensors."""
        adapter, foreign = self.loaded(), nn.Sequential(nn.Linear(3, 3))
        assert adapter.propose(foreign, self.sample().symmetry.group) is None
        assert adapter.rebuild(foreign.state_dict()) is None
        assert adapter.describe(foreign) is None

    def test_inserting_changes_nothing_and_stripping_restores_everything(self) -> None:
        """At theta = 0 outputs are bit-identical; after stripping, keys, their order, bytes, classes and hooks are."""
        model = self.sample()
        plan = self._plan(model)
        before, original = _outputs(model), Architecture.of(model.module)
        state = {key: value.clone() for key, value in model.module.state_dict().items()}
        relax(model.module, plan, dense=True, init_scale=1.0)
        assert all(map(torch.equal, _outputs(model), before)), "outputs differ at theta = 0"
        strip(model.module, "drop")
        stripped, after = Architecture.of(model.module), model.module.state_dict()
        for part in ("keys", "shapes", "dtypes", "classes", "trainable", "hooks", "attributes"):
            assert getattr(stripped, part) == getattr(original, part), f"{part} differ after stripping"
        assert list(after) == list(state)
        assert all(torch.equal(after[key], value) for key, value in state.items())

    def test_each_branch_breaks_equivariance(self) -> None:
        """At theta = 0.1 a random W is seen at the output, through every site separately; gradients reach every W."""
        model = self.sample()
        check_plan(model, self._plan(model))

    def test_folding_is_exact_where_it_says_so(self) -> None:
        """Stripping adds exactly what the branch applied; where a site says nothing is lost, that is all of P(W)."""
        model = self.sample()
        plan = self._plan(model)
        notes = {site.key: site.fold_note for site in plan.sites}
        assert any(site.fold is not None for site in plan.sites) == self.folds, notes
        if not self.folds:
            return
        relaxation = relax(model.module, plan, dense=True, mode="fold", init_scale=1.0, adapters=self._adapters())
        for site in plan.sites:
            if site.fold is not None and not site.fold_note:
                _require_whole_average(relaxation, site.key)
        relaxation.set_theta(0.0, 1.0)
        before = _outputs(model)
        records = strip(model.module, "fold")
        assert any(record.folded for record in records)
        after = _outputs(model)
        assert max(map(relative_difference, after, before)) <= self.tolerance

    def test_a_described_model_is_rebuilt_from_plain_data(self) -> None:
        """What ``describe`` says survives JSON, and its factory builds the same function once the weights are in."""
        adapter, model = self.loaded(), self.sample()
        if type(adapter).describe is Adapter.describe:
            raise unittest.SkipTest(f"the adapter {adapter.name} does not describe whole modules")
        described = adapter.describe(model.module)
        assert described is not None
        data = json.loads(json.dumps({name: described[name] for name in ("factory", "args")}))
        rebuilt = import_attribute(data["factory"], "a factory", SurgeonError)(**data["args"])
        load_into(rebuilt, model.module.state_dict(), "the sample")
        assert list(rebuilt.state_dict()) == list(model.module.state_dict())
        again = dataclasses.replace(model, module=rebuilt.train(model.module.training))
        assert max(map(relative_difference, _outputs(again), _outputs(model))) <= self.tolerance

    def test_the_ready_task_trains_and_acts(self) -> None:
        """All splits have batches, the loss has a gradient, and the model is equivariant as the task says."""
        adapter, model, data = self.loaded(), self.sample(), self.data()
        if not has_task(adapter):
            raise unittest.SkipTest(f"the adapter {adapter.name} has no task")
        assert data is not None, f"{type(self).__name__} has to define data()"
        task: Any = adapter.task(data, {})
        task = task.for_model(model.module) if hasattr(task, "for_model") else task
        for split in ("train", "validation", "test"):
            batch = next(iter(task_batches(task, split, 0)))
            assert torch.isfinite(task_loss(task, task_forward(task, model.module, batch), batch))
        self._check_training(task, model.module, batch)
        own = dataclasses.replace(model, inputs=(batch,), symmetry=task_symmetry(task, model.symmetry.group))
        assert own.error(_elements(own, seed=1)) <= self.tolerance

    def _check_training(self, task: Task, module: nn.Module, batch: Mapping[str, Any]) -> None:
        module.train()
        module.zero_grad()
        task_loss(task, task_forward(task, module, batch), batch).backward()  # type: ignore[no-untyped-call]
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
        module.eval()

    def _plan(self, model: Model) -> Plan:
        symmetry, adapters = model.symmetry, self._adapters()
        return find(model.module, symmetry.group, *model.inputs, forward=symmetry.forward, adapters=adapters)

    def _adapters(self) -> dict[str, Adapter]:
        return {**installed_adapters(), self.loaded().name: self.loaded()}


@functools.cache
def _imported_with_all(module: str) -> frozenset[str]:
    """Return what :func:`_imported_with` does, and what registered adapters import: one process for all of them."""
    registered = {point.module for point in entry_points(group=ENTRY_POINTS)}
    return _imported_with(*sorted(registered)) if module in registered else _imported_with(module)


@functools.cache
def _imported_with(*modules: str) -> frozenset[str]:
    """Return the packages that a fresh interpreter has imported after it has imported modules."""
    code = f"import sys; sys.path[:] = {sys.path!r}; import {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return frozenset(name.partition(".")[0] for name in done.stdout.split())


def _elements(model: Model, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([element.g for element in model.symmetry.group.test_elements(generator, 2)])


def _outputs(model: Model) -> list[Tensor]:
    return tensors_in(map_tensors(Tensor.detach, model.run()))


def _require_whole_average(relaxation: Relaxation, key: str) -> None:
    """Compare P_op(W) of a site that claims to fold exactly with P(W)."""
    branch: Branch = relaxation.branches[key]
    site = next(site for site in relaxation.plan.sites if site.key == key)
    weight = branch.weight.detach()
    if weight.dim() != 2:
        return
    try:
        expected = average(weight, site.rho_out, site.rho_in)
    except GroupError:  # not a sum of irreps
        return
    error = relative_difference(branch.foldable_part().detach(), expected)
    if not error <= ROUNDING:
        raise CheckFailedError(
            f"the site {key} claims that its weights produce every intertwiner, but P_op(W) deviates from P(W) by "
            f"{error:.1e}"
        )
