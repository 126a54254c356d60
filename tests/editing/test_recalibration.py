"""Statistics of normalisation layers are those of the clean model, and nothing else changes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.editing.recalibration import (
    StatisticsChange,
    layers_with_statistics,
    recalibrate,
    recalibrated,
    statistics_of,
)
from surgeon.errors import SurgeryError, UsageError

EXAMPLE = Path(__file__).parents[2] / "examples" / "pointcloud"
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}


def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 5), nn.BatchNorm1d(5))


def plain_batches(count: int = 4, rows: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 3, generator=generator) + index for index in range(count)]


def call(model: nn.Module, batch: Tensor) -> Any:
    return model(batch)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    layers = layers_with_statistics(model).items()
    return {f"{name}.{key}": v.clone() for name, layer in layers for key, v in statistics_of(layer).items()}


def bytes_of(model: nn.Module, leave_out: str = "") -> dict[str, bytes]:
    state = {key: value for key, value in model.state_dict().items() if not (leave_out and leave_out in key)}
    return {key: value.detach().clone().reshape(-1).view(torch.uint8).numpy().tobytes() for key, value in state.items()}


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[key] - right[key]).abs().max()) for key in left if left[key].numel())


# Which layers


def test_layers_with_statistics_are_found() -> None:
    model = nn.ModuleDict(
        {
            "one": nn.BatchNorm1d(2),
            "three": nn.BatchNorm3d(2, momentum=None),
            "sync": nn.SyncBatchNorm(2),
            "instance": nn.InstanceNorm2d(2, track_running_stats=True),
            "wrapped": nn.Sequential(nn.BatchNorm2d(2)),
            "no statistics": nn.BatchNorm1d(2, track_running_stats=False),
            "no instance statistics": nn.InstanceNorm1d(2),
            "layer": nn.LayerNorm(2),
            "group": nn.GroupNorm(1, 2),
            "linear": nn.Linear(2, 2),
        }
    )
    assert set(layers_with_statistics(model)) == {"one", "three", "sync", "instance", "wrapped.0"}


@pytest.mark.e3nn
def test_e3nn_layers_are_found_unless_they_normalise_each_sample() -> None:
    from e3nn.nn import BatchNorm

    model = nn.ModuleDict({"batch": BatchNorm("2x0e+1o"), "instance": BatchNorm("2x0e+1o", instance=True)})
    assert set(layers_with_statistics(model)) == {"batch"}


# What the statistics are


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_the_statistics_are_the_mean_over_batches(momentum: float | None) -> None:
    model, batches = plain().double(), [batch.double() for batch in plain_batches()]
    norm = model[1]
    norm.momentum = momentum
    changes = recalibrate(model, batches, call)
    features = [model[0](batch).detach() for batch in batches]
    mean, variance = (torch.stack([f(x) for x in features]).mean(0) for f in (lambda x: x.mean(0), lambda x: x.var(0)))
    assert torch.allclose(norm.running_mean, mean, rtol=1e-12, atol=1e-12)
    assert torch.allclose(norm.running_var, variance, rtol=1e-12, atol=1e-12)
    assert norm.momentum == momentum
    assert [(change.name, change.calls, change.note) for change in changes] == [("1", 4, ""), ("4", 4, "")]


def test_the_reported_change_is_relative() -> None:
    model, batches = plain().double(), [batch.double() for batch in plain_batches()]
    recalibrate(model, batches, call)
    norm, expected = model[1], statistics(model)
    norm.running_mean += 0.5 * norm.running_var.mean().sqrt()
    norm.running_var *= 4.0
    first, second = recalibrate(model, batches, call)
    # the mean was off by half of the true deviation, which is a quarter of the one that the layer had
    assert first.mean == pytest.approx(0.25, rel=1e-9)
    assert first.variance == pytest.approx(0.75, rel=1e-9)
    assert second.largest < 1e-12
    assert difference(statistics(model), expected) < 1e-12


def test_a_second_time_changes_nothing_and_the_order_only_rounding() -> None:
    model, batches = plain().double(), [batch.double() for batch in plain_batches()]
    recalibrate(model, batches, call)
    once = statistics(model)
    changes = recalibrate(model, batches, call)
    assert difference(statistics(model), once) == 0.0
    assert [change.largest for change in changes] == [0.0, 0.0]
    recalibrate(model, batches[::-1], call)
    assert difference(statistics(model), once) < ROUNDING[torch.float64]
    recalibrate(model, batches[:-1], call)
    assert difference(statistics(model), once) > 1e-3  # other batches do make a difference


def test_dropout_is_off_and_gradients_are_on() -> None:
    seen = []

    def forward(model: nn.Module, batch: Tensor) -> None:
        seen.append((torch.is_grad_enabled(), model[1].training, model[2].training, model.training))
        torch.autograd.grad(model(batch.requires_grad_()).sum(), batch)

    with torch.no_grad():
        recalibrate(plain(), plain_batches(), forward)
    assert set(seen) == {(True, True, False, False)}


def test_a_layer_that_is_called_twice_counts_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            result: Tensor = self.norm(2 * x)
            return result

    model, batches = Twice().double(), [batch.double() for batch in plain_batches()]
    (change,) = recalibrate(model, batches, call)
    assert change.calls == 8
    mean = torch.stack([1.5 * batch.mean(0) for batch in batches]).mean(0)
    assert torch.allclose(model.norm.running_mean, mean, rtol=1e-12, atol=1e-12)


def test_statistics_that_were_nan_are_repaired() -> None:
    model = plain()
    model[1].running_var.fill_(float("nan"))
    recalibrate(model, plain_batches(), call)
    assert torch.isfinite(model[1].running_var).all()


# What stays


@pytest.mark.parametrize("training", [True, False])
def test_everything_else_stays_to_the_byte(training: bool) -> None:
    model = plain().train(training)
    model[1].num_batches_tracked += 7
    buffers = dict(model.named_buffers())
    before, hooks = bytes_of(model, "running_"), len(model[1]._forward_pre_hooks)
    modes = [module.training for module in model.modules()]
    changes = recalibrate(model, plain_batches(), call)
    assert min(change.largest for change in changes) > 1e-3
    assert bytes_of(model, "running_") == before
    assert [module.training for module in model.modules()] == modes
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert (model[1].momentum, len(model[1]._forward_pre_hooks)) == (0.1, hooks)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("present", [True, False])
def test_a_kernel_that_is_cached_in_eval_mode_is_as_before(present: bool) -> None:
    class Caching(nn.Linear):
        def train(self, mode: bool = True) -> Caching:
            if self.training and not mode:
                self.register_buffer("cached", self.weight.clone())
            return super().train(mode)

    model = nn.Sequential(Caching(3, 4), nn.BatchNorm1d(4))
    if present:
        model[0].register_buffer("cached", torch.zeros(4, 3))
    before = bytes_of(model, "running_")
    recalibrate(model, plain_batches(), call)
    assert bytes_of(model, "running_") == before


def fail_at_third() -> Callable[[nn.Module, Tensor], Any]:
    calls = iter(range(100))

    def forward(model: nn.Module, batch: Tensor) -> Any:
        result = model(batch)
        if next(calls) == 2:
            raise ZeroDivisionError
        return result

    return forward


def overflow(model: nn.Module, batch: Tensor) -> Any:
    return model(batch / 0)


@pytest.mark.parametrize(
    ("batches", "forward", "error", "words"),
    [
        (plain_batches(), fail_at_third(), ZeroDivisionError, None),
        (plain_batches(), overflow, SurgeryError, "normalisation layer '1', got NaN or infinity in running_mean"),
        ([], call, UsageError, "at least one batch"),
    ],
)
def test_after_an_exception_everything_is_as_before(batches: Any, forward: Any, error: Any, words: str) -> None:
    model = plain()
    model(torch.randn(5, 3))
    before = bytes_of(model)
    with pytest.raises(error, match=words):
        recalibrate(model, batches, forward)
    assert bytes_of(model) == before
    assert model[1].momentum == 0.1
    assert all(module.training for module in model.modules())
    assert not model[1]._forward_pre_hooks


def test_without_such_layers_no_batch_is_drawn() -> None:
    def batches() -> Iterator[Tensor]:
        raise AssertionError
        yield

    assert recalibrate(nn.Linear(3, 4), batches(), call) == ()
    with pytest.raises(AssertionError):
        recalibrate(plain(), batches(), call)


# What cannot be done is said


class Running(nn.Module):
    """Keeps a running mean in one of several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("running_mean", torch.full((3,), 0.25))
        if kind == "tensor":
            self.register_buffer("momentum", torch.tensor(0.1))
        elif kind not in ("nothing", "property"):
            self.momentum = 0.1

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            new = x.detach().mean(0)
            share = {"reversed": 1 - float(getattr(self, "momentum", 0)), "usual": float(getattr(self, "momentum", 0))}
            self.running_mean.lerp_(new, share.get(self.kind, 0.1))
        return x - self.running_mean


class Fixed(Running):
    @property
    def momentum(self) -> float:
        return 0.1


class Bypassed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, training=norm.training)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Running("nothing"), "no momentum"),
        (lambda: Running("tensor"), "no momentum that is a number"),
        (lambda: Fixed("property"), "cannot be set"),
        (lambda: Running("reversed"), "not those of the last batch"),
        (lambda: Running("constant"), "not those of the last batch"),
        (Bypassed, "without calling it"),
        (lambda: nn.BatchNorm1d(3, momentum=0.0), "momentum is 0"),
        (lambda: nn.BatchNorm1d(3).eval(), "eval mode"),
        (lambda: torch.jit.script(nn.BatchNorm1d(3)), "TorchScript"),
    ],
)
def test_a_layer_that_cannot_be_recalibrated_is_reported_and_left_alone(
    make: Callable[[], nn.Module], words: str
) -> None:
    model = nn.Sequential(make(), nn.BatchNorm1d(3))
    before = bytes_of(model[0])
    first, second = recalibrate(model, plain_batches(), call)
    assert words in first.note
    assert (first.mean, first.variance, first.calls) == (0.0, 0.0, 0)
    assert bytes_of(model[0]) == before
    assert (second.note, second.calls) == ("", 4)
    assert second.largest > 1e-3


def test_an_own_layer_with_the_usual_meaning_of_momentum() -> None:
    model = Running("usual")
    (change,) = recalibrate(model, plain_batches(), call)
    assert change.note == ""
    assert torch.allclose(model.running_mean, torch.stack(plain_batches()).mean((0, 1)), atol=1e-6)


def test_a_layer_that_is_not_reached_keeps_its_statistics() -> None:
    model = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm1d(3)])
    model[1].running_mean.fill_(0.25)
    before = bytes_of(model[1])
    changes = recalibrate(model, plain_batches(), lambda m, batch: m[0](batch))
    assert [change.note for change in changes] == ["", "the batches do not reach it"]
    assert bytes_of(model[1]) == before


def test_only_some_layers() -> None:
    model = plain().double()
    before = bytes_of(model[1])
    (change,) = recalibrate(model, [batch.double() for batch in plain_batches()], call, only={"4"})
    assert change == StatisticsChange("4", change.mean, change.variance, 4)
    assert bytes_of(model[1]) == before
    # the layer before normalises by the statistics it has, and not by the batch's
    expected = torch.stack([model.eval()[:4](batch.double()).mean(0) for batch in plain_batches()]).mean(0)
    assert torch.allclose(model[4].running_mean, expected, rtol=1e-12, atol=1e-12)


# For a while


def test_the_statistics_of_before_come_back() -> None:
    model = plain()
    model(torch.randn(5, 3))
    before = bytes_of(model)
    with recalibrated(model, plain_batches(), call) as changes:
        assert len(changes) == 2
        assert bytes_of(model) != before
        inside = statistics(model)
    assert bytes_of(model) == before
    recalibrate(model, plain_batches(), call)
    assert difference(statistics(model), inside) == 0.0


@pytest.mark.parametrize("inside", [True, False])
def test_the_statistics_of_before_come_back_after_an_exception(inside: bool) -> None:
    model = plain()
    before = bytes_of(model)
    with (
        pytest.raises(ZeroDivisionError),
        recalibrated(model, plain_batches(), call if inside else fail_at_third()),
    ):
        raise ZeroDivisionError
    assert bytes_of(model) == before


# Equivariant networks


@pytest.fixture
def vector_neurons(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    names = ("shapes", "task")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield import_module("task").make_task(points=12, count=24, base=6, neighbours=4, batch_size=8, dtype="float64")
    for name in names:
        sys.modules.pop(name, None)


def test_relaxed_statistics_are_not_those_of_the_clean_model(vector_neurons: Any) -> None:
    task = vector_neurons
    torch.manual_seed(0)
    model, batches = task.model().double(), list(task.batches("train", 0))
    plan = surgeon.find(model, "SO3", batches[0], forward=task.forward, act=task.act, act_output=task.act_output)
    relaxation = surgeon.relax(model, plan, dense=True, init_scale=1.0)
    norms = layers_with_statistics(model)
    assert "feat.conv_pos.batchnorm.bn" in norms
    relaxation.set_theta(1.0)
    recalibrate(model, batches, task.forward)
    relaxed = statistics(model)
    with relaxation.clean(), recalibrated(model, batches, task.forward) as changes:
        clean = statistics(model)
    assert max(change.largest for change in changes) > 1e-2
    assert difference(statistics(model), relaxed) == 0.0
    surgeon.strip(model)
    recalibrate(model, batches, task.forward)
    assert difference(statistics(model), clean) == 0.0
    assert difference(clean, relaxed) > 1e-2
    recalibrate(model, batches[::-1], task.forward)
    assert difference(statistics(model), clean) < ROUNDING[torch.float64]


@pytest.mark.e3nn
def test_e3nn_statistics_are_the_mean_over_batches() -> None:
    from e3nn import o3
    from e3nn.nn import BatchNorm

    irreps = o3.Irreps("3x0e+2x1o")
    torch.manual_seed(0)
    model = nn.Sequential(o3.Linear(irreps, irreps), BatchNorm(irreps), o3.Linear(irreps, irreps)).double()
    batches = [torch.randn(8, 9, dtype=torch.float64) + index for index in range(3)]
    twin = copy.deepcopy(model)
    changes = recalibrate(model, batches, call)
    assert [(change.calls, change.note) for change in changes] == [(3, "")]
    features = [model[0](batch).detach() for batch in batches]
    mean = torch.stack([x[:, :3].mean(0) for x in features]).mean(0)
    scalars = torch.stack([x[:, :3].var(0, unbiased=False) for x in features]).mean(0)
    vectors = torch.stack([x[:, 3:].unflatten(1, (2, 3)).square().mean((0, 2)) for x in features]).mean(0)
    assert torch.allclose(model[1].running_mean, mean, rtol=1e-12, atol=1e-12)
    assert torch.allclose(model[1].running_var, torch.cat([scalars, vectors]), rtol=1e-12, atol=1e-12)
    once = statistics(model)
    recalibrate(model, batches, call)
    assert difference(statistics(model), once) == 0.0
    for batch in batches:
        twin(batch)
    assert difference(statistics(twin), once) > 1e-2  # what training gathers is dominated by where it started
