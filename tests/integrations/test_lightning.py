"""Lightning does what the loop by hand does, and what it writes is clean."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon import optim
from surgeon.algebra.schedule import Schedule
from surgeon.editing.branch import branches_of
from surgeon.editing.strip import strip
from surgeon.errors import UsageError
from surgeon.plan import CHILD
from surgeon.support.trees import equal
from tests.integrations.loops import RATE, Batch, batches, largest_difference, network, plain_loop
from tests.integrations.normalised import expected_error, normalised

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: make test-integrations")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from surgeon.integrations.lightning import MatrixBlocks, RelaxationCallback  # noqa: E402
from tests.integrations.modules import InDict, Manual, Module, TwoOptimizers, WithAverage, loader, trainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")

EXACT = 1e-9
"""Float64; what remains is the order of summation, and a rate that is applied after the step instead of before."""


class Probe(pl.Callback):
    """Writes down what happens at every step."""

    def __init__(self) -> None:
        self.thetas: list[float] = []
        self.penalties: list[float] = []
        self.branches: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.thetas.append(float(trainer.callback_metrics["relaxation/theta"]))
        self.penalties.append(float(trainer.callback_metrics["relaxation/penalty"]))
        self.branches.append(len(branches_of(pl_module)))


def fit(callback: RelaxationCallback | None, count: int = 12, module: Any = None, **options: Any) -> dict[str, Any]:
    """Train and return the network's state dict."""
    module = Module() if module is None else module
    trainer(*([callback] if callback else []), **options).fit(module, loader(batches(count)))
    return module.network.state_dict()


CASES = {
    "default": ({}, {}, {}),
    "fold": ({"mode": "fold"}, {"mode": "fold", "weight": 0.0}, {}),
    "absolute": (
        {"penalty_weight": 0.5, "penalty_scale": "absolute"},
        {"weight": 0.5, "scale": "absolute"},
        {},
    ),
    "same rate": ({"branch_factor": 1.0}, {"factor": 1.0}, {}),
    "accumulated": ({}, {"parts": 3}, {"accumulate_grad_batches": 3}),
    "accumulated, with a rest": ({}, {"parts": 5}, {"accumulate_grad_batches": 5}),
    "clipped": ({"penalty_weight": 1.0}, {"weight": 1.0, "clip": 0.1}, {"gradient_clip_val": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [Module, InDict])
def test_it_is_the_plain_loop(case: str, kind: type[Module]) -> None:
    settings, plain, options = CASES[case]
    found = fit(RelaxationCallback("O3", **settings), module=kind(), **options)
    assert largest_difference(found, plain_loop(network(), batches(12), **plain)) < EXACT


@pytest.mark.parametrize("case", CASES)
def test_another_case_is_another_training(case: str) -> None:
    """The negative twin: no two cases agree, so each setting arrives."""
    settings, _, options = CASES[case]
    found = fit(RelaxationCallback("O3", **settings), **options)
    for name, (_, plain, _) in CASES.items():
        if name != case:
            assert largest_difference(found, plain_loop(network(), batches(12), **plain)) > 1e3 * EXACT, name


def test_without_callback_and_without_penalty_the_weights_are_others() -> None:
    relaxed = fit(RelaxationCallback("O3"))
    assert largest_difference(relaxed, fit(None)) > 1e3 * EXACT
    assert largest_difference(relaxed, fit(RelaxationCallback("O3", penalty_weight=0.0))) > 1e3 * EXACT


@pytest.mark.parametrize("module", [Manual(), InDict(), Module("setup"), Module("configure_model")])
def test_ways_to_write_a_module(module: Module) -> None:
    found = fit(RelaxationCallback("O3", module="network"), module=module)
    assert largest_difference(found, plain_loop(network(), batches(12))) < EXACT


class Progress(pl.Callback):
    """Writes down theta of every step, which is set before it."""

    def __init__(self) -> None:
        self.thetas: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.thetas.append(trainer.callbacks[0].relaxation.theta[0])


def of_triangle(steps: int) -> Any:
    return pytest.approx([Schedule().perpendicular(step / steps) for step in range(steps)], abs=1e-12)


@pytest.mark.parametrize("judge_first", [False, True])
def test_steps_and_losses_of_another_optimiser_do_not_count(judge_first: bool) -> None:
    progress, module = Progress(), TwoOptimizers(judge_first)
    trainer(RelaxationCallback("O3", module="network"), progress).fit(module, loader(batches(12)))
    assert progress.thetas == of_triangle(12)
    assert largest_difference(module.network.state_dict(), plain_loop(network(), batches(12))) < EXACT


@pytest.mark.parametrize(("limits", "batches_done"), [({"max_epochs": -1}, 9), ({"max_epochs": 4}, 9), ({}, 6)])
def test_steps_of_all_optimisers_end_the_training(limits: dict[str, int], batches_done: int) -> None:
    """Lightning's ``max_steps`` are those of all optimisers together: 18 are 9 batches."""
    progress = Progress()
    both = {"max_steps": 18, **limits}
    trainer(RelaxationCallback("O3", module="network"), progress, **both).fit(TwoOptimizers(False), loader(batches(6)))
    assert progress.thetas == of_triangle(batches_done)


def test_validation_takes_no_steps() -> None:
    """Statistics are taken anew by what training steps call the network with; this one trains the judge before that."""
    judges = []
    for validation in ([], [loader(batches(1))]):
        torch.manual_seed(0)
        module = TwoOptimizers(judge_first=True)
        module.network = normalised()
        running = trainer(RelaxationCallback("O3", module="network"), val_check_interval=2)
        running.fit(module, loader(batches(6)), *validation)
        judges.append(module.judge.state_dict())
    assert equal(*judges)


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning")
def test_resuming_with_two_optimisers_goes_on_with_the_schedule(tmp_path: Path) -> None:
    def train(checkpoint: Path | None = None) -> list[float]:
        saving, progress = (
            ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=10),
            Progress(),
        )
        running = trainer(RelaxationCallback("O3", module="network"), progress, saving, enable_checkpointing=True)
        running.fit(TwoOptimizers(False), loader(batches(12)), ckpt_path=checkpoint)
        return progress.thetas

    assert train()[5:] == train(tmp_path / "step=10.ckpt") == of_triangle(12).expected[5:]


def test_shuffled_batches_are_those_of_an_unrelaxed_training() -> None:
    """Looking at the first batch takes nothing out of anybody's random numbers."""
    orders = []
    for callback in ([], [RelaxationCallback("O3")]):
        seen: list[float] = []

        class Watching(Module):
            def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
                seen.append(float(batch[0].sum()))  # noqa: B023
                return super().training_step(batch)

        data = loader(batches(6)).dataset
        shuffled = torch.utils.data.DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(3))
        torch.manual_seed(4)
        trainer(*callback).fit(Watching(), shuffled)
        orders.append([*seen[-6:], float(torch.rand(()))])
    assert orders[0] == orders[1]


def test_theta_goes_up_and_down_and_the_penalty_is_logged() -> None:
    probe, module = Probe(), Module()
    trainer(RelaxationCallback("O3"), probe).fit(module, loader(batches(12)))
    peak = max(probe.thetas)
    assert probe.thetas[0] == 0 < peak
    assert sorted(probe.thetas[:7]) == probe.thetas[:7]
    assert sorted(probe.thetas[7:], reverse=True) == probe.thetas[7:]
    assert min(probe.penalties[1:]) > 0
    assert set(probe.branches) == {2}
    assert not branches_of(module)


def test_nothing_is_left() -> None:
    module, untouched, callback = Module(), Module(), RelaxationCallback("O3")
    trainer(callback).fit(module, loader(batches(4)))
    trainer().fit(untouched, loader(batches(4)))
    assert vars(module).keys() == vars(untouched).keys()
    assert not module._state_dict_hooks
    assert not module._load_state_dict_pre_hooks
    assert all(not part._forward_hooks for part in module.modules())
    assert list(module.state_dict()) == list(Module().state_dict())
    assert [record.name for record in callback.records] == ["first", "second"]
    assert callback.relaxation is None


def test_validation_sees_the_clean_model() -> None:
    errors, data = [], batches(12)

    class Watching(pl.Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            clean = copy.deepcopy(pl_module.network)
            now = pl_module.loss(data[0])
            relaxed = copy.deepcopy(pl_module.network)
            for branch in branches_of(relaxed).values():
                branch.clean = False
            strip(clean)
            errors.append(
                [float((model(*data[0][:2]) - data[0][2]).detach().square().mean()) for model in (clean, relaxed)]
            )
            errors[-1].append(float(now))

    options = {"val_check_interval": 6, "num_sanity_val_steps": 1}
    trainer(RelaxationCallback("O3"), Watching(), **options).fit(Module(), loader(data), loader(data[:1]))
    _, middle, _ = errors
    assert middle[2] == pytest.approx(middle[0], rel=1e-12)
    assert abs(middle[1] - middle[0]) > 1e-6


@pytest.mark.parametrize("mode", ["drop", "fold"])
@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints_are_clean(mode: Any, weights_only: bool, tmp_path: Path) -> None:
    """In the middle of the training, where theta is not 0."""
    expected: list[dict[str, torch.Tensor]] = []
    relaxed: list[dict[str, torch.Tensor]] = []

    class Stripping(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            model = copy.deepcopy(pl_module.network)
            relaxed.append({key: value.clone() for key, value in model.state_dict().items() if CHILD not in key})
            strip(model, mode)
            expected.append(model.state_dict())

    saving = ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1, save_weights_only=weights_only
    )
    callback = RelaxationCallback("O3", mode=mode, branch_factor=1.0)
    trainer(callback, Stripping(), saving, enable_checkpointing=True).fit(Module(), loader(batches(12)))
    path = tmp_path / "step=6.ckpt"
    assert list(torch.load(path, weights_only=True)["state_dict"]) == list(Module().state_dict())
    loaded = Module.load_from_checkpoint(path, strict=True).network.state_dict()
    assert largest_difference(loaded, expected[5]) == 0
    assert (largest_difference(relaxed[5], expected[5]) > 1e-6) == (mode == "fold")


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_resuming_is_going_on(mode: Any, tmp_path: Path) -> None:
    data = loader(batches(6))

    def train(checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        folder = tmp_path if checkpoint is None else tmp_path / checkpoint.stem
        saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        relaxing, module = RelaxationCallback("O3", mode=mode, penalty_weight=0.1), Module()
        running = trainer(relaxing, saving, enable_checkpointing=True, max_epochs=3)
        running.fit(module, data, ckpt_path=checkpoint)
        return module.state_dict()

    whole = train()
    assert largest_difference(train(tmp_path / "epoch=0.ckpt"), whole) == 0
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    for weight in checkpoint["callbacks"]["RelaxationCallback"]["branches"].values():
        weight.zero_()
    torch.save(checkpoint, tmp_path / "spoiled.ckpt")
    assert largest_difference(train(tmp_path / "spoiled.ckpt"), whole) > 1e3 * EXACT


def test_averages_in_the_module_are_those_of_the_base_weights() -> None:
    module, bare = WithAverage(), WithAverage()
    trainer(RelaxationCallback("O3", module="network")).fit(module, loader(batches(8)))
    states: list[dict[str, torch.Tensor]] = []

    class Collecting(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            state = pl_module.network.state_dict()
            states.append({key: value.clone() for key, value in state.items() if CHILD not in key})

    trainer(RelaxationCallback("O3", module="network"), Collecting()).fit(bare, loader(batches(8)))
    mean = {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}
    averaged = module.average.module.state_dict()
    assert largest_difference(averaged, mean) < EXACT
    assert largest_difference(averaged, states[-1]) > 1e3 * EXACT
    assert "update_parameters" not in vars(module.average)


def test_an_interrupted_training_can_be_started_again() -> None:
    class Stopping(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                raise ZeroDivisionError

    module, callback = Module(), RelaxationCallback("O3")
    start = copy.deepcopy(module.network.state_dict())
    with pytest.raises(ZeroDivisionError):
        trainer(callback, Stopping()).fit(module, loader(batches(12)))
    assert branches_of(module)
    assert list(module.state_dict()) == list(Module().state_dict())
    module.network.load_state_dict(start, strict=False)
    trainer(callback).fit(module, loader(batches(12)))
    assert largest_difference(module.network.state_dict(), plain_loop(network(), batches(12))) < EXACT


def test_scaled_losses_make_no_difference() -> None:
    """Mixed precision scales losses before it goes backward; float64 itself is left alone by it."""
    scaler = torch.amp.GradScaler("cpu")
    mixed = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    found = fit(RelaxationCallback("O3"), module=Module(), plugins=[mixed], accumulate_grad_batches=2)
    assert scaler.get_scale() > 1
    assert largest_difference(found, plain_loop(network(), batches(12), parts=2)) < EXACT


class Normalising(Module):
    """With BatchNorm in its network; its steps may not be run for anything but training."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.taken = normalised(), 0

    def training_step(self, batch: Batch) -> torch.Tensor:
        loss = self.loss(batch)
        self.taken += 1
        return loss


class Expecting(pl.Callback):
    """Before validation: what its error is to be, with statistics taken anew and with those of the training."""

    def __init__(self, train: list[Batch], held_out: Batch) -> None:
        self.data, self.errors, self.states = (train, held_out), [], []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.errors.append([expected_error(pl_module.network, *self.data, anew) for anew in (True, False)])
        gathered = pl_module.network.norm
        self.states.append((gathered.running_mean.clone(), gathered.running_var.clone()))


def test_validation_takes_statistics_anew_and_files_hold_them(tmp_path: Path) -> None:
    data, held_out, module = batches(8), batches(9)[8], Normalising()
    expecting = Expecting(data[:3], held_out)
    logged = []

    class Logging(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            logged.append(float(trainer.callback_metrics["error"]))

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:  # after the validation
                assert torch.equal(pl_module.network.norm.running_mean, expecting.states[3][0])

    relaxing = RelaxationCallback("O3", branch_factor=10.0, recalibrate=3)
    saving = ModelCheckpoint(tmp_path, filename="{step}", monitor="error", save_top_k=-1, save_last=False)
    late = ModelCheckpoint(tmp_path, filename="late-{step}", every_n_train_steps=5, save_top_k=-1)
    options = {"val_check_interval": 4, "num_sanity_val_steps": 0, "enable_checkpointing": True}
    running = trainer(relaxing, expecting, Logging(), saving, late, **options)
    running.fit(module, loader(data), loader([held_out]))
    anew, gathered = expecting.errors[3]
    assert logged[0] == pytest.approx(anew, rel=1e-12)
    assert abs(gathered - anew) > 1e-3 * anew
    assert module.taken == len(data)
    for name, step in (("step=4", 4), ("late-step=5", 5)):
        loaded = Normalising.load_from_checkpoint(tmp_path / f"{name}.ckpt").network.eval()
        assert expected_error(loaded, data, held_out, anew=False) == pytest.approx(expecting.errors[step - 1][0])
    assert expected_error(module.network, data, held_out, anew=False) == pytest.approx(
        expecting.errors[-1][0], rel=1e-12
    )


@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_resuming_goes_on_with_the_statistics_that_training_gathered(tmp_path: Path) -> None:
    def train(checkpoint: Path | None = None) -> list[Any]:
        expecting = Expecting(batches(1), batches(1)[0])
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        running = trainer(RelaxationCallback("O3"), saving, expecting, enable_checkpointing=True, max_epochs=2)
        running.fit(Normalising(), loader(batches(4)), ckpt_path=checkpoint)
        return expecting.states[-4:]

    whole = train()
    assert equal(train(tmp_path / "epoch=0.ckpt"), whole)


def test_epochs_that_become_longer_are_announced() -> None:
    class Growing(Module):
        def train_dataloader(self) -> Any:
            return loader(batches(2 + self.trainer.current_epoch))

    running = trainer(RelaxationCallback("O3"), max_epochs=2, reload_dataloaders_every_n_epochs=1)
    with pytest.warns(UserWarning, match="goes on after the 4 steps that its trainer has announced"):
        running.fit(Growing())


@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
def test_resuming_for_longer_is_refused(tmp_path: Path) -> None:
    def train(epochs: int, checkpoint: Path | None = None) -> None:
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        running = trainer(RelaxationCallback("O3"), saving, enable_checkpointing=True, max_epochs=epochs)
        running.fit(Module(), loader(batches(4)), ckpt_path=checkpoint)

    train(2)
    with pytest.raises(UsageError, match="training of 8 optimiser steps, as it was started with, got one of 16"):
        train(4, tmp_path / "epoch=0.ckpt")


class WithSoap(Module):
    """Its configuration names an optimiser that is given parameters alone."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optim.Soap(self.parameters(), lr=RATE)


def test_the_matrices_come_by_a_callback() -> None:
    module, twin, data = WithSoap(), WithSoap(), batches(3)
    trainer(MatrixBlocks()).fit(module, loader(data))
    optimizer = optim.soap(twin, lr=RATE)
    for batch in data:
        optimizer.zero_grad()
        twin.loss(batch).backward()
        optimizer.step()
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(UsageError, match="expected an optimizer of surgeon.optim"):
        trainer(MatrixBlocks()).fit(Module(), loader(data))
