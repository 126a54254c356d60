"""A written container is opened as its users will, and what comes out is run: equal keys prove nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon import registry
from surgeon.errors import CheckFailedError, CheckpointError
from surgeon.export import reopening
from surgeon.export.reopening import container_extra
from surgeon.files.reading import open_checkpoint
from surgeon.opening.clean import open_clean, open_models
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.workspace import Workspace
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.clean_folder import write_clean
from surgeon.proof.strip_and_certify import strip_and_certify
from tests import tiny
from tests.commands import Surgeon
from tests.opening.test_workspace import make_relaxed
from tests.tiny import Net

Content = Callable[[nn.Module], Any]
SETTINGS = MeasureSettings(1, 1)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return Surgeon.folder(tmp_path, monkeypatch)


def opened(work: Path, content: Content, loader: str = "", trust: bool = False) -> Workspace:
    """Relax a checkpoint with some content; the task's ``load_model``, if any, is the library's loader."""
    torch.manual_seed(0)
    torch.save(content(Net()), work / "net.pt")
    if loader:
        text = Path(tiny.__file__).read_text().replace("    def loss(", f"{loader}\n    def loss(", 1)
        (work / "task.py").write_text(text)
    options = OpenOptions(task=str(work / "task.py"), trust_pickle=trust, accept_changed_task=True)
    return open_path(make_relaxed(work, options=options), options, mode="fold")


def exported(work: Path, workspace: Workspace) -> dict[str, Any]:
    """Export with the container; what the certificate says of it."""
    model, certificate = strip_and_certify(workspace, "fold", SETTINGS, split=None)
    original = workspace.original()[1]
    extras = {"container": container_extra(workspace, model, original)}
    write_clean(work / "clean", model, certificate, original, extras=extras)
    record: dict[str, Any] = json.loads((work / "clean/certificate.json").read_text())["details"]["container"]
    return record


LIGHTNING = {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.5.0", "loops": {"fit_loop": {}}}
LIGHTNING |= {"optimizer_states": [], "lr_schedulers": [], "hyper_parameters": {"hidden": 2}}
CONTAINERS: dict[str, tuple[Content, bool, str]] = {
    "state dict": (lambda net: net.state_dict(), False, "model() of the task"),
    "extra entries": (lambda net: {"step": 3, "model": net.state_dict()}, False, "model() of the task"),
    "Lightning": (lambda net: {**LIGHTNING, "state_dict": net.state_dict()}, False, "model() of the task"),
    "Lightning with objects": (
        lambda net: {**LIGHTNING, "hyper_parameters": {"data": Path("data")}, "state_dict": net.state_dict()},
        True,
        "model() of the task",
    ),
    "module": (lambda net: net, True, "unpickling the module"),
    "module in a dict": (lambda net: {"step": 3, "model": net}, True, "unpickling the module"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_was_written_is_opened_again_and_run(work: Path, name: str) -> None:
    content, trust, source = CONTAINERS[name]
    record = exported(work, opened(work, content, trust=trust))
    expected = {"file": "net.pt", "opened_by": source, "batches": 2, "deviation": 0.0, "bit_equal": True, "usage": None}
    assert record == expected
    before, after = (open_checkpoint(work / part / "net.pt", trust_pickle=trust) for part in ("", "clean"))
    assert (before.container, before.entry, before.extras) == (after.container, after.entry, after.extras)
    assert not torch.equal(before.tensors["first.weight"], after.tensors["first.weight"])


VERSIONED = """
    def load_model(self, path: Path) -> nn.Module:
        content = torch.load(path, weights_only=True)
        weights = dict(content["model"])
        if content["version"] < 2:  # older files have the other sign
            weights["second.weight"] = -weights["second.weight"]
        model = Net()
        model.load_state_dict(weights, strict=True)
        return model
"""


@pytest.mark.parametrize("version", [1, 2])
def test_weights_that_a_loader_flips_by_an_old_version_field_are_taken_as_it_gives_them(
    work: Path, version: int
) -> None:
    workspace = opened(work, lambda net: {"version": version, "model": net.state_dict()}, VERSIONED)
    stored, own = (open_checkpoint(work / part).tensors for part in ("net.pt", "net-relaxed/model.safetensors"))
    assert torch.equal(own["second.weight"], stored["second.weight"] * (-1 if version == 1 else 1))
    if version == 2:
        assert exported(work, workspace)["opened_by"] == "load_model() of the task"
        return
    plain = open_path(work / "net.pt", workspace.options)
    assert any(re.match(r"1 of the \d+ tensors that load_model\(\) of", note) for note in plain.found.notes)
    with pytest.raises(CheckpointError, match=r"1 of the \d+ tensors that load_model.* export without --container"):
        exported(work, workspace)
    assert not (work / "clean").exists()
    workspace = open_path(work / "net-relaxed", workspace.options, mode="fold")
    model, certificate = strip_and_certify(workspace, "fold", SETTINGS, split=None)
    write_clean(work / "clean", model, certificate, workspace.original()[1])
    opened_again = open_clean(work / "clean", work / "net.pt", workspace.options)
    open_models(opened_again)
    assert opened_again.original is not None
    assert torch.equal(opened_again.original["second.weight"], -stored["second.weight"])
    assert not opened_again.missing


@pytest.mark.parametrize("beside", [False, True])
def test_a_task_that_only_loads_opens_a_file_and_its_relaxed_folder(work: Path, beside: bool) -> None:
    text = Path(tiny.__file__).read_text().replace("    def model(", f"{VERSIONED}\n    def untold(", 1)
    (work / "task.py").write_text(text)
    torch.save({"version": 1, "model": Net().state_dict()}, work / "net.pt")
    options = OpenOptions(task="" if beside else str(work / "task.py"), trust_task=True)
    plain = open_path(work / "net.pt", options)
    assert plain.found.words == "load_model() of the task"
    relaxed = open_path(make_relaxed(work, options=options), options)
    stored = open_checkpoint(work / "net.pt").tensors
    for model in (plain.model, relaxed.model, relaxed.original()[0], relaxed.double(relaxed.original()[0])):
        assert torch.equal(model.state_dict()["second.weight"].float(), -stored["second.weight"])


AVERAGED = """
    def load_model(self, path: Path) -> nn.Module:
        content, model = torch.load(path, weights_only=True), Net()
        model.load_state_dict(content["averaged"])
        return model
"""


def test_a_second_copy_of_the_weights_that_the_loader_reads_is_noticed(work: Path) -> None:
    workspace = opened(work, lambda net: {"model": net.state_dict(), "averaged": net.state_dict()}, AVERAGED)
    with pytest.raises(CheckFailedError, match=r"outputs deviate .* times as much as allowed.*averaged"):
        exported(work, workspace)


class Cached(Net):
    """A module that keeps what it computed from its weights, and is pickled with it."""

    def __init__(self) -> None:
        super().__init__()
        self.sign = 1.0

    def forward(self, scalars: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return self.sign * super().forward(scalars, vectors)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "sign": -state["sign"]})  # type: ignore[no-untyped-call]


def test_a_pickled_module_that_changes_when_it_is_opened_is_refused(work: Path) -> None:
    def content(net: nn.Module) -> nn.Module:
        module = Cached()
        module.load_state_dict(net.state_dict())
        return module

    workspace = opened(work, content, trust=True)
    with pytest.raises(CheckFailedError, match="opened by unpickling the module, does not give the trained model back"):
        exported(work, workspace)
    assert not (work / "clean").exists()


class Migrating(nn.Module):
    """A layer whose own loading code flips tensors of files without a version."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 2:
            state[f"{prefix}weight"] = -state[f"{prefix}weight"]
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_loading_code_that_changes_values_is_refused_at_once(tmp_path: Path) -> None:
    from surgeon.opening.loading import load_into

    with pytest.raises(CheckpointError, match=r"Migrating changes the values of 1 \(weight\) tensors while it loads"):
        load_into(Migrating(), {"weight": torch.full((2,), 3.0)}, "old.pt")


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ("return 1 / 0", r"load_model\(\) of the task cannot open it \(TaskError: load_model\(\) of .*ZeroDivision"),
        ("return {}", "to return a torch.nn.Module, got dict"),
        ("return nn.Linear(2, 3)", "gives a model that fails with TypeError"),
        ("return Net().half()", "does not give the trained model back"),
    ],
)
def test_a_loader_that_fails_ends_in_a_sentence(work: Path, loader: str, words: str) -> None:
    method = (
        "\n    def load_model(self, path: Path) -> nn.Module:\n        if path.parent.name == 'work':\n"
        "            model = Net()\n            model.load_state_dict(torch.load(path, weights_only=True))\n"
        f"            return model\n        {loader}\n"
    )
    workspace = opened(work, lambda net: net.state_dict(), method)
    with pytest.raises(CheckFailedError, match=words):
        exported(work, workspace)
    assert not (work / "clean").exists()


CONVERTING = """
    def load_model(self, path: Path) -> nn.Module:
        model = Net()
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.double()
"""


def test_a_loader_that_converts_to_float64_is_accepted(work: Path) -> None:
    record = exported(work, opened(work, lambda net: net.state_dict(), CONVERTING))
    assert not record["bit_equal"]
    assert 0 < record["deviation"] <= 1


class FakeAdapter(registry.Adapter):
    """The loader of a library; None for files that are not its own."""

    def __init__(self, factor: float | None) -> None:
        self.factor = factor

    def reopen(self, path: Path) -> nn.Module | None:
        if self.factor is None:
            return None
        model, weights = Net(), torch.load(path, weights_only=True)
        model.load_state_dict({key: value * self.factor for key, value in weights.items()})
        return model

    def rebuild(self, tensors: Any) -> None:
        return None


@pytest.mark.parametrize("factor", [None, 1.0, -1.0])
def test_an_adapter_can_know_the_loader_of_its_library(
    work: Path, monkeypatch: pytest.MonkeyPatch, factor: float | None
) -> None:
    workspace = opened(work, lambda net: net.state_dict())
    adapters = {**registry.installed_adapters(), "fake": FakeAdapter(factor)}
    monkeypatch.setattr(reopening, "installed_adapters", lambda: adapters)
    if factor == -1:
        with pytest.raises(CheckFailedError, match="the loader of the adapter fake, does not give"):
            exported(work, workspace)
        return
    told = exported(work, workspace)["opened_by"]
    assert told == ("model() of the task" if factor is None else "the loader of the adapter fake")


def test_without_a_task_the_tensors_are_compared(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_relaxed(work, options=OpenOptions(factory="tests.tiny:make_net"))
    shutil.move(work / "task.py", work / "elsewhere.py")
    workspace = open_path(folder, OpenOptions(factory="tests.tiny:make_net"), mode="fold")
    assert workspace.task is None
    adapters = {"fake": FakeAdapter(-1.0)}
    with monkeypatch.context() as patch:
        patch.setattr(reopening, "installed_adapters", lambda: adapters)
        with pytest.raises(CheckFailedError, match="gives other weights"):
            exported(work, workspace)
    workspace = open_path(folder, OpenOptions(factory="tests.tiny:make_net"), mode="fold")
    record = exported(work, workspace)
    assert (record["opened_by"], record["batches"]) == ("the factory tests.tiny:make_net", 0)
