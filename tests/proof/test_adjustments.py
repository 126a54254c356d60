"""What a task changes before training: made once, listed everywhere, and nothing else passes under its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.errors import CheckpointError, TaskError
from surgeon.files.clean import sealed
from surgeon.files.content import sha256_of_file
from surgeon.files.relaxed import read_relaxed
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.relaxing import relax_checkpoint
from surgeon.opening.trust import remember_task
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.strip_folder import StripSettings, strip_folder
from surgeon.proof.verdict import Verification
from surgeon.proof.verify import verify_clean
from surgeon.proof.words import certificate_text
from surgeon.support.attributes import tensor_sha256
from surgeon.training.compare import CompareSettings, compare
from surgeon.training.finetune import finetune
from surgeon.training.progress import Progress
from surgeon.training.settings import FinetuneSettings

LISTED = "changes before training, as listed"
TASK = """
from pathlib import Path
import torch
from surgeon.editing.adjust import Adjustments, changes_of
from tests.tiny import Net as TinyNet, TinyTask


class Net(TinyNet):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("other", torch.ones(2))

    def forward(self, scalars, vectors):
        return super().forward(scalars, vectors) * self.scale[0] * self.other[1]


class Task(TinyTask):
    def __init__(self, gain=0.0, names=("scale",)):
        super().__init__()
        self.gain, self.names = gain, names

    def model(self):
        return Net()

    def adjustable(self, model):
        return self.names

    def adjustments(self, model):
        with open("asked", "a") as file:
            file.write("x")
        labels = {(0,): "first", (1,): "second"}
        changes = changes_of(model, "scale", {(0,): 1.1, (1,): 1.0}, labels)
        return Adjustments("scales", "they are too small", changes, {"gain": 2.5})


def make_task(gain=0.0, names=("scale",)):
    return Task(gain, names)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint, its task, and what three commands made of them."""
    folder = tmp_path_factory.mktemp("adjusted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "task.py").write_text(TASK)
        remember_task(folder / "task.py")
        torch.manual_seed(0)
        model = open_net()
        torch.save(model.state_dict(), folder / "net.pt")
        relaxed = relax_checkpoint("net.pt", "relaxed", options=OpenOptions(task="task.py"))
        assert "scales: they are too small; 1 entry of scale was changed" in relaxed.told[0]
        assert relaxed.told[1].startswith("before: mse ")
        finetune("relaxed", "run", FinetuneSettings(epochs=1))
        strip_folder("run", "clean", StripSettings(measure=MeasureSettings(1, 1)))
    return folder


def open_net() -> torch.nn.Module:
    from surgeon.opening.tasks import load_task

    task: Any = load_task(Path("task.py").absolute()).task
    network: torch.nn.Module = task.model()
    return network


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(made, tmp_path / "work"))
    remember_task(folder / "task.py")
    monkeypatch.chdir(folder)
    return folder


def verified() -> Verification:
    return verify_clean("clean", "net.pt", OpenOptions(task="task.py"), group="O3")


def test_it_is_asked_once_and_training_metrics_and_files_see_the_same(work: Path) -> None:
    assert (work / "asked").read_text() == "x"
    for folder in ("relaxed", "run"):
        files = read_relaxed(folder)
        assert files.base["scale"].tolist() == pytest.approx([1.1, 1.0])
        assert files.config.adjustments is not None
        assert [change.label for change in files.config.adjustments.changes] == ["first"]
    workspace = open_path("run")
    assert workspace.require_task().task.gain == 2.5  # type: ignore[attr-defined]
    assert workspace.original()[0].get_buffer("scale").tolist() == pytest.approx([1.1, 1.0])
    assert torch.load("net.pt")["scale"].tolist() == [1.0, 1.0]


def test_a_checkpoint_that_was_never_relaxed_is_adjusted_once_and_a_resume_does_not_ask(work: Path) -> None:
    for _ in range(2):  # the second call goes on after the last epoch
        finetune("net.pt", "plain", FinetuneSettings(epochs=1), arm="plain", options=OpenOptions(task="task.py"))
        assert (work / "asked").read_text() == "xx"
    files = read_relaxed("plain")
    assert files.config.adjustments == read_relaxed("relaxed").config.adjustments
    assert files.base["scale"].tolist() == pytest.approx([1.1, 1.0])


def test_a_comparison_from_a_checkpoint_says_what_it_adjusts(work: Path) -> None:
    class Heard(Progress):
        said: list[str] = []  # noqa: RUF012

        def say(self, sentence: str) -> None:
            self.said.append(sentence)

    settings = CompareSettings(["plain"], 1, FinetuneSettings(epochs=1))
    compare("net.pt", "compare.json", settings, options=OpenOptions(task="task.py"), progress=Heard())
    assert "scales: they are too small; 1 entry of scale was changed" in Heard.said[0]


def test_the_certificate_lists_it_and_verifying_agrees(work: Path) -> None:
    text = (work / "clean" / "CERTIFICATE.md").read_text()
    assert "apart from the scales that were changed before training" in text
    assert "| `scale[0]` | first | 1.0 | 1.10000" in text
    verification = verified()
    assert verification.holds, verification.differences
    assert {finding.name: finding.outcome for finding in verification.findings}[LISTED] == "holds"
    alone = verify_clean("clean", None, OpenOptions(task="task.py"), group="O3")
    assert alone.holds, alone.differences
    assert {finding.name: finding.outcome for finding in alone.findings}[LISTED] == "not checked"


def change_weights(folder: Path, edit: Callable[[dict[str, Any]], None], list_it: Callable[[Any], None]) -> None:
    """Change the weights of a clean folder and every hash with them, and what the certificate lists."""
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    data = json.loads((folder / "certificate.json").read_text())
    list_it(data["details"]["adjustments"]["changes"])
    for name, tensor in weights.items():
        data["architecture"]["result"][name][2] = tensor_sha256(tensor)
    data["files"]["model.safetensors"] = sha256_of_file(folder / "model.safetensors")
    words = {name: digest for name, digest in data["files"].items() if name != "CERTIFICATE.md"}
    (folder / "CERTIFICATE.md").write_text(certificate_text({**data, "files": words}))
    data["files"]["CERTIFICATE.md"] = sha256_of_file(folder / "CERTIFICATE.md")
    (folder / "certificate.json").write_text(json.dumps(sealed(data)))


def other(weights: dict[str, Any]) -> None:
    weights["other"][0] = 3.0


def scale(weights: dict[str, Any]) -> None:
    weights["scale"][0] = 1.2


def as_change(**fields: Any) -> Callable[[Any], None]:
    change = {"tensor": "other", "index": [0], "label": "x", "before": 1.0, "after": 3.0, "trained": False}
    return lambda changes: changes.append({**change, **fields})


@pytest.mark.parametrize(
    ("edit", "list_it", "words"),
    [
        (other, lambda _: None, "buffer other changed"),
        (other, as_change(), "other was changed, and the task may adjust scale only"),
        (lambda _: None, as_change(tensor="first.weight", before=0.5), r"original: first.weight\[0\] .* listed is 0.5"),
        (scale, lambda _: None, r"result: scale\[0\] \(first\) is 1.2.*, listed is 1.1"),
        (lambda _: None, lambda changes: changes.clear(), "buffer scale changed"),
    ],
    ids=["unlisted", "listed", "another original", "another value", "not listed any more"],
)
def test_nothing_else_passes_under_its_name(
    work: Path, edit: Callable[[dict[str, Any]], None], list_it: Callable[[Any], None], words: str
) -> None:
    import re

    change_weights(work / "clean", edit, list_it)
    assert any(re.search(words, text) for text in verified().differences)


def test_a_task_changes_only_what_it_may_and_what_is_there(work: Path) -> None:
    with pytest.raises(TaskError, match="scale was changed, and the task may adjust nothing only: name it in"):
        relax_checkpoint("net.pt", None, options=OpenOptions(task="task.py", task_arguments={"names": []}))
    config = json.loads((work / "relaxed" / "surgeon_config.json").read_text())
    config["adjustments"]["changes"][0]["before"] = 7.0
    (work / "relaxed" / "surgeon_config.json").write_text(json.dumps(config))
    from surgeon.files.seals import seal_folder

    seal_folder(work / "relaxed")
    with pytest.raises(CheckpointError, match=r"as it was .*scales were changed, but scale\[0\] \(first\) is 1.0"):
        open_path("relaxed").original()
