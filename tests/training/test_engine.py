from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from surgeon.editing.relaxation import PenaltySettings
from surgeon.editing.strip import strip
from surgeon.errors import TaskError, TrainingError
from surgeon.opening.evaluation import evaluate
from surgeon.plan import CHILD
from surgeon.proof.certify import certify
from surgeon.training.arms import arm_named
from surgeon.training.engine import Finetuner
from surgeon.training.progress import StepEvent
from surgeon.training.settings import PRESETS, FinetuneSettings
from surgeon.training.weighting import PenaltyWeight
from tests.tiny import Plain, TinyTask
from tests.training.conftest import train

Make = Callable[..., tuple[Any, Any]]
RATE = FinetuneSettings(epochs=2, learning_rate=1e-2, decay="constant", penalty_weight=0.0)


def one_epoch(run: Finetuner) -> tuple[float, float]:
    """Mean task loss and penalty of one epoch."""
    losses, penalties = zip(*run._epoch(), strict=True)
    return sum(losses) / len(losses), sum(penalties) / len(penalties)


def base_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if CHILD not in key}


def branches_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if CHILD in key}


def distance(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    differences = [(after[key].double() - value.double()).abs() for key, value in before.items() if value.numel()]
    return max(float(difference.max()) for difference in differences)


def test_plain_is_an_ordinary_adamw_loop(make: Make, task: TinyTask) -> None:
    net, _ = make("plain")
    twin = copy.deepcopy(net)
    settings = FinetuneSettings(epochs=3, learning_rate=1e-2, weight_decay=0.1, seed=4)
    result = train(net, task, settings, arm_named("plain"))
    optimizer, steps = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1), 0
    best = (evaluate(twin, task, "validation")["mse"], base_of(twin))
    for epoch in range(1, 4):
        twin.train()
        for batch in TinyTask().batches("train", 4 * 100_003 + epoch):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 + math.cos(math.pi * steps / 9)) / 2
            optimizer.zero_grad()
            task.loss(twin(batch["scalars"], batch["vectors"]), batch).backward()
            optimizer.step()
            steps += 1
        value = evaluate(twin, task, "validation")["mse"]
        best = min(best, (value, base_of(twin)), key=lambda pair: pair[0])
    assert result.best_epoch > 0
    assert result.validation["mse"] == best[0]
    assert all(torch.equal(value, best[1][key]) for key, value in net.state_dict().items())


def test_theta_is_exactly_zero_at_the_end_of_drop(make: Make, task: TinyTask) -> None:
    net, relaxation = make("drop")
    events: list[StepEvent] = []
    result = train(net, task, RATE, arm_named("drop"), relaxation, events.append)
    assert events[0].theta == 0.0
    assert max(event.theta for event in events) > 0.5
    assert result.history[-1]["theta"] == (0.0, 0.0)
    assert result.history[-1]["validation"] == result.history[-1]["validation_relaxed"]
    assert result.history[1]["validation"] != result.history[1]["validation_relaxed"]
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]


class MisleadingTask(TinyTask):
    """The relaxed model looks best in the middle; the clean one gets better until the end."""

    def metrics(self, outputs: Tensor, batch: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
        return {"mse": (self.score(), 1.0)}

    def score(self) -> float:
        relaxation = self.relaxation
        clean = next(iter(relaxation.branches.values())).clean
        return (4.0 if clean else 2.0) - self.trained / 6 if self.trained < 5 else (1.0 if clean else 9.0)

    relaxation: Any


def test_the_best_epoch_is_chosen_by_clean_validation(make: Make) -> None:
    task = MisleadingTask()
    net, task.relaxation = make("drop")
    result = train(net, task, RATE, arm_named("drop"), task.relaxation)
    relaxed = [entry["validation_relaxed"]["mse"] for entry in result.history]
    assert relaxed.index(min(relaxed)) == 1
    assert result.best_epoch == 2
    assert result.validation["mse"] == 1.0


def test_epoch_zero_counts(make: Make, task: TinyTask) -> None:
    net, relaxation = make("drop")
    before = base_of(net)
    settings = FinetuneSettings(epochs=1, learning_rate=10.0)
    result = train(net, task, settings, arm_named("drop"), relaxation)
    assert result.best_epoch == 0
    assert distance(before, base_of(net)) == 0.0
    assert result.validation["mse"] < result.history[-1]["validation"]["mse"]


def test_largest_can_be_best(make: Make) -> None:
    class Upwards(TinyTask):
        primary_direction = "max"

    net, relaxation = make("drop")
    settings = FinetuneSettings(epochs=1, learning_rate=10.0)
    assert train(net, Upwards(), settings, arm_named("drop"), relaxation).best_epoch == 1


@pytest.mark.parametrize("factor", [0.01, 5.0])
def test_base_and_branch_have_rates_of_their_own(make: Make, factor: float) -> None:
    net, relaxation = make("drop", init_scale=1.0)
    settings = FinetuneSettings(
        epochs=1, learning_rate=1e-3, branch_factor=factor, decay="constant", penalty_weight=1e-3
    )
    base, branches = base_of(net), branches_of(net)
    run = Finetuner(net, TinyTask(batches=1), settings, arm_named("drop"), relaxation)
    one_epoch(run)
    # Adam's first step moves an entry by its learning rate
    assert distance(base, base_of(net)) == pytest.approx(1e-3, rel=1e-3)
    assert distance(branches, branches_of(net)) == pytest.approx(1e-3 * factor, rel=1e-2)


def test_clipping_acts(make: Make) -> None:
    norms = {}
    for clip in (None, 1e-3):
        net, _ = make("plain")
        run = Finetuner(
            net,
            TinyTask(batches=1),
            FinetuneSettings(epochs=1, learning_rate=1e-9, clip=clip),
            arm_named("plain"),
            None,
        )
        one_epoch(run)
        moments = [state["exp_avg"] for state in run.optimizer.state.values()]
        norms[clip] = float(torch.cat([moment.flatten() for moment in moments]).norm()) / 0.1
    assert norms[None] > 0.01
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2)


def test_base_and_branches_are_clipped_apart(make: Make) -> None:
    """A large gradient of W must not shorten the step of the base."""
    net, relaxation = make("drop", init_scale=1.0)
    settings = FinetuneSettings(epochs=1, learning_rate=1e-9, clip=1e-3, penalty_weight=1e4)
    run = Finetuner(net, TinyTask(batches=1), settings, arm_named("drop"), relaxation)
    one_epoch(run)
    norms = []
    for group in run.optimizer.param_groups:
        moments = [run.optimizer.state[parameter]["exp_avg"].flatten() for parameter in group["params"]]
        norms.append(float(torch.cat(moments).norm()) / 0.1)
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-2)


class Scaled:
    """Stands for accelerate's driver in fp16, which needs a GPU: an overflow, with or without a loss scaler."""

    def __init__(self, scaler: object | None) -> None:
        self.scaler = scaler

    num_processes = 1

    def unscale_gradients(self) -> None:
        pass


def test_an_overflow_stops_only_without_a_loss_scaler(make: Make, task: TinyTask) -> None:
    net, relaxation = make("drop")
    run = Finetuner(net, task, RATE, arm_named("drop"), relaxation)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    run.accelerator = Scaled(scaler=object())  # type: ignore[assignment]
    run._finish_gradients()
    run.accelerator = Scaled(scaler=None)  # type: ignore[assignment]
    with pytest.raises(TrainingError, match="the gradient of .* became NaN or infinite"):
        run._finish_gradients()


def test_scaled_gradients_of_all_groups_are_unscaled_once(
    make: Make, task: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, relaxation = make("drop")
    run = Finetuner(net, task, replace(RATE, clip=100.0), arm_named("drop"), relaxation)
    assert len(run.optimizer.param_groups) == 2
    run.accelerator.native_amp, run.accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=8.0)
    monkeypatch.setattr(type(run.accelerator), "mixed_precision", "fp16")
    run.accelerator.scaler.scale(torch.zeros(()))
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 8.0)
    run._finish_gradients()
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters() if p.grad is not None)


def penalty_scale_after_one_step(make: Make, scale: str) -> tuple[float, float]:
    net, relaxation = make("drop", init_scale=1.0)
    settings = FinetuneSettings(epochs=1, penalty_weight=0.5, penalty_scale=scale)  # type: ignore[arg-type]
    run = Finetuner(net, TinyTask(batches=1), settings, arm_named("drop"), relaxation)
    loss, penalty = one_epoch(run)
    assert penalty > 0
    return PenaltyWeight(0.5, scale)(loss), loss  # type: ignore[arg-type]


def test_lambda_is_relative_to_the_loss_or_absolute(make: Make) -> None:
    scale, loss = penalty_scale_after_one_step(make, "relative")
    assert scale == pytest.approx(0.5 * loss)
    scale, loss = penalty_scale_after_one_step(make, "absolute")
    assert scale == 0.5
    assert loss != pytest.approx(1.0)


def test_the_penalty_enters_the_gradient(make: Make, task: TinyTask) -> None:
    sizes = {}
    for weight in (0.0, 100.0):
        net, relaxation = make("drop", init_scale=1.0)
        settings = FinetuneSettings(
            epochs=2, learning_rate=1e-2, branch_factor=5.0, penalty_weight=weight, penalty_scale="absolute"
        )
        run = Finetuner(net, task, settings, arm_named("drop"), relaxation)
        one_epoch(run)
        sizes[weight] = sum(float(value.norm()) for value in branches_of(net).values())
    assert sizes[100.0] < 0.95 * sizes[0.0]


def test_the_preset_of_the_paper_trains(make: Make, task: TinyTask) -> None:
    net, relaxation = make("drop")
    run = Finetuner(net, task, PRESETS["paper"], arm_named("drop"), relaxation)
    assert run.penalty_weight.value == 0.01
    assert relaxation.penalty_settings == PenaltySettings("rows", None, 1)
    loss, penalty = one_epoch(run)
    assert math.isfinite(loss)
    assert penalty > 0


@pytest.mark.parametrize(("arm", "weight"), [("drop", 0.01), ("fold", 0.0)])
def test_the_preset_of_the_paper_keeps_the_lambda_of_the_arm(make: Make, arm: str, weight: float) -> None:
    net, relaxation = make(arm)
    assert Finetuner(net, TinyTask(), PRESETS["paper"], arm_named(arm), relaxation).penalty_weight.value == weight


class CheckpointedTask(TinyTask):
    """Activation checkpointing around the whole network."""

    reentrant = True

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        inputs = batch["scalars"].requires_grad_(), batch["vectors"]
        return checkpoint(model, *inputs, use_reentrant=self.reentrant)


def test_reentrant_checkpointing_is_refused_where_the_penalty_would_see_nothing(make: Make) -> None:
    def first_epoch(reentrant: bool) -> tuple[float, float]:
        task = CheckpointedTask()
        task.reentrant = reentrant
        net, relaxation = make("drop", init_scale=1.0)
        return one_epoch(Finetuner(net, task, FinetuneSettings(epochs=1), arm_named("drop"), relaxation))

    with pytest.raises(TrainingError, match="use_reentrant=False"):
        first_epoch(True)
    net, relaxation = make("drop", init_scale=1.0)
    usual = Finetuner(net, TinyTask(), FinetuneSettings(epochs=1), arm_named("drop"), relaxation)
    assert first_epoch(False) == pytest.approx(one_epoch(usual))


def losing(task: TinyTask, what: str) -> TinyTask:
    """Return the task with a loss whose value or gradient is broken from the fifth training batch on."""
    usual = task.loss

    def loss(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        value = usual(outputs, batch)
        if task.trained < 5 or not outputs.requires_grad:
            return value
        broken = outputs.sum() * 0
        return value * float("inf") if what == "loss" else value + torch.sqrt(broken * broken)

    task.loss = loss  # type: ignore[method-assign]
    return task


@pytest.mark.parametrize(
    ("what", "words"), [("loss", "the task loss became inf"), ("gradient", "the gradient of .* became NaN")]
)
def test_what_is_not_finite_stops_the_training(make: Make, task: TinyTask, what: str, words: str) -> None:
    net, relaxation = make("drop")
    kept: list[dict[str, Tensor]] = []
    run = Finetuner(net, losing(task, what), RATE, arm_named("drop"), relaxation)
    with pytest.raises(TrainingError, match=f"{words}.* at step 5 .epoch 2.; the best weights so far, of epoch 1"):
        run.run(on_save=lambda r: kept.append(copy.deepcopy(r.selection.best_weights)))
    assert len(kept) == 2
    assert all(torch.equal(value, kept[1][key]) for key, value in net.state_dict().items())


def test_a_penalty_that_is_not_finite_names_its_branch(make: Make, task: TinyTask) -> None:
    net, relaxation = make("drop")
    run = Finetuner(net, task, FinetuneSettings(epochs=1), arm_named("drop"), relaxation)

    def poison(event: StepEvent) -> None:
        with torch.no_grad():
            relaxation.branches["second.features"].weight.fill_(float("nan"))
            relaxation.set_theta(0.0)

    with pytest.raises(TrainingError, match="task loss became nan|branch at 'second.features' became non-finite"):
        run.run(poison)
    assert all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())


def test_equal_seeds_see_equal_batches_in_every_arm(make: Make) -> None:
    seen = {}
    for arm in ("plain", "drop", "fold"):
        task = TinyTask()
        net, relaxation = make(arm)
        train(net, task, FinetuneSettings(epochs=2, seed=3), arm_named(arm), relaxation)
        seen[arm] = [seed for split, seed in task.seen if split == "train"]
    assert set(seen["plain"]) == {3 * 100_003 + 1, 3 * 100_003 + 2}
    assert all(seeds == seen["plain"] for seeds in seen.values())


def test_other_seeds_see_other_batches(make: Make) -> None:
    results = []
    for seed in (0, 0, 1):
        net, relaxation = make("drop")
        results.append(train(net, TinyTask(), FinetuneSettings(epochs=1, seed=seed), arm_named("drop"), relaxation))
    losses = [result.history[-1]["loss"] for result in results]
    assert losses[0] == losses[1] != losses[2]


def test_arms_and_branches_belong_together(make: Make, task: TinyTask) -> None:
    net, relaxation = make("drop")
    with pytest.raises(TrainingError, match="what the arm 'plain' adds to the network, got Relaxation"):
        Finetuner(net, task, RATE, arm_named("plain"), relaxation)


def test_a_frozen_model(make: Make, task: TinyTask) -> None:
    net, _ = make("plain")
    net.requires_grad_(False)
    with pytest.raises(TrainingError, match="all of the model are frozen"):
        Finetuner(net, task, RATE, arm_named("plain"), None)


def test_a_primary_metric_that_is_not_measured(make: Make) -> None:
    class Misspelt(TinyTask):
        primary_metric = "rmse"

    net, relaxation = make("drop")
    with pytest.raises(TaskError, match="primary metric 'rmse' among those .* got mse, loss"):
        train(net, Misspelt(), RATE, arm_named("drop"), relaxation)


def test_an_epoch_may_have_more_or_fewer_batches_than_the_first(make: Make) -> None:
    class Uneven(TinyTask):
        def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
            self.count = seed if split == "train" else 1
            return super().batches(split, seed)

    net, relaxation = make("drop")
    events: list[StepEvent] = []
    result = train(net, Uneven(), FinetuneSettings(epochs=3), arm_named("drop"), relaxation, events.append)
    assert result.steps == 1 + 2 + 3
    assert result.history[-1]["theta"] == (0.0, 0.0)


def test_evaluating_every_second_epoch(make: Make, task: TinyTask) -> None:
    net, relaxation = make("drop")
    saved: list[int] = []
    run = Finetuner(net, task, FinetuneSettings(epochs=3, evaluate_every=2), arm_named("drop"), relaxation)
    result = run.run(on_save=lambda r: saved.append(r.state.epoch))
    assert [entry["validation"] is not None for entry in result.history] == [True, False, True, True]
    assert saved == [0, 2, 3]


def test_nothing_of_the_training_is_left_on_the_model(make: Make, task: TinyTask) -> None:
    original, _ = make("plain")
    net, relaxation = make("drop")
    train(net, task, FinetuneSettings(epochs=1), arm_named("drop"), relaxation)
    strip(relaxation)
    batch = next(iter(task.batches("test", 0)))
    certificate = certify(original, net, lambda model: task.forward(model, batch))
    assert certificate.passed, certificate.differences
    assert [set(vars(module)) for module in net.modules()] == [set(vars(module)) for module in original.modules()]


def test_mixed_precision_leaves_nothing_on_the_model_either(task: TinyTask) -> None:
    net = Plain()
    attributes, seen = set(vars(net)), []
    net.layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    train(net, task, FinetuneSettings(epochs=1, precision="bf16"), arm_named("plain"))
    assert set(seen) == {torch.bfloat16}
    assert set(vars(net)) == attributes
    batch = next(iter(task.batches("test", 0)))
    task.forward(net, batch)
    assert seen[-1] == torch.float32


def test_a_library_that_needs_one_dtype_throughout(make: Make, task: TinyTask) -> None:
    net, relaxation = make("drop")
    with pytest.raises(TrainingError, match="runs in mixed precision 'bf16', but it fails with RuntimeError"):
        train(net, task, FinetuneSettings(epochs=1, precision="bf16"), arm_named("drop"), relaxation)
    train(net, task, FinetuneSettings(epochs=1), arm_named("drop"), relaxation)


def test_a_precision_that_the_machine_lacks(make: Make, task: TinyTask) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine can train in fp16")
    net, _ = make("plain")
    with pytest.raises(TrainingError, match="train with precision 'fp16'"):
        train(net, task, FinetuneSettings(epochs=1, precision="fp16"), arm_named("plain"))
    train(net, task, FinetuneSettings(epochs=1), arm_named("plain"))
