"""Every arm is a product: from a checkpoint that was never relaxed to clean weights with a certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import read_relaxed
from surgeon.training.runs import read_record
from tests.commands import QUICK, Surgeon, files_in
from tests.tiny import Net

TASK = ("--task", "task.py")
TRAIN = ("finetune", "net.pt", *TASK, "--epochs", "2", "--lr", "1e-2", "-o", "run")
BROKEN = ("--task-args", json.dumps({"trouble": "not symmetric"}))
WITH_BRANCHES = ("drop", "fold")


def trained(*names: str) -> list[dict[str, torch.Tensor]]:
    """Return what a folder holds under one or several file names."""
    return [dict(open_checkpoint(name, may_be_empty=True).tensors) for name in names]


def assert_equal_tensors(left: str, right: str) -> None:
    one, other = trained(left, right)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one), left


@pytest.mark.parametrize("arm", ["plain", "lrbump", "lowrank", "overparam@soap", *WITH_BRANCHES])
def test_from_a_bare_checkpoint_to_a_certificate(surgeon: Surgeon, arm: str) -> None:
    before = files_in(surgeon.path)
    shown = surgeon(*TRAIN, "--arm", arm)
    told, arm = shown.out, arm.partition("@")[0]
    lines = [line for line in shown.err.splitlines() if line.startswith("  epoch 2, ")]
    assert lines
    for word in ("theta", "penalty", "mse clean", "relaxed"):
        assert all((word in line) == (arm in WITH_BRANCHES) for line in lines)
    assert all(" mse " in line for line in lines)
    assert "wrote run/; next: surgeon export run --container" in told
    config = read_relaxed(Path("run")).config
    assert (config.arm, bool(config.plan.sites)) == (arm, arm in WITH_BRANCHES)
    certificate = surgeon("strip", "run", "-o", "clean", "--metrics", "validation", "--json").data["certificate"]
    assert certificate["grade"] == "same function"
    state = read_record(Path("run")).state
    evaluations = [line for line in shown.err.splitlines() if line.startswith("epoch ")]
    assert len(evaluations) == state.epoch
    assert evaluations[state.best_epoch - 1].endswith(", the best so far")
    best = state.best_validation
    assert certificate["metrics"]["stripped"]["mse"] == pytest.approx(best["mse"], rel=1e-5)
    assert best["mse"] < 0.999 * certificate["metrics"]["original"]["mse"]
    assert certificate["checks"]["module classes"]
    assert certificate["checks"]["as equivariant as the original"]
    assert bool(certificate["sites"]) == (arm in WITH_BRANCHES)
    words = f"There were no branches: it was trained by the arm `{arm}`"
    assert (words in Path("clean/CERTIFICATE.md").read_text()) == (arm not in WITH_BRANCHES)
    models = {"original", "stripped"} | ({"relaxed", "relaxed, theta 1"} if arm in WITH_BRANCHES else set())
    assert certificate["equivariance"].keys() == models
    clean, original = trained("clean/model.safetensors", "net.pt")
    assert clean.keys() == original.keys()
    assert not torch.equal(clean["first.weight"], original["first.weight"])
    assert "everything that was checked holds" in surgeon("verify", "clean", "--against", "net.pt", *TASK).out
    after = files_in(surgeon.path)
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_a_run_that_was_never_relaxed_is_exported(surgeon: Surgeon) -> None:
    surgeon(*TRAIN, "--arm", "plain")
    told = surgeon("export", "run", "-o", "files", "--container", "--pt2", "--onnx", *QUICK).out
    assert "wrote files/" in told
    clean, container = trained("files/model.safetensors", "files/net.pt")
    assert all(torch.equal(clean[key], container[key]) for key in clean)
    assert {path.name for path in Path("files").iterdir()} >= {"model.onnx", "model.pt2", "CERTIFICATE.md"}
    assert "everything that was checked holds" in surgeon("verify", "files", "--against", "net.pt", *TASK).out


@pytest.mark.parametrize("arm", ["plain", "lowrank@muon", "overparam@soap", "fold"])
def test_a_run_from_a_bare_checkpoint_goes_on(surgeon: Surgeon, arm: str) -> None:
    replay = {"plain": ("--replay", "perturb", "--replay-share", "0.5"), "fold": ("--replay", "other.py")}.get(arm, ())
    Path("other.py").write_text(Path("task.py").read_text())
    command = (*TRAIN[:-1], "{}", "--arm", arm, "--save-every", "1", "--ema", "0.9", "--warmup", "2", *replay)
    first, whole = ([part.format(name) for part in command] for name in ("run", "whole"))
    stop = ("--task-args", json.dumps({"trouble": "stop once", "at": 6 if arm == "plain" else 8}))
    assert "interrupted in epoch" in surgeon(*first, *stop, code=2).err
    assert "going on after epoch" in surgeon(*first, *stop).err
    assert ("replay: outputs of the original on" in surgeon(*whole).err) == bool(replay)
    for name in ("model.safetensors", "relaxation.safetensors", "training_state/state.safetensors"):
        assert_equal_tensors(f"run/{name}", f"whole/{name}")


def test_a_task_may_prefer_an_optimiser_where_no_branches_are_trained(surgeon: Surgeon) -> None:
    with Path("task.py").open("a") as file:
        file.write(
            "\nTask = type(make_task())\nTask.preferred = {'optimizer': 'soap', 'learning_rate': 0.02, 'clip': 3.0}\n"
        )
    train, preferred = (*TRAIN[:4], "--epochs", "1", "-o"), "soap, learning rate 0.02, as its task prefers"
    assert preferred in surgeon(*train, "run").err
    settings = read_record(Path("run")).settings
    assert (settings.optimizer, settings.learning_rate, settings.clip) == ("soap", 0.02, 3.0)
    assert "adamw, learning rate 0.001\n" in surgeon(*train, "drop", "--arm", "drop").err


def test_what_a_bare_checkpoint_cannot_be_is_said(surgeon: Surgeon) -> None:
    before = files_in(surgeon.path)
    assert "a symmetry of the model" in surgeon(*TRAIN, "--arm", "plain", *BROKEN, code=1).err
    assert files_in(surgeon.path) == before
    assert "arm plain: no branches" in surgeon(*TRAIN).out
    assert "arm 'plain' against 'lrbump'" in surgeon(*TRAIN, "--arm", "lrbump", code=2).err
    assert "its plan differ" in surgeon(*TRAIN, "--arm", "drop", code=2).err
    torch.manual_seed(9)
    torch.save(Net().state_dict(), "net.pt")
    assert "its original checkpoint differ" in surgeon(*TRAIN, "--arm", "plain", code=2).err
    assert (
        "expected a folder with branches for the arm 'drop'"
        in surgeon("finetune", "run", "--arm", "drop", "--original", "net.pt", code=2).err
    )


def test_an_arm_without_branches_takes_those_of_a_folder_off(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt", "--init-scale", "1", "--schedule", "early")
    before = files_in(surgeon.path)
    surgeon("finetune", "net-relaxed", *TRAIN[4:], "--arm", "lrbump")
    config = read_relaxed(Path("run")).config
    assert (config.plan.sites, config.schedule.name, config.arm) == ((), "early", "lrbump")
    surgeon("finetune", "net.pt", *TASK, *TRAIN[4:-1], "other", "--arm", "plain")
    one, other = trained("run/model.safetensors", "other/model.safetensors")
    assert one.keys() == other.keys()
    assert not torch.equal(one["first.weight"], other["first.weight"])
    after = files_in(surgeon.path)
    assert {name: after[name] for name in before} == before


COMPARE = (*TRAIN[:-2], "--compare", "plain,lowrank,fold", "--seeds", "2")


def test_a_comparison_keeps_the_best_seed_of_every_arm(surgeon: Surgeon) -> None:
    told = surgeon(*COMPARE)
    record = json.loads(Path("net-compare.json").read_text())
    best: dict[str, Any] = {}
    for run in record["runs"]:
        if run["arm"] not in best or run["validation"]["mse"] < best[run["arm"]]["validation"]["mse"]:
            best[run["arm"]] = run
    kept = {arm: [run["seed"]] for arm, run in best.items()}
    assert record["kept weights"] == kept
    assert {tuple(path.parts[1:]) for path in Path("net-compare").glob("*/*")} == {
        (arm, str(seed)) for arm, (seed,) in kept.items()
    }
    assert f"next: surgeon export net-compare/plain/{kept['plain'][0]} --container" in told.out
    for arm, run in best.items():
        command = ("strip", f"net-compare/{arm}/{run['seed']}", "--no-recalibrate", "--json")
        stripped = surgeon(*command).data
        assert stripped["written"] == f"net-compare-{arm}-{run['seed']}-clean"
        assert stripped["certificate"]["grade"] == "same function"
        assert stripped["certificate"]["metrics"]["stripped"] == pytest.approx(run["test"], rel=1e-6)
        assert [site["norm"] for site in stripped["certificate"]["sites"]] == [site["norm"] for site in run["sites"]]
    more = surgeon(*COMPARE[:-1], "3", "--keep", "all").err
    assert "no weights of" not in more
    seeds = json.loads(Path("net-compare.json").read_text())["kept weights"]
    assert all(2 in own and len(own) == 2 for own in seeds.values())  # the worse of the first two is gone


def test_a_comparison_that_keeps_none_says_so_later(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    command = ("finetune", "net-relaxed", "--epochs", "1", "--compare", "plain", "--seeds", "1")
    surgeon(*command, "--keep", "none")
    assert not Path("net-compare").exists()
    assert "no weights of plain are in net-compare/" in surgeon(*command).err
    surgeon(*command, "--restart")
    assert Path("net-compare/plain/0/model.safetensors").is_file()
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    assert "other" in surgeon(*command, "-o", "other.json", code=2).err
    assert [path.name for path in Path("other").iterdir()] == ["notes.txt"]
