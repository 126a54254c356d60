"""What each arm does to the weights, and the pieces of the engine that they share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.editing.budget import with_rank
from surgeon.editing.insert import relax
from surgeon.editing.strip import refold, strip
from surgeon.editing.weight_updates import WeightUpdates
from surgeon.errors import PlanError, SurgeryError, TaskError, TrainingError, UsageError
from surgeon.finding.find import find
from surgeon.plan import StripMode
from surgeon.proof.certify import certify
from surgeon.training.arms import arm_named
from surgeon.training.costs import training_costs
from surgeon.training.ema import Ema
from surgeon.training.engine import Finetuner
from surgeon.training.optimizers import BlockAdamW, block_mean, rate_scale
from surgeon.training.progress import StepEvent
from surgeon.training.settings import FinetuneSettings
from surgeon.training.state import random_state, set_random_state
from tests import nets
from tests.nets import o3
from tests.tiny import Net, TinyTask
from tests.training.conftest import plan_of, train

Make = Callable[..., tuple[Any, Any]]
SETTINGS = FinetuneSettings(epochs=3, learning_rate=1e-2, branch_factor=1.0, gauge_factor=1.0)


def data() -> dict[str, Tensor]:
    return next(iter(TinyTask().batches("test", 0)))


def output(net: Any) -> Tensor:
    batch = data()
    result: Tensor = net.eval()(batch["scalars"], batch["vectors"]).detach()
    return result


# Refold


def test_a_refold_changes_no_output_and_leaves_nothing_foldable(make: Make) -> None:
    net, relaxation = make("drop", init_scale=1.0)
    relaxation.set_theta(0.7)
    before, base = output(net), [p.detach().clone() for p in relaxation.base_parameters()]
    foldable = [float(branch.foldable_part().detach().norm()) for branch in relaxation.branches.values()]
    refold(relaxation)
    assert torch.allclose(output(net), before, atol=1e-6)
    assert min(foldable) > 0.1
    assert all(float(b.foldable_part().detach().norm()) < 1e-6 for b in relaxation.branches.values())
    assert any(not torch.equal(p, q) for p, q in zip(relaxation.base_parameters(), base, strict=True))


def test_a_refold_leaves_in_w_what_rounding_keeps_from_the_base() -> None:
    net = o3.Linear("8x0e+8x1o", "8x0e+8x1o").to(torch.bfloat16)
    relaxation = relax(net, find(net, "O3"), dense=True, init_scale=0.01)
    relaxation.set_theta(0.5)
    (branch,) = relaxation.branches.values()

    def coefficients() -> Tensor:
        """The linear map of base and branch together, in float64."""
        twin = o3.Linear("8x0e+8x1o", "8x0e+8x1o").double()
        twin.load_state_dict({"weight": net.weight.detach().double()}, strict=False)
        return nets.linear_map(twin, None, 32) + 0.5 * branch.weight.detach().double()

    before, part, base = coefficients(), branch.foldable_part().detach().double(), net.weight.detach().clone()
    refold(relaxation)
    assert not torch.equal(net.weight, base)
    assert (coefficients() - before).norm() < 0.02 * 0.5 * part.norm()  # two thirds if W lost all of P(W)


def test_a_refold_at_theta_zero_does_nothing(make: Make) -> None:
    net, relaxation = make("drop", init_scale=1.0)
    before = copy.deepcopy(net.state_dict())
    refold(relaxation)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_what_the_arm_refold_gains_survives_dropping(make: Make, task: TinyTask) -> None:
    """With the base frozen, only what is folded remains."""
    net, relaxation = make("refold")
    before = output(net)
    settings = FinetuneSettings(epochs=4, learning_rate=1e-1, branch_factor=1.0, freeze_base=True, refold_every=2)
    result = train(net, task, settings, arm_named("refold"), relaxation)
    assert result.best_epoch > 0
    assert all(parameter.requires_grad for parameter in relaxation.base_parameters())
    strip(relaxation)
    assert (output(net) - before).norm() > 1e-2 * before.norm()


def test_low_rank_branches_are_not_refolded(make: Make) -> None:
    net = Net()
    relaxation = relax(net, with_rank(plan_of(net), 1), dense=True, init_scale=1.0)
    relaxation.set_theta(1.0)
    base = copy.deepcopy(net.state_dict())
    with pytest.raises(SurgeryError, match="expected a dense W"):
        refold(relaxation)
    assert all(torch.equal(value, base[key]) for key, value in net.state_dict().items())


def test_a_frozen_base_needs_an_arm_that_keeps_something(make: Make, task: TinyTask) -> None:
    net, relaxation = make("drop")
    with pytest.raises(UsageError, match="keeps what it adds when the base is frozen, got 'drop'"):
        Finetuner(net, task, FinetuneSettings(freeze_base=True), arm_named("drop"), relaxation)


# Low-rank updates of the base


def test_updates_start_at_nothing_train_and_merge_exactly(task: TinyTask) -> None:
    torch.manual_seed(0)
    net = Net()
    original, before = copy.deepcopy(net), output(net)
    updates = WeightUpdates(net, plan_of(net), rank=1)
    assert torch.equal(output(net), before)
    settings = FinetuneSettings(epochs=4, learning_rate=1e-1, gauge_factor=1.0, freeze_base=True)
    result = train(net, task, settings, arm_named("lowrank"), updates)
    assert result.best_epoch > 0
    trained = output(net)
    updates.merge()
    assert torch.allclose(output(net), trained, atol=1e-6)
    assert not torch.allclose(trained, before, atol=1e-2)
    assert type(net.first) is type(original.first)
    batch = data()
    assert certify(original, net, lambda model: model(batch["scalars"], batch["vectors"])).passed


def test_a_second_copy_starts_at_nothing_stays_equivariant_and_merges_exactly(task: TinyTask) -> None:
    torch.manual_seed(0)
    net = Net().double()
    batch = {name: value.double() for name, value in data().items()}
    turn = o3.rand_matrix().double()
    turned = task.act(turn, batch)

    def outputs(on: dict[str, Tensor] = batch) -> Tensor:
        return net(on["scalars"], on["vectors"]).detach()

    def unequal() -> float:
        return float((outputs(turned) - outputs() @ turn.T).abs().max())

    before, plan = outputs(), plan_of(Net())
    updates = WeightUpdates(net, plan, rank=None)
    assert torch.equal(outputs(), before)
    assert sum(weight.numel() for weight in updates.parameters()) == sum(w.numel() for w in Net().parameters()) == 10
    assert sum(site.rho_out.dimension * site.rho_in.dimension for site in plan.sites) == 82  # a dense W of each op
    with torch.no_grad():
        for weight in updates.parameters():
            weight.normal_()
    trained = outputs()
    assert float((trained - before).abs().max()) > 0.1
    assert unequal() < 1e-10
    merged = updates.merged_state()
    updates.merge()
    assert torch.equal(outputs(), trained)
    assert all(torch.equal(merged[name], value) for name, value in net.state_dict().items())
    relax(net, plan, dense=True, init_scale=1.0).set_theta(1.0)
    assert unequal() > 1e-2


@pytest.mark.parametrize("rank", [1, None])
def test_a_plan_without_foldable_sites_cannot_hold_updates(rank: int | None) -> None:
    import dataclasses

    net = Net()
    plan = plan_of(net)
    bare = dataclasses.replace(plan, sites=tuple(dataclasses.replace(site, fold=None) for site in plan.sites))
    with pytest.raises(PlanError, match="none of the plan can be folded"):
        WeightUpdates(net, bare, rank=rank)


# Learned theta


def test_learned_thetas_leave_zero_and_are_pulled_back(make: Make, task: TinyTask) -> None:
    norms = {}
    for rate in (1e-6, 5.0):
        net, relaxation = make("ace")
        run = Finetuner(
            net,
            TinyTask(batches=20),
            FinetuneSettings(epochs=4, learning_rate=1e-2, dual_rate=rate),
            arm_named("ace"),
            relaxation,
        )
        result = run.run()
        assert run.state.duals.keys() == relaxation.branches.keys()
        norms[rate] = max(abs(theta) for entry in [result.history[-1]["theta"]] for theta in entry[:1])
        assert all(not branch.theta.requires_grad for branch in relaxation.branches.values())
    assert norms[1e-6] > 1e-2
    assert norms[5.0] < norms[1e-6]


def test_the_bumped_rate_is_the_control(make: Make, task: TinyTask) -> None:
    rates: dict[str, list[float]] = {}
    for arm in ("plain", "lrbump"):
        net, _ = make("plain")
        run = Finetuner(net, task, FinetuneSettings(epochs=2, decay="constant"), arm_named(arm), None)
        seen: list[float] = []
        run.run(lambda _, run=run, seen=seen: seen.append(run.optimizer.param_groups[0]["lr"]))  # type: ignore[misc]
        rates[arm] = seen
    schedule = FinetuneSettings().schedule
    expected = [rate * (1 + schedule.perpendicular(step / 6)) for step, rate in enumerate(rates["plain"])]
    assert rates["lrbump"] == pytest.approx(expected)
    assert max(rates["lrbump"]) > 1.5e-3


# Optimiser


def test_the_mean_over_blocks() -> None:
    values = torch.arange(24.0).reshape(4, 3, 2)
    rows, columns = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1])
    found = block_mean(values, (rows, columns))
    assert torch.allclose(found[0, 0], values[:2, :1].mean())
    assert torch.allclose(found[3, 2], values[2:, 1:].mean())
    assert found.shape == values.shape


def test_with_one_entry_per_block_it_is_adamw() -> None:
    torch.manual_seed(0)
    target = torch.randn(3, 4)
    ends = []
    for blocks in (
        None,
        (torch.arange(3), torch.arange(4)),
        (torch.zeros(3, dtype=torch.long), torch.zeros(4, dtype=torch.long)),
    ):
        weight = torch.zeros(3, 4, requires_grad=True)
        group: dict[str, Any] = {"params": [weight]}
        if blocks is not None:
            group["blocks"] = [blocks]
        optimizer = BlockAdamW([group], lr=0.05, weight_decay=0.1)
        for _ in range(7):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()
        ends.append(weight.detach())
    assert torch.allclose(ends[0], ends[1], atol=1e-6)
    assert not torch.allclose(ends[0], ends[2], atol=1e-3)


def test_block_steps_are_proportional_to_gradients_within_a_block(make: Make) -> None:
    net, relaxation = make("drop")
    settings = FinetuneSettings(epochs=1, learning_rate=1e-2, normalisation="block", penalty_weight=0.0)
    run = Finetuner(net, TinyTask(batches=1), settings, arm_named("drop"), relaxation)
    assert "blocks" in run.optimizer.param_groups[1]
    run.run()
    with pytest.raises(UsageError, match="adamw with the branch normalisation"):
        Finetuner(
            net, TinyTask(), FinetuneSettings(normalisation="block", optimizer="sgd"), arm_named("drop"), relaxation
        )


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "soap", "muon"])
def test_every_optimizer_trains(make: Make, task: TinyTask, optimizer: Any) -> None:
    net, relaxation = make("drop")
    before = output(net)
    train(net, task, FinetuneSettings(epochs=2, learning_rate=1e-2, optimizer=optimizer), arm_named("drop"), relaxation)
    assert not torch.equal(output(net), before)


def test_rates_over_a_training() -> None:
    def scales(**given: Any) -> list[float]:
        settings = FinetuneSettings(**given)
        return [rate_scale(settings, step, 10, step // 2) for step in range(10)]

    assert scales(decay="constant") == [1.0] * 10
    warm = scales(decay="constant", warmup=3)
    assert warm[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert scales(decay="linear") == pytest.approx([1 - step / 10 for step in range(10)])
    assert scales(decay="step", decay_factor=0.5, decay_every=2) == [1.0] * 4 + [0.5] * 4 + [0.25] * 2
    assert scales(decay="cosine")[5] == pytest.approx(0.5)


# Average, accumulation, stopping


def test_the_average_is_what_is_evaluated_and_kept(make: Make, task: TinyTask) -> None:
    net, _ = make("plain")
    twin = copy.deepcopy(net)
    run = Finetuner(net, task, FinetuneSettings(epochs=1, learning_rate=1e-1, ema=0.9), arm_named("plain"), None)
    seen: list[dict[str, Tensor]] = []
    run.run(lambda _: seen.append(copy.deepcopy({k: v.detach() for k, v in net.named_parameters()})))
    average = {name: value.detach().clone() for name, value in twin.named_parameters()}
    for step, weights in enumerate(seen, start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
    assert run.ema is not None
    assert all(torch.allclose(run.ema.shadow[name], value, atol=1e-6) for name, value in average.items())
    kept = run.selection.best_weights
    assert run.state.best_epoch == 1
    assert all(torch.allclose(kept[name], value, atol=1e-6) for name, value in average.items())
    assert any(not torch.allclose(kept[name], value, atol=1e-4) for name, value in seen[-1].items())


def test_swapping_keeps_changes_in_the_average() -> None:
    net = Net()
    ema = Ema(net, 0.5)
    before = [p.detach().clone() for p in net.parameters()]
    with ema.swapped(), torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(torch.allclose(s, q + 1) for s, q in zip(ema.shadow.values(), before, strict=True) if s.numel())


def test_accumulated_batches_are_one_large_batch(make: Make) -> None:
    class Joined(TinyTask):
        """All batches of an epoch as one."""

        def batches(self, split: str, seed: int) -> Any:
            parts = list(super().batches(split, seed))
            yield {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    ends, penalties = [], []
    for task, accumulate in ((TinyTask(), 3), (Joined(), 1), (TinyTask(), 1)):
        net, relaxation = make("drop", init_scale=1.0)
        settings = FinetuneSettings(
            epochs=2, learning_rate=1e-2, accumulate=accumulate, penalty_weight=0.3, penalty_rows=None, penalty_every=1
        )
        run = Finetuner(net, task, settings, arm_named("drop"), relaxation)
        result = run.run()
        ends.append(torch.cat([value.flatten() for value in run.plain_model.state_dict().values()]))
        penalties.append(result.history[1]["penalty"])
    assert torch.allclose(ends[0], ends[1], atol=1e-5)
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-5)
    assert not torch.allclose(ends[0], ends[2], atol=1e-4)


def test_training_stops_when_nothing_gets_better(make: Make, task: TinyTask) -> None:
    net, _ = make("plain")
    settings = FinetuneSettings(epochs=30, learning_rate=5.0, decay="constant", patience=2)
    result = train(net, task, settings, arm_named("plain"))
    assert result.stopped == "no better mse in 2 evaluations"
    assert len(result.history) < 30
    assert result.best_epoch == result.history[-1]["epoch"] - 2


def test_adaptive_theta_falls_when_the_relaxed_model_is_worse(make: Make, task: TinyTask) -> None:
    tops = {}
    for adaptive in (False, True):
        net, relaxation = make("drop", init_scale=20.0)  # so large that it only harms
        settings = FinetuneSettings(
            epochs=16, learning_rate=1e-5, adaptive_theta=adaptive, penalty_weight=0.0, decay="constant"
        )
        run = Finetuner(net, task, settings, arm_named("drop"), relaxation)
        events: list[StepEvent] = []
        run.run(events.append)
        tops[adaptive] = (max(event.theta for event in events), run.state.theta_scale)
    assert tops[False][1] == 1.0
    assert tops[True][1] <= 0.25
    assert tops[True][0] < tops[False][0]


def test_sites_can_have_a_share_of_theta(make: Make) -> None:
    from surgeon.algebra.schedule import Schedule

    net, relaxation = make("drop")
    relaxation.schedule = Schedule("triangle", tail=0.0, sites=(("*", 0.5), ("second", 0.25)))
    relaxation.set_progress(0.5)
    assert relaxation.thetas == {"first.features": (0.5, 0.5), "second.features": (0.25, 0.25)}
    with pytest.raises(PlanError, match="the schedule's pattern 'third' to match"):
        relaxation.schedule = Schedule(sites=(("third", 1.0),))


# Faults


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "but it ran out .*--accumulate"),
        (
            torch.distributed.DistNetworkError("reset by peer"),
            r"another one has ended .*reset by peer\).*same command",
        ),
        (RuntimeError("[/a/gloo/transport/tcp/pair.cc:5] closed"), r"another one has ended .*same command again"),
    ],
    ids=["memory", "another process", "another process, by gloo"],
)
def test_what_ends_a_step_says_what_helps(make: Make, task: TinyTask, error: Exception, words: str) -> None:
    net, relaxation = make("drop")

    def failing(outputs: Tensor, batch: Any) -> Tensor:
        raise error

    task.loss = failing  # type: ignore[method-assign]
    task.metrics = lambda outputs, batch: {"mse": (1.0, 1.0), "loss": (1.0, 1.0)}  # type: ignore[method-assign, assignment]
    with pytest.raises(TrainingError, match=words):
        train(net, task, FinetuneSettings(epochs=1), arm_named("drop"), relaxation)


def test_a_loader_that_fails_is_a_sentence(make: Make, task: TinyTask) -> None:
    usual = task.batches

    def batches(split: str, seed: int) -> Any:
        for number, batch in enumerate(usual(split, seed)):
            if split == "train" and number == 2:
                raise OSError("the disk went away")
            yield batch

    task.batches = batches  # type: ignore[method-assign, assignment]
    net, _ = make("plain")
    with pytest.raises(TaskError, match="failed after 2 of the train split with OSError: the disk went away"):
        train(net, task, FinetuneSettings(epochs=1), arm_named("plain"))


def test_a_missing_tracker_is_named(make: Make, task: TinyTask) -> None:
    net, _ = make("plain")
    with pytest.raises(UsageError, match="tracker among tensorboard, wandb, mlflow, got 'papyrus'"):
        Finetuner(net, task, FinetuneSettings(), arm_named("plain"), None, trackers=["papyrus"])


def test_determinism_is_switched_off_again(make: Make, task: TinyTask) -> None:
    net, _ = make("plain")
    seen = []
    run = Finetuner(net, task, FinetuneSettings(epochs=1, deterministic=True), arm_named("plain"), None)
    run.run(lambda _: seen.append(torch.are_deterministic_algorithms_enabled()))
    assert seen == [True] * 3
    assert not torch.are_deterministic_algorithms_enabled()


def test_random_states_come_back() -> None:
    import random

    import numpy

    state = random_state()
    first = (torch.rand(2).tolist(), random.random(), random.gauss(0, 1), numpy.random.rand())
    after = random_state()
    set_random_state(state)
    assert (torch.rand(2).tolist(), random.random(), random.gauss(0, 1), numpy.random.rand()) == first
    set_random_state(after)
    assert random.gauss(0, 1) != first[2]
    assert math.isfinite(first[1])


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_costs_are_counted_without_changing_anything(make: Make, task: TinyTask, mode: StripMode) -> None:
    net, relaxation = make(mode, init_scale=1.0)
    relaxation.set_theta(0.5)
    before, state = output(net), torch.get_rng_state()
    costs = training_costs(net, task, relaxation)
    rows = 8
    assert costs.extra_parameters == sum(site.extra_parameters for site in relaxation.plan.sites)
    maps = [branch.fold_map for branch in relaxation.branches.values() if mode == "fold"]
    projecting = sum(4 * len(part.entries) * part.basis.numel() for own in maps if own for part in own.parts)
    assert costs.extra_flops == 2 * rows * costs.extra_parameters + projecting
    assert costs.flops > 0
    assert "nothing of it remains after stripping" in costs.sentence()
    assert torch.equal(output(net), before)
    assert torch.equal(torch.get_rng_state(), state)
