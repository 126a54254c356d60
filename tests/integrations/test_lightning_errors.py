"""Bad input to the callback is refused in one clear sentence, and nothing is left on the module."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.editing.branch import branches_of
from surgeon.errors import CheckpointError, PlanError, SurgeonError, TrainingError, UsageError
from tests.integrations.loops import batches, network

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: make test-integrations")

from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint  # noqa: E402
from lightning.pytorch.strategies import (  # noqa: E402
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)

from surgeon.integrations.lightning import RelaxationCallback  # noqa: E402
from tests.integrations.modules import (  # noqa: E402
    BreaksDown,
    Bystander,
    FailsBefore,
    ListMadeBefore,
    Manual,
    Module,
    NeverCalls,
    TwoNetworks,
    WithAverage,
    loader,
    trainer,
)

pytestmark = pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")


class Plain(Module):
    """A network without anything to relax."""

    def __init__(self) -> None:
        super().__init__()
        del self.network
        self.network = nn.Linear(6, 3).double()

    def loss(self, batch: Any) -> torch.Tensor:
        return self.network(batch[1].flatten(1)).square().mean()


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({}, "expected group= .*or plan=.*got neither"),
    ({"group": "O3", "mode": "folded"}, "expected mode among drop, fold, got 'folded'"),
    ({"group": "O3", "penalty_scale": "rel"}, "expected penalty_scale among relative, absolute"),
    ({"group": "O3", "penalty_weight": -1.0}, "penalty_weight of at least 0, got -1.0"),
    ({"group": "O3", "branch_factor": 0.0}, "positive finite branch_factor, got 0.0"),
    ({"group": "O3", "include": "first"}, r"a list of patterns, got one string: write \['first'\]"),
]


@pytest.mark.parametrize(("settings", "words"), SETTINGS)
def test_unusable_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RelaxationCallback(**settings)


TRAININGS: list[tuple[type[Module], dict[str, Any], type[SurgeonError], str]] = [
    (Module, {"module": "netwrok"}, UsageError, "a submodule 'netwrok' of Module, .*nearest are network"),
    (TwoNetworks, {}, UsageError, "one child of TwoNetworks .*got 'network', 'other': name the network with module="),
    (Plain, {}, PlanError, "nothing to relax"),
    (Module, {"group": "Q8"}, SurgeonError, "Q8"),
    (Module, {"include": ["thrid*"]}, PlanError, "'thrid.' to match .*nearest are 'first', 'second'"),
    (FailsBefore, {}, UsageError, "to call Net with the first batch, but it failed with KeyError: 'the data are not"),
    (BreaksDown, {}, PlanError, "_Broken to run while it is recorded, but it failed with ValueError: not today"),
    (NeverCalls, {}, UsageError, "to call Net, but it never did"),
    (Bystander, {}, TrainingError, r"the branch at 'first\.\w+' to see features .*none were recorded"),
    (ListMadeBefore, {}, UsageError, "in one optimiser, but none of 1 has all"),
    (
        WithAverage,
        {"module": "network", "mode": "fold"},
        UsageError,
        "no average of weights with mode 'fold', but Av",
    ),
    (Module, {"plan": "missing.json"}, PlanError, "a JSON file at 'missing.json', but it cannot be read"),
]


@pytest.mark.parametrize(("kind", "settings", "error", "words"), TRAININGS)
def test_unusable_modules(kind: Any, settings: dict[str, Any], error: type[SurgeonError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        trainer(RelaxationCallback(**{"group": "O3", **settings})).fit(kind(), loader(batches(2)))
    assert "\n" not in str(caught.value)


def test_the_same_bystander_is_fine_without_penalty() -> None:
    module = Bystander()
    trainer(RelaxationCallback("O3", penalty_weight=0.0)).fit(module, loader(batches(2)))
    assert not branches_of(module)


def test_a_training_of_unknown_length() -> None:
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(batches(2))

    endless = torch.utils.data.DataLoader(Endless(), batch_size=None)
    with pytest.raises(UsageError, match="a training of known length .*got -1 steps: give the Trainer max_steps"):
        trainer(RelaxationCallback("O3")).fit(Module(), endless)
    with pytest.raises(UsageError, match="got -1 steps"):
        trainer(RelaxationCallback("O3")).fit(Manual(), endless)
    trainer(RelaxationCallback("O3"), max_steps=2).fit(module := Module(), endless)
    assert not branches_of(module)


def test_averaging_callbacks() -> None:
    with pytest.raises(UsageError, match="averages copies of the module, but EMAWeightAveraging does"):
        trainer(RelaxationCallback("O3"), EMAWeightAveraging()).fit(Module(), loader(batches(2)))


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_sharding_strategies(kind: type[pl.strategies.Strategy]) -> None:
    """They need GPUs or a package that may be missing, so that no Trainer can be made with them here."""
    module, callback = Module(), RelaxationCallback("O3")
    asked = SimpleNamespace(strategy=kind.__new__(kind), callbacks=[callback])
    with pytest.raises(
        UsageError, match=f"the whole network in every process, but {kind.__name__} shards it: use 'ddp'"
    ):
        callback.setup(asked, module, "fit")
    assert "configure_model" not in vars(module)
    callback.setup(SimpleNamespace(strategy=DDPStrategy(), callbacks=[callback]), module, "fit")
    assert "configure_model" in vars(module)


def test_a_plan_from_a_file_and_one_for_another_group(tmp_path: Path) -> None:
    plan = surgeon.find(network(), "O3", *batches(1)[0][:2])
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json(), "utf-8")
    callback = RelaxationCallback(plan=path, exclude=["second"])
    trainer(callback).fit(Module(), loader(batches(2)))
    assert [record.name for record in callback.records] == ["first"]
    with pytest.raises(PlanError, match="a plan for SO3, but the plan was made for O3"):
        trainer(RelaxationCallback("SO3", plan=plan)).fit(Module(), loader(batches(2)))
    path.write_text(json.dumps({"group": "O3"}), "utf-8")
    with pytest.raises(PlanError, match="bad field"):
        trainer(RelaxationCallback(plan=path)).fit(Module(), loader(batches(2)))


@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
def test_resuming_with_other_branches(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="it")
    trainer(RelaxationCallback("O3"), saving, enable_checkpointing=True).fit(Module(), loader(batches(2)))
    again = ModelCheckpoint(tmp_path, filename="it")
    other = RelaxationCallback("O3", exclude=["second"])
    with pytest.raises(CheckpointError, match="with these branches, but it differs at 'second._relaxation"):
        trainer(other, again, enable_checkpointing=True, max_epochs=2).fit(
            Module(), loader(batches(2)), ckpt_path=tmp_path / "it.ckpt"
        )


class Otherwise(Module):
    """A network with the same keys and shapes, and other code."""

    def __init__(self) -> None:
        super().__init__()
        self.network.forward = MethodType(_otherwise, self.network)


def _otherwise(network: nn.Module, scalars: Tensor, vectors: Tensor) -> Tensor:
    return type(network).forward(network, torch.relu(scalars), vectors)


@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
def test_resuming_with_a_network_of_other_code(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="it")
    trainer(RelaxationCallback("O3"), saving, enable_checkpointing=True).fit(Module(), loader(batches(2)))
    again = trainer(RelaxationCallback("O3"), ModelCheckpoint(tmp_path, filename="it"), enable_checkpointing=True)
    with pytest.raises(CheckpointError, match="its code now computes another graph .*start a new training"):
        again.fit(Otherwise(), loader(batches(2)), ckpt_path=tmp_path / "it.ckpt")
