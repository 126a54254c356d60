"""The Trainer of transformers does what the loop by hand does, and what it writes is clean."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, SequentialSampler

from surgeon import optim
from surgeon.editing.branch import branches_of
from surgeon.editing.strip import strip
from surgeon.errors import CheckpointError, SurgeonError, TrainingError, UsageError
from surgeon.integrations.settings import RelaxationSettings
from tests.integrations.loops import RATE, batches, largest_difference, network, plain_loop, samples
from tests.integrations.normalised import expected_error, normalised

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make test-integrations")

from safetensors.torch import load_file  # noqa: E402

from surgeon.integrations.transformers import STATE_FILE, RelaxedTrainer  # noqa: E402

EXACT = 1e-9
"""Float64; what remains is the order of summation, and a rate that is applied after the step instead of before."""


class Samples(Dataset):
    def __init__(self, count: int) -> None:
        self.columns = samples(count)

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(zip(("scalars", "vectors", "labels"), (column[index] for column in self.columns), strict=True))


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, scalars: Tensor, vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = self.network(scalars, vectors)
        return {"loss": functional.mse_loss(found, labels), "found": found}


class OverSteps(WithLoss):
    """Normalises over all samples of a step, as language models do, so that the Trainer does not divide."""

    def forward(self, scalars: Tensor, vectors: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        found = self.network(scalars, vectors)
        count = kwargs.get("num_items_in_batch")
        total = functional.mse_loss(found, labels, reduction="sum")
        return {"loss": total / (labels.numel() if count is None else count), "found": found}


class Bystander(WithLoss):
    def train(self, mode: bool = True) -> Bystander:
        super().train(mode)
        self.network.eval()
        return self


class InOrder:
    """Takes the samples in their order."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]


class Relaxed(InOrder, RelaxedTrainer):
    pass


class Plain(InOrder, transformers.Trainer):
    pass


def arguments(folder: Path, **options: Any) -> Any:
    usual = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return transformers.TrainingArguments(output_dir=str(folder), **{**usual, **options})


def trainer(folder: Path, settings: dict[str, Any] | None, model: Any = None, **options: Any) -> Any:
    model = WithLoss() if model is None else model
    common = {"model": model, "args": arguments(folder, **options), "train_dataset": Samples(96)}
    common["eval_dataset"] = Samples(16)
    if settings is None:
        return Plain(**common)
    return Relaxed(**common, relaxation=RelaxationSettings(**{"group": "O3", "module": "network", **settings}))


def train(folder: Path, settings: dict[str, Any] | None, model: Any = None, **options: Any) -> dict[str, Tensor]:
    running = trainer(folder, settings, model, **options)
    running.train()
    return running.model.network.state_dict()


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}, {}),
    "fold": ({"mode": "fold"}, {"mode": "fold", "weight": 0.0}, {}),
    "absolute": ({"penalty_weight": 0.5, "penalty_scale": "absolute"}, {"weight": 0.5, "scale": "absolute"}, {}),
    "accumulated": ({}, {"parts": 3}, {"gradient_accumulation_steps": 3}),
    "accumulated, with a rest": ({}, {"parts": 5, "mean_of_all": False}, {"gradient_accumulation_steps": 5}),
    "clipped": ({"penalty_weight": 1.0}, {"weight": 1.0, "clip": 0.1}, {"max_grad_norm": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_plain_loop(case: str, tmp_path: Path) -> None:
    settings, plain, options = CASES[case]
    found = train(tmp_path, settings, **options)
    for name, (_, other, _) in CASES.items():
        difference = largest_difference(found, plain_loop(network(), batches(12), **other))
        assert (difference < EXACT) if name == case else (difference > 1e3 * EXACT), name


@pytest.mark.parametrize("case", ["default", "accumulated"])
def test_a_model_that_normalises_over_steps(case: str, tmp_path: Path) -> None:
    settings, plain, options = CASES[case]
    found = train(tmp_path, settings, OverSteps(), **options)
    assert largest_difference(found, plain_loop(network(), batches(12), **plain)) < EXACT


def test_without_branches_and_without_penalty_the_weights_are_others(tmp_path: Path) -> None:
    relaxed = train(tmp_path, {})
    assert largest_difference(relaxed, train(tmp_path, None)) > 1e3 * EXACT
    assert largest_difference(relaxed, train(tmp_path, {"penalty_weight": 0.0})) > 1e3 * EXACT


def test_theta_is_logged_and_nothing_is_left(tmp_path: Path) -> None:
    running = trainer(tmp_path, {})
    running.train()
    thetas = [entry["theta"] for entry in running.state.log_history if "theta" in entry]
    assert len(thetas) == 12
    assert thetas[0] == 0 < max(thetas) > thetas[-1]
    assert sorted(thetas[:6]) == thetas[:6]
    assert min(entry["penalty"] for entry in running.state.log_history[1:] if "penalty" in entry) > 0
    model = running.model
    assert not branches_of(model)
    assert not model._state_dict_hooks
    assert not model._load_state_dict_pre_hooks
    assert list(model.state_dict()) == list(WithLoss().state_dict())
    assert [record.name for record in running.records] == ["first", "second"]


class Watching(transformers.TrainerCallback):
    """Compares the evaluation in the middle of a training with that of a stripped copy and of the relaxed one."""

    def __init__(self) -> None:
        self.errors: list[tuple[float, float, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any, metrics: Any, **_: Any) -> None:
        inputs = dict(zip(("scalars", "vectors", "labels"), samples(16), strict=True))
        clean = copy.deepcopy(model).eval()
        relaxed = float(clean(**inputs)["loss"].detach())
        strip(clean)
        self.errors.append((metrics["eval_loss"], float(clean(**inputs)["loss"].detach()), relaxed))


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_evaluation_sees_the_clean_model(mode: str, tmp_path: Path) -> None:
    running = trainer(tmp_path, {"mode": mode}, eval_strategy="steps", eval_steps=6)
    running.add_callback(watching := Watching())
    running.train()
    evaluated, clean, relaxed = watching.errors[0]
    assert evaluated == pytest.approx(clean, rel=1e-12)
    assert abs(relaxed - clean) > 1e-6


class Keeping(transformers.TrainerCallback):
    """Keeps what stripping would have given at every step."""

    def __init__(self) -> None:
        self.stripped: list[dict[str, Tensor]] = []

    def on_save(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        clean = copy.deepcopy(model)
        strip(clean)
        self.stripped.append(clean.state_dict())


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_files_are_clean_and_resuming_is_going_on(mode: str, tmp_path: Path) -> None:
    settings, options = {"mode": mode, "penalty_weight": 0.1}, {"save_strategy": "steps", "save_steps": 5}
    running = trainer(tmp_path, settings, **options)
    running.add_callback(keeping := Keeping())
    running.train()
    saved = load_file(tmp_path / "checkpoint-5" / "model.safetensors")
    assert saved.keys() == WithLoss().state_dict().keys()
    assert largest_difference({key: saved[key] for key in keeping.stripped[0]}, keeping.stripped[0]) == 0
    running.save_model(str(tmp_path / "final"))
    assert load_file(tmp_path / "final" / "model.safetensors").keys() == saved.keys()

    whole = running.model.network.state_dict()
    again = trainer(tmp_path / "again", settings, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert largest_difference(again.model.network.state_dict(), whole) == 0
    (tmp_path / "checkpoint-5" / STATE_FILE).unlink()
    forgetful = trainer(tmp_path / "forgetful", settings, **options)
    with pytest.raises(CheckpointError, match=f"expected {STATE_FILE} .*resume from a checkpoint"):
        forgetful.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_the_best_checkpoint_is_what_remains(mode: str, tmp_path: Path) -> None:
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 4, "save_steps": 4}
    running = trainer(tmp_path, {"mode": mode}, load_best_model_at_end=True, **steps)
    running.train()
    best = load_file(Path(running.state.best_model_checkpoint) / "model.safetensors")
    state = running.model.state_dict()
    assert largest_difference({key: best[key] for key in state}, state) == 0


ERRORS: list[tuple[dict[str, Any], Any, type[SurgeonError], str]] = [
    ({"module": "netwrok"}, WithLoss, UsageError, "a submodule 'netwrok' of WithLoss, .*nearest are network"),
    ({"include": ["thrid*"]}, WithLoss, SurgeonError, "nearest are 'first', 'second'"),
    ({}, Bystander, TrainingError, r"the branch at 'first\.\w+' to see features .*none were recorded"),
]


@pytest.mark.parametrize(("settings", "model", "error", "words"), ERRORS)
def test_bad_input(settings: Any, model: Any, error: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        train(tmp_path, settings, model())


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed"])
def test_sharded_training_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP needs several processes and DeepSpeed a package, so the Trainer is told that it has them."""
    usual = transformers.Trainer.create_accelerator_and_postprocess

    def sharded(self: Any) -> None:
        usual(self)
        setattr(self, f"is_{name.lower()}_enabled", True)

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(
        UsageError, match=f"the whole network in every process, but the arguments ask for {name}: leave"
    ):
        trainer(tmp_path, {})
    trainer(tmp_path, None)


def test_soap_in_a_plain_trainer_goes_on_to_the_bit(tmp_path: Path) -> None:
    def trained(name: str, **resuming: str) -> dict[str, Tensor]:
        model, options = WithLoss(), arguments(tmp_path / name, num_train_epochs=2, save_strategy="epoch")
        given = {"model": model, "args": options, "train_dataset": Samples(48)}
        Plain(**given, optimizers=(optim.soap(model, lr=RATE), None)).train(**resuming)
        return model.state_dict()

    before, whole = WithLoss().state_dict(), trained("whole")
    again = trained("again", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert not all(torch.equal(before[name], value) for name, value in whole.items())


def test_an_optimiser_made_before(tmp_path: Path) -> None:
    running = trainer(tmp_path, {})
    running.optimizer = torch.optim.AdamW(running.model.parameters(), lr=RATE)
    with pytest.raises(UsageError, match="in one optimiser, but none of 1 has all"):
        running.train()


class Stopping(transformers.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise ZeroDivisionError


def test_an_interrupted_training_can_be_started_again(tmp_path: Path) -> None:
    running = trainer(tmp_path, {})
    start = copy.deepcopy(running.model.state_dict())
    running.add_callback(Stopping)
    with pytest.raises(ZeroDivisionError):
        running.train()
    assert not branches_of(running.model)
    running.remove_callback(Stopping)
    running.model.load_state_dict(start)
    running.train()
    assert largest_difference(running.model.network.state_dict(), plain_loop(network(), batches(12))) < EXACT


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_the_network_can_be_the_model_itself(mode: str, tmp_path: Path) -> None:
    """It is called with keyword arguments, and its keys have no prefix."""
    inside = train(tmp_path, {"mode": mode}, save_strategy="steps", save_steps=5)
    whole = train(tmp_path / "whole", {"mode": mode, "module": ""}, save_strategy="steps", save_steps=5)
    assert largest_difference(inside, whole) == 0
    one, other = (load_file(folder / "checkpoint-5" / "model.safetensors") for folder in (tmp_path, tmp_path / "whole"))
    assert largest_difference(dict(sorted(one.items())), dict(sorted(other.items()))) == 0


class Pretrained(transformers.PreTrainedModel):
    config_class = transformers.PretrainedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.network = network()
        self.post_init()

    def forward(self, scalars: Tensor, vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = self.network(scalars, vectors)
        return {"loss": functional.mse_loss(found, labels), "found": found}


def test_a_pretrained_model_is_saved_clean_while_it_trains(tmp_path: Path) -> None:
    model = Pretrained(transformers.PretrainedConfig())
    keys = list(model.state_dict())
    running = trainer(tmp_path, {}, model, save_strategy="steps", save_steps=6)
    running.add_callback(keeping := Keeping())
    running.train()
    loaded = Pretrained.from_pretrained(tmp_path / "checkpoint-6", dtype=torch.float64).state_dict()
    assert list(loaded) == keys
    assert largest_difference(loaded, keeping.stripped[0]) == 0
    assert largest_difference(model.network.state_dict(), plain_loop(network(), batches(12))) < EXACT


class Expecting(transformers.TrainerCallback):
    """After every step: the evaluation error with statistics taken anew, and with those of the training."""

    def __init__(self) -> None:
        self.errors: list[list[float]] = []
        self.evaluated: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.errors.append(
            [expected_error(model.network, batches(12)[:3], samples(16), anew) for anew in (True, False)]
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        self.evaluated.append(metrics["eval_loss"])


def test_evaluation_takes_statistics_anew_and_files_hold_them(tmp_path: Path) -> None:
    model = WithLoss()
    model.network = normalised()
    options = {"eval_strategy": "steps", "eval_steps": 6, "save_strategy": "steps", "save_steps": 6}
    options["per_device_eval_batch_size"] = 16
    running = trainer(tmp_path, {"branch_factor": 10.0, "recalibrate": 3}, model, **options)
    running.add_callback(expecting := Expecting())
    running.train()
    anew, gathered = expecting.errors[5]
    assert expecting.evaluated[0] == pytest.approx(anew, rel=1e-9)
    assert abs(gathered - anew) > 1e-3 * anew
    loaded = WithLoss()
    loaded.network = normalised()
    loaded.load_state_dict(load_file(tmp_path / "checkpoint-6" / "model.safetensors"))
    assert expected_error(loaded.network, [], samples(16), anew=False) == pytest.approx(anew, rel=1e-9)


def test_resuming_for_longer_is_refused(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 5}
    trainer(tmp_path, {}, **options).train()
    longer = trainer(tmp_path / "again", {}, num_train_epochs=2, **options)
    with pytest.raises(UsageError, match="training of 12 optimiser steps, as it was started with, got one of 24"):
        longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


class Otherwise(WithLoss):
    """The same keys and shapes, and other code inside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.network.forward = MethodType(_otherwise, self.network)


def _otherwise(network: nn.Module, scalars: Tensor, vectors: Tensor) -> Tensor:
    return type(network).forward(network, torch.relu(scalars), vectors)


def test_resuming_with_a_network_of_other_code_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, {}, save_strategy="steps", save_steps=5).train()
    again = trainer(tmp_path / "again", {}, Otherwise())
    with pytest.raises(CheckpointError, match="its code now computes another graph .*start a new training"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
