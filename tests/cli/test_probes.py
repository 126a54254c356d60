"""Other data: what a training does there is in the table, the certificate and the card, and is measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surgeon.files.clean import sealed
from surgeon.files.reading import open_checkpoint
from surgeon.hub.card import card_text
from surgeon.hub.content import content_of
from surgeon.opening.evaluation import evaluate
from surgeon.opening.tasks import load_task
from surgeon.proof.words import certificate_text
from tests.commands import QUICK, Surgeon
from tests.tiny import Net

FAR = """
from tests.tiny import TinyTask


class Far(TinyTask):
    def batches(self, split, seed):
        for batch in super().batches(split, seed):
            yield {**batch, "target": SCALE * batch["target"]}


task = Far(batches=2)
"""
PROBE = ("--probe", "far=far.py")
NAME = "metrics on other data: far"


@pytest.fixture
def far(surgeon: Surgeon) -> Surgeon:
    Path("far.py").write_text(FAR.replace("SCALE", "5"))
    return surgeon


def measured(weights: str) -> dict[str, float]:
    """Return the metrics on the other data of a network with these weights, by nothing but the task."""
    net = Net()
    net.load_state_dict(dict(open_checkpoint(weights).tensors))
    return evaluate(net, load_task("far.py").task, "test")


def finding(far: Surgeon, *given: str, code: int = 0) -> tuple[str, list[str]]:
    result = far("verify", "clean", "--against", "net.pt", "--task", "task.py", *given, "--json", code=code).data
    (found,) = (each for each in result["findings"] if each["name"] == NAME)
    return found["outcome"], found["differences"] or [found["note"]]


def test_relaxing_tells_of_the_model_as_opened(far: Surgeon) -> None:
    relax = ("relax", "net.pt", "--task", "task.py", *PROBE)
    shown = far(*relax, "-o", "relaxed").out
    expected = measured("net.pt")
    assert f"before, on far: mse {expected['mse']:.6g}" in shown
    assert "next: surgeon finetune relaxed --probe far=far.py" in shown
    found = far(*relax, "--dry-run", "--json").data
    assert found["probes"] == {"far": pytest.approx(expected, rel=1e-6)}
    assert found["probes"]["far"]["mse"] != pytest.approx(found["before"]["mse"])


@pytest.mark.parametrize("arm", ["plain", "drop"])
def test_original_and_result_are_evaluated_on_other_data(far: Surgeon, arm: str) -> None:
    train = ("finetune", "net.pt", "--task", "task.py", "--arm", arm, "--epochs", "1", "--lr", "1e-2", *PROBE)
    shown = far(*train, "-o", "run").out
    assert "next: surgeon export run --container --probe far=far.py" in shown
    found = far(*train, "-o", "again", "--json").data["probes"]
    far("strip", "run", "-o", "clean", *PROBE, *QUICK)
    record = json.loads(Path("clean/certificate.json").read_text())["details"]["probes"]
    assert record["far"]["metrics"]["original"] == pytest.approx(measured("net.pt"), rel=1e-6)
    assert record["far"]["metrics"]["stripped"] == pytest.approx(measured("clean/model.safetensors"), rel=1e-6)
    assert record["far"]["metrics"]["original"]["mse"] != pytest.approx(record["far"]["metrics"]["stripped"]["mse"])
    kept = json.loads(Path("run/training_state/state.json").read_text())["state"]["probes"]
    assert all(kept["far"][model] == pytest.approx(found["far"][model], rel=1e-5) for model in ("original", "stripped"))
    far(*train, "-o", "run")  # a run that is finished is left with what it measured
    assert json.loads(Path("run/training_state/state.json").read_text())["state"]["probes"] == kept
    for model, metrics in found["far"].items():
        assert metrics == pytest.approx(record["far"]["metrics"][model], rel=1e-5)
    row = f"| far | mse | {record['far']['metrics']['original']['mse']:.8g} | "
    for text in (Path("clean/CERTIFICATE.md").read_text(), card_text(content_of("clean"), "me/net", "")):
        assert row in text
    assert finding(far, *PROBE) == ("holds", ["relative tolerance 0.0001"])
    assert finding(far) == ("not checked", ["give --probe far=TASK"])


def test_another_probe_and_another_figure_are_found(far: Surgeon) -> None:
    far("relax", "net.pt")
    far("strip", "net-relaxed", "-o", "clean", *PROBE, *QUICK)
    path = Path("clean/certificate.json")
    data = json.loads(path.read_text())
    figures = data["details"]["probes"]["far"]["metrics"]["stripped"]
    figures["mse"] *= 1.001
    files = {name: digest for name, digest in data["files"].items() if name != "CERTIFICATE.md"}
    Path("clean/CERTIFICATE.md").write_text(certificate_text({**data, "files": files}))
    path.write_text(json.dumps(sealed(data)))
    outcome, told = finding(far, *PROBE, code=1)
    assert outcome == "differs"
    assert [text for text in told if text.startswith("mse of the stripped on the probe far: recorded is")] == told
    Path("far.py").write_text(FAR.replace("SCALE", "4"))
    assert "the file of the probe far is another" in finding(far, *PROBE, code=1)[1][0]
    told = far("verify", "clean", "--against", "net.pt", "--task", "task.py", "--probe", "near=far.py", code=2).err
    assert "expected probes that the certificate records (far), got 'near'" in told


def test_what_is_no_probe_is_refused_before_training(far: Surgeon) -> None:
    train = ("finetune", "net.pt", "--task", "task.py", "--arm", "plain", "-o", "run")
    for given in ("far.py", "=far.py", "far="):
        assert "expected --probe NAME=TASK" in far(*train, "--probe", given, code=2).err
    assert "expected --probe NAME=TASK" in far(*train, *PROBE, *PROBE, code=2).err
    assert "there is no task file" in far(*train, "--probe", "far=nowhere.py", code=2).err
    assert not Path("run").exists()


def test_a_comparison_evaluates_every_arm_on_other_data(far: Surgeon) -> None:
    command = ("finetune", "net.pt", "--task", "task.py", "--compare", "plain", "--seeds", "1", "--epochs", "1")
    told = far(*command, "--lr", "1e-2", *PROBE).out
    assert "far mse" in told
    (run,) = json.loads(Path("net-compare.json").read_text())["runs"]
    far("strip", "net-compare/plain/0", "-o", "clean", *PROBE, *QUICK)
    assert run["test"]["far mse"] == pytest.approx(measured("clean/model.safetensors")["mse"], rel=1e-6)
