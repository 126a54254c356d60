"""Every command on a tiny model, as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import surgeon as package
from surgeon.files import atomic as files
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import read_relaxed
from surgeon.opening.tasks import load_task
from surgeon_cli.main import SPINS
from tests.commands import CHILD_ENVIRONMENT, QUICK, Surgeon, dead_pid, files_in
from tests.opening.test_workspace import make_relaxed

COMMANDS = ["inspect", "relax", "finetune", "measure", "strip", "export", "verify", "push", "pull"]
COMMANDS += ["report", "init", "demo", "doctor"]
TRAIN = ("finetune", "net-relaxed", "--epochs", "2", "--lr", "1e-2")


def test_from_checkpoint_to_checkpoint_with_default_names(surgeon: Surgeon) -> None:
    before = files_in(surgeon.path)
    told = surgeon("relax", "net.pt", "--group", "SO3").out
    assert f"running the task file {surgeon.path / 'task.py'}" in told
    assert "wrote net-relaxed/" in told
    assert "surgeon finetune net-relaxed" in told
    told = surgeon(*TRAIN).out
    assert "wrote net-run/; next: surgeon export net-run --container" in told
    told = surgeon("strip", "net-run").out
    written = "CERTIFICATE.md, README.md, certificate.intoto.json, certificate.json, model.safetensors"
    assert "the recorded graph is the original's, the function that of clean evaluation\n" in told
    assert f"wrote net-clean/: {written}" in told
    assert (
        told.index("the recorded graph") < told.index("metrics on the test split") < told.index("checks: 15 of 15 hold")
    )
    assert re.search(r"loss +│ [\d.]+ +│ [\d.]+ +│ -[\d.]+ % +│ better", told)
    assert "state-dict keys and order" not in told
    assert "state-dict keys and order" in surgeon("strip", "net-run", "--force", "--verbose").out
    clean, original = open_checkpoint("net-clean/model.safetensors"), open_checkpoint("net.pt")
    assert clean.tensors.keys() == original.tensors.keys()
    assert not torch.equal(clean.tensors["first.weight"], original.tensors["first.weight"])
    after = files_in(surgeon.path)
    assert {name: after[name] for name in before} == before


def test_inspect_shows_the_plan_and_writes_nothing(surgeon: Surgeon) -> None:
    before = files_in(surgeon.path)
    told = surgeon("inspect", "net.pt").out
    for words in ("2 relaxable ops under O3", "first", "second", "both to", "own equivariance error", "state_dict"):
        assert words in told
    assert files_in(surgeon.path) == before


def test_inspect_a_relaxed_folder(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt", "--strip-mode", "fold")
    told = surgeon("inspect", "net-relaxed").out
    assert "relaxed, theta 0" in told
    assert "to be stripped by fold" in told


JSON: list[tuple[list[str], str]] = [
    (["inspect", "net.pt"], "plan"),
    (["relax", "net.pt", "-o", "new"], "written"),
    (["relax", "net.pt", "-o", "new", "--dry-run"], "written"),
    ([*TRAIN], "history"),
    (["finetune", "net-relaxed", "--epochs", "1", "--compare", "plain,drop", "--seeds", "1"], "rows"),
    (["measure", "net.pt", "--elements", "1"], "equivariance"),
    (["measure", "net-relaxed", "--elements", "1"], "branch_defects"),
    (["strip", "net-relaxed"], "certificate"),
    (["export", "net-relaxed", "--container"], "files"),
]


@pytest.mark.parametrize(("command", "key"), JSON, ids=[" ".join(command[:2]) + f" {key}" for command, key in JSON])
def test_json_is_all_there_is_on_standard_output(surgeon: Surgeon, command: list[str], key: str) -> None:
    surgeon.once("relax", "net.pt")
    result = surgeon(*command, "--json")
    assert key in result.data
    assert result.err == ""


def test_a_dry_run_writes_nothing(surgeon: Surgeon) -> None:
    before = files_in(surgeon.path)
    assert "dry run: nothing was written" in surgeon("relax", "net.pt", "--dry-run").out
    assert surgeon("relax", "net.pt", "--dry-run", "--json").data["written"] is None
    assert files_in(surgeon.path) == before


def test_every_stage_tells_how_long_it_took(surgeon: Surgeon) -> None:
    printed = surgeon("relax", "net.pt", "-o", "new").out
    stages = re.findall(r"^(\w+) .* \(\d+\.\d s\)$", printed, re.MULTILINE)
    assert [stage for stage in stages if stage != "ran"] == ["opened", "built", "checked", "found", "wrote"]


def sites(folder: str = "net-relaxed") -> list[str]:
    return [site.name for site in read_relaxed(Path(folder)).config.plan.sites]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ["first", "second"]),
        (["--include", "f*"], ["first"]),
        (["--exclude", "f*"], ["second"]),
        (["--include", "first", "--include", "second"], ["first", "second"]),
        (["--include", "*", "--exclude", "second"], ["first"]),
    ],
)
def test_include_and_exclude(surgeon: Surgeon, flags: list[str], expected: list[str]) -> None:
    surgeon("relax", "net.pt", *flags)
    assert sites() == expected


def test_an_output_is_replaced_only_by_force(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon("relax", "net.pt", "--include", "first", code=2)
    assert sites() == ["first", "second"]
    surgeon("relax", "net.pt", "--include", "first", "--force")
    assert sites() == ["first"]


def test_names_with_dots_and_folders(surgeon: Surgeon) -> None:
    (surgeon.path / "models").mkdir()
    (surgeon.path / "net.pt").rename(surgeon.path / "models" / "net.v2.pt")
    surgeon("relax", "models/net.v2.pt", "--task", "task.py")
    assert sites("net.v2-relaxed") == ["first", "second"]


def test_names_that_look_like_markup(surgeon: Surgeon) -> None:
    (surgeon.path / "net.pt").rename(surgeon.path / "[bold]:smile:.pt")
    told = surgeon("relax", "[bold]:smile:.pt").out
    assert "wrote [bold]:smile:-relaxed/" in told
    assert "[bold]:smile:.pt: Net" in surgeon("inspect", "[bold]:smile:.pt").out


def test_an_entry_of_a_nested_checkpoint(surgeon: Surgeon) -> None:
    weights = torch.load("net.pt", weights_only=True)
    ema = {key: value + 1 if "weight" in key else value for key, value in weights.items()}
    torch.save({"raw": weights, "averaged": ema}, "net.pt")
    assert "--entry" in surgeon("relax", "net.pt", code=2).err
    surgeon("relax", "net.pt", "--entry", "averaged")
    assert torch.equal(read_relaxed(Path("net-relaxed")).base["first.weight"], ema["first.weight"])
    surgeon("export", "net-relaxed", "--container")
    copy = torch.load("net-clean/net.pt", weights_only=True)
    assert torch.equal(copy["raw"]["first.weight"], weights["first.weight"])


def test_a_path_left_out_is_the_only_folder(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    refused = surgeon("strip", code=2).err
    assert "found only 'net-relaxed', which has done no step: give its `surgeon finetune`" in refused
    trained = surgeon("finetune", "--epochs", "1").out
    assert "using net-relaxed/, the only relaxed folder here" in trained
    assert ("nothing was gained" in trained) == ("best epoch 0\n" in trained)
    # the same command goes on, although the run is a relaxed folder as well
    assert "going on after epoch 1 of 1" in surgeon("finetune", "--epochs", "1").err
    assert "using net-run/, the only run folder here" in surgeon("strip").out
    still = surgeon("finetune", "net-relaxed", "-o", "second-run", "--epochs", "1", "--lr", "1e-30").out
    assert "at the best epoch 0\n" in still
    assert "note: nothing was gained: no epoch was better on validation than the weights" in still
    assert "found 3 (net-relaxed, net-run, second-run)" in surgeon("strip", "-o", "other", code=2).err


def test_the_run_is_trained_on_and_repeats_its_result(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    first, again = surgeon(*TRAIN, "--json").data, surgeon(*TRAIN, "--json").data
    assert [entry["epoch"] for entry in first["history"]] == [0, 1, 2]
    assert again == first
    anew = surgeon(*TRAIN, "--force", "--json").data
    assert anew["validation"] == first["validation"]


def test_a_run_that_a_killed_process_had_moved_aside_goes_on(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    first = surgeon(*TRAIN, "--json").data
    before = files_in(surgeon.path)
    aside = f".net-run.{files._BACKUP}-{dead_pid()}-{files._host()}-0123abcd"
    Path("net-run").rename(aside)
    assert "going on after epoch 2 of 2" in surgeon(*TRAIN).err
    assert not Path(aside).exists()
    assert files_in(surgeon.path).keys() == before.keys()
    assert surgeon(*TRAIN, "--json").data == first  # the seconds included


PAIR = """

class Pair(Net):
    def forward(self, scalars, vectors):
        return scalars.square().sum(1) - 1e6, super().forward(scalars, vectors)


class PairTask(TinyTask):
    def model(self):
        return Pair()

    def act_output(self, g, outputs):
        return outputs[0], outputs[1] @ (g.to(outputs[1]).T if self.at else torch.eye(3).to(outputs[1]))


def make_task(at):
    return PairTask(at=at)
"""


def test_a_large_energy_does_not_hide_an_act_output_that_forgets_the_vector(surgeon: Surgeon) -> None:
    Path("pair.py").write_text(Path("task.py").read_text() + PAIR)
    command = ("relax", "net.pt", "--task", "pair.py", "--task-args")
    told = surgeon(*command, '{"at": 0}', code=1).err
    assert "correct act and act_output" in told
    assert not Path("net-relaxed").exists()
    surgeon(*command, '{"at": 1}')


PRODUCT = """

class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = o3.FullyConnectedTensorProduct("2x1o", "0e+1o", "1o")

    def forward(self, scalars, vectors):
        attributes = torch.cat([scalars[:, :1], vectors[:, 1]], 1)
        return self.op(vectors.flatten(1), attributes)


class ProductTask(TinyTask):
    def model(self):
        return Product()

    def batches(self, split, seed):
        for index, batch in enumerate(super().batches(split, seed)):
            batch["scalars"] = torch.full((8, 2), 2.0 if (split, index) == (self.trouble, self.at) else 1.0)
            yield batch


def make_task(trouble="", at=0, batches=3):
    return ProductTask(batches, trouble, at)
"""


@pytest.mark.parametrize(("split", "at", "folds"), [("", 0, True), ("validation", 1, False), ("train", 0, False)])
def test_a_scalar_is_constant_only_if_it_is_so_in_further_batches(
    surgeon: Surgeon, split: str, at: int, folds: bool
) -> None:
    Path("product.py").write_text(Path("task.py").read_text() + PRODUCT)
    model = load_task(surgeon.path / "product.py").task.model()  # type: ignore[attr-defined]
    torch.save(model.state_dict(), "product.pt")
    options = json.dumps({"trouble": split, "at": at})
    data = surgeon("inspect", "product.pt", "--task", "product.py", "--task-args", options, "--json").data
    (site,) = data["plan"]["sites"]
    assert (site["fold"] is not None) == folds


@pytest.mark.parametrize("at", [None, 4])
def test_strip_looks_at_constant_scalars_on_every_validation_batch(surgeon: Surgeon, at: int | None) -> None:
    Path("product.py").write_text(Path("task.py").read_text() + PRODUCT)
    model = load_task(surgeon.path / "product.py").task.model()  # type: ignore[attr-defined]
    torch.save(model.state_dict(), "product.pt")
    arguments = {"batches": 5} if at is None else {"batches": 5, "trouble": "validation", "at": at}
    options = ("--task", "product.py", "--task-args", json.dumps(arguments))
    surgeon("relax", "product.pt", *options, "--strip-mode", "fold", "--init-scale", "0.5")
    if at is not None:
        told = surgeon("strip", "product-relaxed", *QUICK, code=2).err
        assert "while scalar 0 of y is 1, but on batch 5" in told
        assert "`--drop`" in told
        assert not Path("product-clean").exists()
        surgeon("strip", "product-relaxed", *QUICK, "--drop")
        return
    seen = "1 of them folded, exact while scalar 0 of y is 1, as it was on 5 validation batches"
    assert seen in surgeon("strip", "product-relaxed", *QUICK).out
    assert seen.removeprefix("1 of them ") in Path("product-clean/CERTIFICATE.md").read_text()


def test_without_data_strip_says_that_a_constant_scalar_was_not_looked_at(surgeon: Surgeon) -> None:
    source = Path("task.py").read_text() + PRODUCT + "def make_net():\n    return Product()\n"
    Path("product.py").write_text(source)
    model = load_task(surgeon.path / "product.py").task.model()  # type: ignore[attr-defined]
    torch.save(model.state_dict(), "product.pt")
    plan = surgeon("inspect", "product.pt", "--task", "product.py", "--json").data["plan"]
    Path("plan.json").write_text(json.dumps(plan))
    Path("task.py").unlink()
    command = ("--model", "product:make_net", "--trust-remote-code")
    surgeon("relax", "product.pt", *command, "--plan", "plan.json", "--strip-mode", "fold", "--init-scale", "0.5")
    note = "folded, exact while scalar 0 of y is 1, which was not looked at, for lack of data"
    assert note in surgeon("strip", "product-relaxed", *command[2:]).out
    with pytest.warns(UserWarning, match="exact while scalar 0 of y is 1: whether that is so on your data"):
        package.from_pretrained("product-relaxed", model)


def test_an_arm_decides_how_its_run_is_stripped(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*TRAIN, "--arm", "fold", "-o", "folded")
    assert read_relaxed(Path("folded")).config.strip_mode == "fold"
    assert "branches were stripped by `fold`" in surgeon("strip", "folded", "-o", "clean").out
    told = surgeon("strip", "folded", "-o", "dropped", "--drop").out
    assert "the folder was trained to be stripped by fold; by drop its outputs change by" in told


def test_the_preset_of_the_paper(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*TRAIN, "--preset", "paper", "--lambda", "0.5")
    settings = json.loads(Path("net-run/training_state/state.json").read_text())["settings"]
    assert (settings["penalty_form"], settings["penalty_scale"], settings["penalty_weight"]) == (
        "rows",
        "absolute",
        0.5,
    )
    assert (settings["epochs"], settings["learning_rate"]) == (2, 1e-2)
    for arm, weight in (("drop", 0.01), ("fold", 0.0)):
        surgeon(*TRAIN, "--preset", "paper", "--arm", arm, "-o", arm)
        penalty = json.loads(Path(arm, "surgeon_config.json").read_text())["penalty"]
        assert penalty == {"lambda": weight, "form": "rows", "scale": "absolute"}


def test_a_refused_certificate_writes_nothing(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    import surgeon.proof.equivariance as equivariance

    surgeon.once("relax", "net.pt")
    before = files_in(surgeon.path)
    monkeypatch.setattr(equivariance, "less_equivariant", lambda *_: ["worse than the original"])
    result = surgeon("strip", "net-relaxed", code=1)
    assert result.err.startswith("error: the stripped model is not certified (as equivariant")
    assert "difference: worse than the original" in result.out
    assert files_in(surgeon.path) == before
    assert surgeon("strip", "net-relaxed", "--json", code=1).out == ""


def test_a_comparison_with_a_sweep(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    compare = ("finetune", "net-relaxed", "--epochs", "1", "--compare", "plain,drop", "--seeds", "2")
    told = surgeon(*compare, "--lr-grid", "1e-2,1e-3").out
    for words in (
        "learning rates: validation mse",
        "test mse over 2 seeds",
        "2 of 2",
        "wrote net-compare.json",
    ):
        assert words in told
    record = json.loads(Path("net-compare.json").read_text())
    assert [row["arm"] for row in record["rows"]] == ["plain", "drop"]
    assert len(record["runs"]) == 4
    again = surgeon(*compare, "--lr-record", "net-compare.json", "-o", "again.json", "--json").data
    assert [row["mean"] for row in again["rows"]] == [row["mean"] for row in record["rows"]]
    Path("own.json").write_text('{"best": {"plain": 1e-3, "drop": 1e-2}}')
    told = surgeon(*compare, "--lr-record", "own.json", "-o", "own-compare.json").out
    assert "0.001" in told


def test_measure_sees_what_a_branch_breaks(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt", "--init-scale", "1", "--group", "SO3")
    data = surgeon("measure", "net-relaxed", "--elements", "2", "--json").data
    errors = data["equivariance"]
    assert errors["original"]["float64"]["identity"]["maximum"] < 1e-12
    assert errors["relaxed"]["float64"]["identity"]["maximum"] < 1e-12
    assert errors["relaxed, theta 1"]["float64"]["identity"]["median"] > 1e-2
    assert data["projection_error"]["relaxed"] == 0.0
    assert data["projection_error"]["relaxed, theta 1"] > 1e-2
    assert all(defect > 0.1 for defect in data["branch_defects"].values())


def test_metrics_of_a_split_or_of_none(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    assert surgeon("strip", "net-relaxed", "--metrics", "none", "--json").data["certificate"]["metrics"] == {}
    data = surgeon("strip", "net-relaxed", "--metrics", "validation", "--force", "--json").data
    assert set(data["certificate"]["metrics"]) == {"original", "stripped"}


def test_branches_still_at_work_are_told_with_the_other_way_of_stripping(surgeon: Surgeon) -> None:
    make_relaxed(surgeon.path)
    told = surgeon("strip", "net-relaxed", "--drop", "--metrics", "none").out
    assert "note: the branches are still at theta 0.5; stripped by drop, the outputs change by" in told
    assert "or compare with --fold" in told
    assert "still at theta" not in surgeon("strip", "net-relaxed", "--fold", "--json", "--force").out
    surgeon("relax", "net.pt", "-o", "fresh-relaxed")
    assert "still at theta" not in surgeon("strip", "fresh-relaxed", "-o", "fresh").out


def test_the_certificate_is_printed_as_it_is_written(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    data = surgeon("strip", "net-relaxed", "--json").data
    assert data["certificate"] == json.loads(Path("net-clean/certificate.json").read_text())
    assert data["certificate"]["sha256"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_each_example_on_a_line_of_its_own(
    surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERMINAL_WIDTH", "120")
    lines = [line.strip() for line in surgeon(command, "--help").out.splitlines()]
    start = lines.index("Examples:")
    examples = [line for line in lines[start + 1 :] if line.startswith(f"surgeon {command} ")]
    assert examples
    assert all(line.count("surgeon ") == 1 for line in examples)
    assert any("--" in line or "-o" in line for line in examples)


def test_help_version_and_no_command(surgeon: Surgeon) -> None:
    told = surgeon("--help").out
    assert all(command in told for command in COMMANDS)
    assert surgeon("-h").out == told
    assert surgeon("--version").out == f"surgeon {package.__version__}\n"
    assert surgeon().out.splitlines()[-1] == "surgeon --help lists the commands"


def test_a_traceback_only_for_debugging(surgeon: Surgeon) -> None:
    assert "Traceback" not in surgeon("inspect", "no.pt", code=2).err
    err = surgeon("--debug", "inspect", "no.pt", code=2).err
    assert "Traceback (most recent call last)" in err
    assert "CheckpointError" in err
    assert re.fullmatch(r"error: there is no checkpoint.* \[S201\]", err.splitlines()[-1])
    assert surgeon("inspect", "--no-such-option", code=2).err.endswith(" [S101]\n")


@pytest.mark.parametrize(("typed", "expected"), [("surgeon ", set(COMMANDS)), ("surgeon re", {"relax", "report"})])
def test_shell_completion(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch, typed: str, expected: set[str]) -> None:
    asked = {"_SURGEON_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": "1"}
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    assert set(surgeon().out.split()) == expected


WAITING = """
import os
from surgeon_cli.main import main
try:
    main(["--version"])
finally:
    print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "spins"), [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_wait_asleep_unless_the_user_says_how(given: dict[str, str], spins: str) -> None:
    said = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    quiet = {name: value for name, value in CHILD_ENVIRONMENT.items() if name not in said}
    done = subprocess.run(
        [sys.executable, "-c", WAITING], env={**quiet, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == spins


@pytest.mark.slow
def test_the_installed_command(work: Path) -> None:
    script = Path(sys.executable).with_name("surgeon")
    if not script.exists():
        pytest.skip("the package is not installed, only importable")
    command = [script, "inspect", "net.pt", "--group", "SO3", "--json"]
    done = subprocess.run(command, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "Net"
    assert done.stderr == ""
