"""Options of relax and finetune: what they do, and what is said when they cannot be."""

from __future__ import annotations

import json
import re

import pytest

from tests.commands import Surgeon

RELAX = ("relax", "net.pt", "--group", "O3", "--dry-run", "--json")


def sizes(surgeon: Surgeon, *options: str) -> dict[str, int]:
    sites = surgeon(*RELAX, *options).data["plan"]["sites"]
    return {site["name"]: site["rank"] or site["shape"][0] * site["shape"][1] for site in sites}


def test_sites_are_chosen_by_budget_rank_and_blocks(surgeon: Surgeon) -> None:
    assert sizes(surgeon) == {"first": 1, "second": 1}  # ranks
    assert sizes(surgeon, "--dense") == {"first": 64, "second": 18}  # entries
    assert sizes(surgeon, "--max-extra-params", "63") == {"first": 2, "second": 18}
    assert sizes(surgeon, "--max-extra-params", "15") == {"second": 1}
    assert sizes(surgeon, "--dense", "--max-extra-params", "63") == {"second": 18}
    assert sizes(surgeon, "--max-extra-params", "1000%") == {"first": 64, "second": 18}  # of 10 parameters
    assert sizes(surgeon, "--rank", "1") == {"first": 1, "second": 1}
    told = surgeon(*RELAX, "--blocks", "1>0").data["plan"]["sites"]
    assert [(site["name"], site["blocks"]) for site in told] == [("first", [[1, 0]])]


BAD = [
    (("--rank", "1", "--blocks", "1>1"), "one of --dense, --rank and --blocks, got more"),
    (("--rank", "1", "--dense"), "one of --dense, --rank and --blocks, got more"),
    (("--blocks", "1-0"), "blocks such as 0>1,1>2 after --blocks"),
    (("--max-extra-params", "lots"), "after --max-extra-params, got 'lots'"),
    (("--max-extra-params", "1"), "the smallest branch"),
    (("--theta-site", "first"), "PATTERN=SHARE"),
    (("--theta-site", "frist=0.5"), "the schedule's pattern 'frist' to match"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_what_cannot_be_is_said(surgeon: Surgeon, options: tuple[str, ...], words: str) -> None:
    import re

    said = surgeon(*RELAX, *options, code=2).err
    assert re.search(words, said), said
    assert len(said.strip().splitlines()) == 1


def test_the_options_of_the_engine_reach_it(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt", "--group", "O3", "--theta-site", "second=0.5", "--schedule", "early")
    told = surgeon(
        *(
            "finetune",
            "net-relaxed",
            "--epochs",
            "2",
            "--lr",
            "1e-2",
            "--accumulate",
            "2",
            "--ema",
            "0.9",
            "--clip",
            "1",
        ),
        *(
            "--warmup",
            "1",
            "--lr-decay",
            "linear",
            "--optimizer",
            "soap",
            "--beta2",
            "0.9",
            "--exact-penalty",
            "--penalty-form",
            "square",
        ),
        *("--adaptive-theta", "--patience", "5", "--deterministic", "--save-every", "1", "--weight-decay", "1e-4"),
    ).err
    assert "training adds 25 parameters to 10" in told
    assert "nothing of it remains after stripping" in told
    assert re.search(r"soap acts on \d+ matrices in \d+ of \d+ trainable weights", told)
    state = json.loads((surgeon.path / "net-run" / "training_state" / "state.json").read_text())
    settings = state["settings"]
    expected = {
        "accumulate": 2, "ema": 0.9, "clip": 1.0, "warmup": 1, "decay": "linear", "optimizer": "soap",
        "beta2": 0.9,
        "penalty_rows": None, "penalty_every": 1, "penalty_form": "square", "adaptive_theta": True, "patience": 5,
        "deterministic": True, "weight_decay": 1e-4,
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected
    assert settings["schedule"]["name"] == "early"
    assert settings["schedule"]["sites"] == [["second", 0.5]]
    assert state["state"]["step"] == 4  # three batches, two to a step
    assert (surgeon.path / "net-run" / "records.jsonl").is_file()
    said = surgeon("finetune", "net-relaxed", "--epochs", "2", "--lr", "1e-2", code=2).err
    assert "accumulate 2 against 1" in said
    surgeon("strip", "net-run")


def test_an_unknown_tracker_and_stray_options_are_refused(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt", "--group", "O3")
    said = surgeon("finetune", "net-relaxed", "--track", "papyrus", code=2).err
    assert "tracker among tensorboard, wandb, mlflow, got 'papyrus'" in said
    for stray in (("--jobs", "2"), ("--restart",)):
        assert "together with --compare" in surgeon("finetune", "net-relaxed", *stray, code=2).err
    said = surgeon("finetune", "net-relaxed", "--arm", "drop", "--freeze-base", code=2).err
    assert "nothing would remain" in said


@pytest.mark.parametrize("arm", ["refold", "ace"])
def test_further_arms_end_in_a_clean_checkpoint(surgeon: Surgeon, arm: str) -> None:
    surgeon.once("relax", "net.pt", "--group", "O3", *(["--dense"] if arm == "refold" else []))
    surgeon("finetune", "net-relaxed", "--arm", arm, "--epochs", "2", "--lr", "1e-2")
    assert "the recorded graph is the original's" in surgeon("strip", "net-run").out


def test_what_has_low_rank_is_not_refolded(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt", "--group", "O3")
    for refolding in (["--arm", "refold"], ["--compare", "plain,refold", "-o", "compared.json"]):
        said = surgeon("finetune", "net-relaxed", *refolding, "--epochs", "2", code=2).err
        assert "got one of rank 1 at 'first.features': make them anew with `surgeon relax --dense`" in said
        assert "epoch 1" not in said  # it is refused before anything is trained
    surgeon("finetune", "net.pt", "--task", "task.py", "--arm", "refold", "--epochs", "1", "-o", "bare")
    plan = json.loads((surgeon.path / "bare" / "surgeon_config.json").read_text())["plan"]
    assert [site["rank"] for site in plan["sites"]] == [None, None]


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_dense_and_low_rank_branches_go_from_relax_to_verify(surgeon: Surgeon, mode: str) -> None:
    mixed = ("--max-extra-params", "63", "--strip-mode", mode, "--init-scale", "0.5")
    told = "branches: 1 site dense, 1 of rank 2\ntraining adds 50 parameters, 500 % of the model's 10"
    assert told in surgeon("relax", "net.pt", "--group", "O3", *mixed).out
    assert told in surgeon("inspect", "net-relaxed").out
    surgeon("finetune", "net-relaxed", "--epochs", "2", "--lr", "1e-2")
    surgeon("strip", "net-run")
    told = surgeon("verify", "net-clean", "--against", "net.pt", "--task", "task.py", "--group", "O3").out
    assert "everything that was checked holds; the certificate says 'same function'" in told


def test_a_small_network_is_told_that_rank_one_is_more(surgeon: Surgeon) -> None:
    for command in ("inspect", "relax"):
        told = " ".join(surgeon(command, "net.pt", "--group", "O3").out.split())
        assert "branches: 2 sites of rank 1 training adds 25 parameters, 250 % of the model's 10" in told
        assert "note: branches of rank 1 at every site have 25 parameters, more than the budget of 10" in told
