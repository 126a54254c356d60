"""The curvature where W breaks the symmetry: against dense Hessians, planted losses, noise, and models as they come."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.penalty import Commutator
from surgeon.algebra.representations.build import irreps, regular, representation_from
from surgeon.algebra.representations.core import Representation
from surgeon.errors import PlanError, TaskError, UsageError
from surgeon.files.content import json_compatible
from surgeon.plan import Plan, Site
from surgeon.training.diagnosis import result, work
from surgeon.training.diagnosis.curvature import BranchLoss, transverse_projection
from surgeon.training.diagnosis.lanczos import smallest_eigenvalue
from surgeon.training.diagnosis.result import Curvature, Diagnosis, DiagnosisSettings
from surgeon.training.diagnosis.work import diagnose_model
from surgeon.training.statistics import Estimate
from tests import nets
from tests.tiny import Net, TinyTask

pytestmark = pytest.mark.e3nn

RHO = "2x0e+1x1o"


def plan_of(model: Any, *inputs: Any, forward: Any = None) -> Plan:
    return surgeon.find(model, "O3", *inputs, **({"forward": forward} if forward else {}))


class Planted:
    """A loss that is exactly quadratic in W: ``1 + sum_ij k_ij W_ij^2 / 2`` plus a slope, chosen for every split.

    The inputs are unit vectors, so that the output's change is W itself.
    """

    def __init__(
        self, model: nn.Module, curvatures: dict[str, Callable[[Tensor], Tensor]], slope: float = 0.0, count: int = 6
    ) -> None:
        self.x, self.curvatures, self.slope, self.count = torch.eye(5, dtype=torch.float64), curvatures, slope, count
        with torch.no_grad():
            self.base = model(self.x)

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Any]]:
        generator = torch.Generator().manual_seed(len(split))
        for _ in range(self.count):
            noise = torch.randn(5, 5, generator=generator, dtype=torch.float64)
            yield {"k": self.curvatures[split](noise), "slope": self.slope * (1 + 0.1 * noise)}

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        moved: Tensor = model(self.x) - self.base
        return moved

    def loss(self, outputs: Tensor, batch: dict[str, Any]) -> Tensor:
        return 1 + (batch["k"] * outputs.square()).sum() / 2 + (batch["slope"] * outputs)[2:, :2].sum()


def bent(value: float) -> Callable[[Tensor], Tensor]:
    """Curvature 1 everywhere, another one from the scalars to the vector (all of it transverse), and a little noise."""

    def curvature(noise: Tensor) -> Tensor:
        k = torch.ones(5, 5, dtype=torch.float64)
        k[:2, 2:] = value + 0.01 * noise[:2, 2:]
        return k

    return curvature


def planted(train: float, held_out: float, slope: float = 0.0, **settings: Any) -> Diagnosis:
    model = o3.Linear(RHO, RHO).double()
    task = Planted(model, {"train": bent(train), "validation": bent(held_out)}, slope)
    return diagnose_model(model, plan_of(model, task.x), task, DiagnosisSettings(**settings))


def test_a_direction_that_is_real_on_both() -> None:
    found = planted(-0.5, -0.5)
    assert found.verdict == "real"
    assert found.curvature.converged
    assert found.curvature.held_out.high < 0
    assert "on held-out batches too" in found.sentences()[0]


def test_a_direction_of_the_training_batches_only() -> None:
    found = planted(-0.5, 0.5)
    assert found.verdict == "noise"
    assert found.curvature.held_out.mean > 0
    assert "noise of the training batches" in found.sentences()[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_minimum(seed: int) -> None:
    """Along intertwiners the projected Hessian is 0, which rounding must not lead to: half of the largest is least."""
    torch.manual_seed(seed)
    found = planted(0.5, -0.5)
    assert found.verdict == "none"
    assert found.curvature.train > 0.4 * found.curvature.largest
    assert "at a minimum" in found.sentences()[0]


def test_the_unit_is_what_the_loss_really_does() -> None:
    """For a quadratic loss, the second order is the change of the loss at 1 %."""
    curvature = planted(-0.5, -0.3).curvature
    one_percent = next(step for step in curvature.steps if step.movement == result.MOVEMENT)
    assert one_percent.train == pytest.approx(curvature.train, rel=1e-6)
    assert one_percent.held_out == pytest.approx(curvature.held_out.mean, rel=1e-6)
    larger = next(step for step in curvature.steps if step.movement == 10 * result.MOVEMENT)
    assert larger.train == pytest.approx(100 * curvature.train, rel=1e-6)


def test_the_movement_is_that_of_the_outputs() -> None:
    """For unit vectors as input, moving by 1 % means |W| = |f| / 100."""
    model = o3.Linear(RHO, RHO).double()
    task = Planted(model, {"train": bent(-0.5), "validation": bent(-0.5)})
    plan = plan_of(model, task.x)
    curvature = diagnose_model(model, plan, task).curvature
    dense = torch.cat([batch["k"][None] for batch in list(task.batches("train", 0))]).mean(0)[:2, 2:]
    expected = float(dense.min()) * float(task.base.square().sum()) * result.MOVEMENT**2 / 2
    assert curvature.train == pytest.approx(expected, abs=work.TOLERANCE * abs(expected))


@pytest.mark.parametrize(("slope", "real"), [(0.3, True), (0.0, False)])
def test_a_broken_symmetry_shows_in_the_gradient(slope: float, real: bool) -> None:
    found = planted(0.5, 0.5, slope)
    assert found.slope.real is real
    said = " ".join(found.sentences())
    assert ("break the symmetry, and the relaxed model can use that" in said) is real
    assert ("not distinguishable from 0" in said) is not real


def estimate(*values: float) -> Estimate:
    return Estimate.of(values)


@pytest.mark.parametrize(
    ("train", "residual", "held_out", "verdict"),
    [
        (-0.5, 0.01, estimate(-0.4, -0.5, -0.6), "real"),
        (-0.5, 0.01, estimate(0.1, 0.2, 0.3), "noise"),
        (-0.5, 0.01, estimate(-0.9, 0.1, 0.2), "undecided"),  # negative, and 0 is in the interval
        (-0.5, 0.01, estimate(-9.0, 9.0, 0.3), "undecided"),  # positive, and the training value is in the interval
        (-0.5, 0.01, estimate(-0.5), "undecided"),
        (-0.5, 0.01, estimate(0.5), "undecided"),
        (0.5, 0.01, estimate(0.4, 0.5, 0.6), "none"),
        (0.5, 0.9, estimate(0.4, 0.5, 0.6), "undecided"),
        (-1e-7, 0.0, estimate(-1e-7, -1e-7), "none"),
    ],
)
def test_verdicts(train: float, residual: float, held_out: Estimate, verdict: str) -> None:
    found = Curvature(train, residual, True, 1.0, 30, held_out, 1.0, {})
    assert found.verdict == verdict
    assert result._words(found)


def test_random_targets_are_not_called_real() -> None:
    """Targets without any structure: what bends down on one training batch is not there on others, but by chance."""

    class Noise(TinyTask):
        def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
            for number, batch in enumerate(super().batches(split, seed)):
                generator = torch.Generator().manual_seed(100 * len(split) + number)
                yield {**batch, "target": 10 * torch.randn(8, 3, generator=generator)}

    task, found = Noise(batches=16), []
    for _ in range(8):
        model, batch = Net(4), next(task.batches("train", 0))
        plan = plan_of(model, batch["scalars"], batch["vectors"])
        found.append(diagnose_model(model, plan, task, DiagnosisSettings(train_batches=1)))
    assert all(each.curvature.train < 0 for each in found)
    # An interval of 95 % lies below 0 by chance for one network in forty: three in eight would be no chance.
    assert sum(each.verdict not in ("noise", "undecided") for each in found) <= 2
    assert sum(each.slope.real for each in found) <= 2


# The numerics


def work_of(model: Any, task: Any, plan: Plan, check: Callable[[Any], None]) -> None:
    batches = {"train": list(task.batches("train", 0)), "validation": list(task.batches("validation", 0))}
    with work._relaxed(model, plan) as relaxation, work._differentiable(model, task, batches["train"][0]):
        check(work._Work(relaxation, task, batches, DiagnosisSettings(), None))


class DoubleTask(TinyTask):
    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        for batch in super().batches(split, seed):
            yield {name: value.double() for name, value in batch.items()}


def tiny_in_double() -> tuple[nn.Module, Any, Plan]:
    model, task = Net().double(), DoubleTask()
    batch = next(task.batches("train", 0))
    return model, task, plan_of(model, batch["scalars"], batch["vectors"])


@pytest.mark.parametrize("method", ["double backward", "central differences"])
def test_lanczos_finds_the_smallest_eigenvalue_of_the_dense_hessian(method: Any) -> None:
    model, task, plan = tiny_in_double()

    def check(under: Any) -> None:
        loss: BranchLoss = under.loss
        loss.method = method
        batches, size = under.batches["train"], sum(p.numel() for p in loss.coordinates.parameters)
        assert size < 200
        names = dict(zip(loss.coordinates.branches, loss.coordinates.parameters, strict=True))
        projections = [
            loss.coordinates.pull_back([row for row in loss.coordinates.split(unit).values()])
            for unit in torch.eye(size, dtype=torch.float64)
        ]
        transverse = torch.stack(projections)  # scale times projection, built from unit vectors

        def mean_loss(*weights: Tensor) -> Tensor:
            for parameter, weight in zip(names.values(), weights, strict=True):
                parameter_of[id(parameter)]._parameters["weight"] = weight
            return torch.stack([under._run(batch) for batch in batches]).mean()

        parameter_of = {id(branch.weight): branch for branch in loss.coordinates.branches.values()}
        originals = list(names.values())
        blocks = torch.autograd.functional.hessian(mean_loss, tuple(p.detach().clone() for p in originals))
        for parameter in originals:
            parameter_of[id(parameter)]._parameters["weight"] = parameter
        rows = [
            torch.cat([block.reshape(p.numel(), -1) for block in row], 1)
            for row, p in zip(blocks, originals, strict=True)
        ]
        dense = transverse @ torch.cat(rows) @ transverse.T
        exact = torch.linalg.eigvalsh((dense + dense.T) / 2)
        found = smallest_eigenvalue(lambda v: loss.product(batches, v), loss.coordinates.random(0), 120, 1e-6)
        assert exact[0] < 0
        assert found.converged
        assert found.value == pytest.approx(float(exact[0]), rel=1e-5)
        image = loss.product(batches, found.vector)
        assert float((image - found.value * found.vector).norm()) <= found.residual + 1e-5 * abs(found.value)

    work_of(model, task, plan, check)


def test_too_few_products_have_not_converged_and_say_so() -> None:
    matrix = torch.diag(torch.linspace(0, 1, 400, dtype=torch.float64) ** 8)
    start = torch.ones(400, dtype=torch.float64) / 20
    few = smallest_eigenvalue(lambda v: matrix @ v, start, 12, 1e-3)
    assert not few.converged
    assert few.value > 0
    curvature = Curvature(few.value, 1.0, False, 1.0, 12, estimate(1.0, 1.0), 1.0, {})
    assert "has not converged" in result._words(curvature)


def site(rho_out: Representation, rho_in: Representation) -> Site:
    shape = (rho_out.dimension, rho_in.dimension)
    return Site("op", "x", "linear", "", rho_in, rho_out, shape)


@pytest.mark.parametrize(
    ("group", "make"),
    [
        ("O3", lambda g: irreps(g, "2x0e+2x1o+1x2e")),
        ("C4", lambda g: regular(g, 2)),
        ("D3", lambda g: regular(g, 1)),
        ("SO13", lambda g: representation_from(g, {"axes": "c v", "sizes": {"c": 2}})),
        ("SO2", lambda g: representation_from(g, {"axes": "c v", "sizes": {"c": 2}})),
    ],
)
def test_the_transverse_part_is_orthogonal_to_every_intertwiner(
    group: str, make: Callable[[Any], Representation]
) -> None:
    rho = make(parse_group(group))
    project, note = transverse_projection(site(rho, rho))
    commutator = Commutator(rho, rho)
    size = rho.dimension
    units = torch.eye(size * size, dtype=torch.float64).reshape(-1, size, size)
    matrix = torch.stack([commutator(unit).flatten() for unit in units])
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    kernel = vectors[:, values < 1e-9]
    weight = torch.randn(size, size, dtype=torch.float64)
    expected = weight.flatten() - kernel @ (kernel.T @ weight.flatten())
    assert note == ""
    assert kernel.shape[1] > 0
    assert torch.allclose(project(weight).flatten(), expected, atol=1e-8)
    assert not torch.allclose(project(weight), weight, atol=1e-3)


def test_a_projection_that_is_not_found_takes_all_of_w(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.training.diagnosis.curvature.ITERATIONS", 0)
    rho = regular(parse_group("C4"), 1)
    project, note = transverse_projection(site(rho, rho))
    weight = torch.randn(4, 4)
    assert torch.equal(project(weight), weight)
    assert "all of W" in note


# Models as they come


def test_the_model_is_untouched_also_after_an_error() -> None:
    model = Net()
    model.first.weight.requires_grad_(False)
    copy.deepcopy(model)  # a first copy of e3nn's generated code can gain keys, a second does not
    task = TinyTask()
    batch = next(task.batches("train", 0))
    plan = plan_of(model, batch["scalars"], batch["vectors"])
    before = (nets.state(model), nets.traces(model), [p.requires_grad for p in model.parameters()])
    random = torch.random.get_rng_state()
    diagnose_model(model, plan, task, DiagnosisSettings(per_site=True))

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        diagnose_model(model, plan, task, None, stop)
    assert (nets.state(model), nets.traces(model), [p.requires_grad for p in model.parameters()]) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


class ForceTask:
    """Random forces for the net whose forward takes a gradient."""

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(len(split))
        for _ in range(3):
            yield {"x": torch.randn(6, 6, generator=generator), "f": torch.randn(6, 6, generator=generator)}

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        forces: Tensor = model(batch["x"])
        return forces

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (outputs - batch["f"]).square().mean()


class TrainingForces(nets.Forces):
    """Builds the graph of its forces in training mode only."""

    def forward(self, x: Tensor) -> Tensor:
        forces: Tensor = super().forward(x)
        return forces if self.training else forces.detach()


class Stochastic(TrainingForces):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if self.training else 1.0)


def force_plan() -> Plan:
    return plan_of(nets.Forces(), torch.randn(6, 6))


def test_forces_in_the_forward() -> None:
    found = diagnose_model(nets.Forces(), force_plan(), ForceTask())
    assert found.method == "double backward"
    assert found.curvature.largest > found.curvature.train
    assert math.isfinite(found.curvature.held_out.mean)


def test_a_graph_that_exists_in_training_mode_only() -> None:
    model, twin = TrainingForces().eval(), nets.Forces()
    twin.load_state_dict(model.state_dict())
    found, expected = (diagnose_model(net, force_plan(), ForceTask()) for net in (model, twin))
    assert found.curvature == expected.curvature
    assert not model.training
    with pytest.raises(TaskError, match="in training mode it is another loss"):
        diagnose_model(Stochastic(), force_plan(), ForceTask())


class _Refusing(torch.autograd.Function):
    """Tanh whose backward refuses to build a graph."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative")
        (x,) = context.saved_tensors
        return gradient * (1 - x.tanh() ** 2)


class _Once(_Refusing):
    """Tanh that refuses only where the engine asks it, which it does not on the way to the weights."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return gradient * (1 - x.tanh() ** 2)


class _Wrong(_Refusing):
    """Tanh whose second derivative is silently 0."""

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return gradient * (1 - x.detach().tanh() ** 2)


class Gated(Net):
    gate: Any = None

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        mixed = self.first(torch.cat([scalars, vectors.flatten(1)], 1))
        gates, features = mixed[:, : self.hidden], mixed[:, self.hidden :]
        gate = torch.tanh if self.gate is None else self.gate.apply
        gated = features.unflatten(1, (self.hidden, 3)) * gate(1 + gates).unsqueeze(2)
        result: Tensor = self.second(gated.flatten(1))
        return result


@pytest.mark.parametrize(
    ("gate", "reason"), [(_Refusing, "no second derivative"), (_Once, "deviates"), (_Wrong, "deviates")]
)
def test_models_that_cannot_be_differentiated_twice(gate: Any, reason: str) -> None:
    model, task, plan = tiny_in_double()
    twin = Gated().double()
    twin.load_state_dict(model.state_dict())
    settings = DiagnosisSettings(products=40)
    expected = diagnose_model(twin, plan, task, settings)
    twin.gate = gate
    found = diagnose_model(twin, plan, task, settings)
    assert (expected.method, found.method) == ("double backward", "central differences")
    assert reason in " ".join(found.notes)
    assert found.curvature.train == pytest.approx(expected.curvature.train, rel=1e-5)
    assert found.curvature.held_out.mean == pytest.approx(expected.curvature.held_out.mean, rel=1e-5)


def test_every_site_alone() -> None:
    model, task, plan = tiny_in_double()
    found = diagnose_model(model, plan, task, DiagnosisSettings(products=40, per_site=True))
    assert set(found.per_site) == {s.key for s in plan.sites}
    assert sum(found.curvature.shares.values()) == pytest.approx(1)
    assert all(alone.shares == {key: pytest.approx(1)} for key, alone in found.per_site.items())
    assert diagnose_model(model, plan, task).per_site == {}


def test_the_rank_of_a_site_does_not_matter() -> None:
    model, task, plan = tiny_in_double()
    low = dataclasses.replace(plan, sites=tuple(dataclasses.replace(s, rank=1) for s in plan.sites))
    assert diagnose_model(model, low, task).curvature == diagnose_model(model, plan, task).curvature


def test_float32_gives_what_float64_gives() -> None:
    model, task, plan = tiny_in_double()
    exact = diagnose_model(model, plan, task).curvature
    single = diagnose_model(copy.deepcopy(model).float(), plan, TinyTask()).curvature
    assert single.train == pytest.approx(exact.train, rel=1e-2)
    assert single.held_out.mean == pytest.approx(exact.held_out.mean, rel=5e-2)


def test_the_result_is_data() -> None:
    data = planted(-0.5, -0.5, per_site=True).to_data()
    assert json.loads(json.dumps(json_compatible(data)))["verdict"] == "real"
    assert [entry["verdict"] for entry in data["per_site"].values()] == ["real"]
    assert data["slope"]["real"] is False


def test_what_cannot_be_diagnosed() -> None:
    model, task, plan = tiny_in_double()
    for split in ("train", "validation"):
        with pytest.raises(TaskError, match=f"no batch in the split '{split}'"):
            diagnose_model(model, plan, TinyTask(empty=split))
    with pytest.raises(PlanError, match="at least one site"):
        diagnose_model(model, dataclasses.replace(plan, sites=()), task)
    with pytest.raises(UsageError, match="at least 10 products"):
        DiagnosisSettings(products=1)
    scalars = tuple(dataclasses.replace(s, blocks=((0, 0),)) for s in plan.sites[:1])
    with pytest.raises(PlanError, match="commutes"):
        diagnose_model(model, dataclasses.replace(plan, sites=scalars), task)

    class Nothing(DoubleTask):
        def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
            return 0 * outputs.sum()

    with pytest.raises(TaskError, match="loss other than 0"):
        diagnose_model(model, plan, Nothing())
