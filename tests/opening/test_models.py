"""The ways in which the model of a checkpoint is found, their order, and whom they trust."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError, ModelNotFoundError, TaskError, TrustError, UsageError
from surgeon.files.address import HubPath
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.content import write_json
from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import write_tensors
from surgeon.opening.models import DEPLOYED, find_model
from surgeon.opening.options import OpenOptions
from surgeon.opening.tasks import load_task
from surgeon.opening.trust import remember_task
from surgeon.registry import Adapter

FACTORY = """
from pathlib import Path
import torch
Path(__file__).with_name("{name}.was-imported").touch()
def build(width=3):
    return torch.nn.Linear(width, 2)
def number():
    return 3
value = 4
"""
TASK = """
import torch
class T:
    def batches(self, split, seed): return [1]
    def loss(self, outputs, batch): return outputs
    {model}
task = T()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def factory(folder: Path, name: str) -> str:
    """Write a module and return its factory; each test has a name of its own, since imports last."""
    (folder / f"{name}.py").write_text(FACTORY.format(name=name))
    return f"{name}:build"


def was_imported(folder: Path, name: str) -> bool:
    return (folder / f"{name}.was-imported").exists()


def checkpoint(folder: Path, width: int = 3, metadata: Mapping[str, str] | None = None) -> Checkpoint:
    write_tensors(folder / "a.safetensors", nn.Linear(width, 2).state_dict(), metadata, force=True)
    return open_checkpoint(folder / "a.safetensors")


def task_file(
    folder: Path, model: str = "def model(self): return torch.nn.Linear(3, 2)", name: str = "task.py"
) -> Path:
    (folder / name).write_text(TASK.format(model=model))
    remember_task(folder / name)
    return folder / name


def same(left: Any, right: Any) -> bool:
    return set(left) == set(right) and all(torch.equal(left[key], right[key]) for key in left)


def register(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    points = EntryPoints([EntryPoint("some", value, "surgeon.models")])
    monkeypatch.setattr("surgeon.opening.allowance.entry_points", points.select)


def test_1_a_factory_of_the_user(here: Path) -> None:
    name = factory(here, "user_factory_a")
    found = find_model(checkpoint(here, 5), OpenOptions(factory=name, factory_arguments={"width": 5}))
    assert found.factory == {"factory": "user_factory_a:build", "args": {"width": 5}}
    assert same(found.model.state_dict(), checkpoint_tensors(here))
    assert "user_factory_a" in found.source
    json.dumps(found.factory)


def checkpoint_tensors(folder: Path) -> Mapping[str, Tensor]:
    return open_checkpoint(folder / "a.safetensors").tensors


def test_1_the_model_of_the_task(here: Path) -> None:
    task = load_task(task_file(here, name="mine.py"))
    found = find_model(checkpoint(here), task=task)
    assert found.factory == {"task": str(here / "mine.py"), "args": {}}
    assert same(found.model.state_dict(), checkpoint_tensors(here))
    assert found.task is task


def test_a_rebuilt_model_is_another_object_with_the_same_weights(here: Path) -> None:
    found = find_model(checkpoint(here), OpenOptions(factory=factory(here, "user_factory_b")))
    again = found.rebuild()
    assert again is not found.model
    assert same(again.state_dict(), found.model.state_dict())
    with torch.no_grad():
        found.model.weight.add_(1)  # type: ignore[operator]
    assert not same(again.state_dict(), found.model.state_dict())


@pytest.mark.parametrize(
    ("spec", "arguments", "words"),
    [
        ("user_factory_c", {}, "as `module:function`"),
        ("no_such_module_z:build", {}, "there is no module 'no_such_module_z'"),
        ("user_factory_c:biuld", {}, "it has build"),
        ("user_factory_c:value", {}, "to be a function or class, got int"),
        ("user_factory_c:number", {}, "to return a torch.nn.Module, got int"),
        ("user_factory_c:build", {"depth": 1}, "it accepts width=3"),
        (None, {"width": 3}, "need a factory: add `--model"),
    ],
)
def test_a_bad_factory_of_the_user(here: Path, spec: str | None, arguments: dict[str, Any], words: str) -> None:
    factory(here, "user_factory_c")
    with pytest.raises(UsageError, match=words):
        find_model(checkpoint(here), OpenOptions(factory=spec, factory_arguments=arguments))


def test_weights_that_do_not_fit_are_an_error_and_not_the_next_way(here: Path) -> None:
    task_file(here)
    with pytest.raises(CheckpointError, match=r"weight is \(2, 3\) in the file and \(2, 4\) in the model"):
        find_model(
            checkpoint(here), OpenOptions(factory=factory(here, "user_factory_d"), factory_arguments={"width": 4})
        )


def test_2_metadata_of_a_registered_package(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    statement = {"factory": factory(here, "stated_factory_a"), "args": {"width": 4}}
    register(monkeypatch, "stated_factory_a:build")
    found = find_model(checkpoint(here, 4, {"surgeon.model": json.dumps(statement)}))
    assert found.factory == statement
    assert same(found.model.state_dict(), checkpoint_tensors(here))


def test_2_a_registered_factory_never_comes_from_the_current_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = {"factory": factory(here, "stated_factory_b")}
    register(monkeypatch, "stated_factory_b:build")
    with pytest.raises(CheckpointError, match="there is no module 'stated_factory_b'"):
        find_model(checkpoint(here, 3, {"surgeon.model": json.dumps(statement)}))
    assert not was_imported(here, "stated_factory_b")


def test_2_an_unregistered_factory_is_imported_only_with_trust(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    register(monkeypatch, "stated_factory_c:other")
    statement = {"factory": factory(here, "stated_factory_c")}
    stated = checkpoint(here, 3, {"surgeon.model": json.dumps(statement)})
    with pytest.raises(TrustError, match="'stated_factory_c:build'.*--trust-remote-code"):
        find_model(stated)
    assert not was_imported(here, "stated_factory_c")
    assert isinstance(find_model(stated, OpenOptions(trust_remote_code=True)).model, nn.Linear)
    assert was_imported(here, "stated_factory_c")


@pytest.mark.parametrize("settings", [{"width": 10**15}, {"layers": 10**9}])
def test_2_settings_of_a_network_far_larger_than_the_file_allocate_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int]
) -> None:
    monkeypatch.syspath_prepend(str(here))
    (here / "large_factory.py").write_text(
        "import torch\n\n\ndef build(width=2, layers=1):\n"
        "    for made in range(layers):\n        assert made < 100\n        layer = torch.nn.Linear(3, width)\n"
        "    return layer\n"
    )
    register(monkeypatch, "large_factory:build")
    statement = {"factory": "large_factory:build", "args": settings}
    with pytest.raises(CheckpointError, match="about the 8 numbers in the file, but large_factory:build makes far"):
        find_model(checkpoint(here, 3, {"surgeon.model": json.dumps(statement)}))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("torch.nn.DataParallel(torch.nn.Linear(3, 2))", ""),
        ("torch.compile(torch.nn.Linear(3, 2))", ""),
        ("[net for net in [torch.nn.Linear(3, 2)] if net.compile() is None][0]", ""),
        ("torch.nn.Sequential(torch.nn.Linear(3, 2))", "return its '0', the network inside it"),
        ("torch.nn.Linear(3, 2, device='meta')", "built a network whose 'weight' is on the meta device"),
    ],
    ids=["DataParallel", "compiled", "compiled in place", "another wrapper", "meta"],
)
def test_a_network_in_a_wrapper_or_without_values(here: Path, model: str, words: str) -> None:
    task_file(here, f"def model(self): return {model}")
    if words:
        with pytest.raises(CheckpointError, match=words):
            find_model(checkpoint(here))
    else:
        found = find_model(checkpoint(here)).model
        assert type(found) is nn.Linear
        assert found._compiled_call_impl is None


def test_2_a_sidecar_has_the_same_rule(here: Path) -> None:
    write_json(here / "a.safetensors.model.json", {"factory": factory(here, "stated_factory_d"), "args": {}})
    with pytest.raises(TrustError, match="a.safetensors.model.json names the factory"):
        find_model(checkpoint(here))
    assert not was_imported(here, "stated_factory_d")
    found = find_model(checkpoint(here), OpenOptions(trust_remote_code=True))
    assert found.factory == {"factory": "stated_factory_d:build", "args": {}}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"factory": 3}', '{"factory": "a:b", "args": []}', '{"factory": "a:b", "x": 1}']
)
def test_2_a_malformed_statement(here: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match="in the metadata of a.safetensors"):
        find_model(checkpoint(here, 3, {"surgeon.model": text}), OpenOptions(trust_remote_code=True))


def recognise_linear(tensors: Mapping[str, Tensor]) -> nn.Module | None:
    if set(tensors) != {"weight", "bias"}:
        return None
    return nn.Linear(tensors["weight"].shape[1], tensors["weight"].shape[0])


class Building(Adapter):
    """An adapter that builds a network of tensors as a function says."""

    def __init__(self, function: Callable[[Mapping[str, Tensor]], nn.Module | None]) -> None:
        self.rebuild = function  # type: ignore[method-assign]


LINEAR = Building(recognise_linear)


def test_3_adapters_that_recognise_keys_and_shapes(here: Path) -> None:
    found = find_model(checkpoint(here, 7), adapters=[Building(lambda tensors: None), LINEAR])
    assert found.factory is None
    assert found.source.endswith("test_models.Building")
    assert same(found.model.state_dict(), checkpoint_tensors(here))
    assert found.rebuild() is not found.model


def test_a_whole_module_is_its_own_model(here: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(3, 2)).eval(), here / "a.model")
    opened = open_checkpoint(here / "a.model", trust_pickle=True)
    found = find_model(opened, adapters=[Building(lambda tensors: nn.Linear(1, 1))])
    assert isinstance(found.model, nn.Sequential)
    assert found.model is not opened.module
    assert not found.model.training
    assert same(found.model.state_dict(), opened.tensors)
    assert "a.model" in found.source


def test_4_a_task_beside_the_checkpoint_is_announced_before_it_runs(here: Path) -> None:
    path = task_file(here, "def model(self): return torch.nn.Linear(3, 2)\n    open('ran', 'w').close()")
    seen: list[tuple[str, bool]] = []
    found = find_model(
        checkpoint(here), OpenOptions(announce=lambda place: seen.append((place, (here / "ran").exists())))
    )
    assert seen == [(str(path), False)]
    assert (here / "ran").exists()
    assert found.task is not None
    assert found.task.path == path
    assert found.factory == {"task": str(path), "args": {}}


@pytest.mark.parametrize("remote", ["flag", "cache"])
def test_4_a_task_from_elsewhere_is_never_run(here: Path, remote: str) -> None:
    folder = here / "models--owner--name" / "snapshots" / "abc" if remote == "cache" else here
    folder.mkdir(parents=True, exist_ok=True)
    task_file(folder, "open('ran', 'w').close()")
    opened = checkpoint(folder)
    with pytest.raises(ModelNotFoundError):
        find_model(dataclasses.replace(opened, origin=HubPath("owner/name")) if remote == "flag" else opened)
    assert not (here / "ran").exists()


def test_4_a_task_without_model(here: Path) -> None:
    task_file(here, "")
    with pytest.raises(ModelNotFoundError):
        find_model(checkpoint(here))


def test_a_task_whose_model_is_none(here: Path) -> None:
    path = task_file(here, "def model(self): return 3", "mine.py")
    with pytest.raises(TaskError, match="to return a torch.nn.Module, got int"):
        find_model(checkpoint(here), task=load_task(path))
    path = task_file(here, "model = 3", "mine.py")
    with pytest.raises(TaskError, match="to be a method, got int"):
        find_model(checkpoint(here), task=load_task(path))


def test_the_first_way_that_applies_wins(here: Path) -> None:
    statement = {"factory": factory(here, "stated_factory_e"), "args": {}}
    stated = checkpoint(here, 3, {"surgeon.model": json.dumps(statement)})
    task_file(here)
    user = factory(here, "user_factory_e")
    mine = load_task(task_file(here, name="mine.py"))
    trusting = OpenOptions(trust_remote_code=True)
    given = dataclasses.replace(trusting, factory=user)
    assert "user_factory_e" in find_model(stated, given, mine, [LINEAR]).source
    assert "mine.py" in find_model(stated, trusting, mine, [LINEAR]).source
    assert "stated_factory_e" in find_model(stated, trusting, None, [LINEAR]).source
    assert "task.py" in find_model(checkpoint(here), adapters=[LINEAR]).source
    without = load_task(task_file(here, "", name="without_model.py"))
    assert "Building" in find_model(checkpoint(here), task=without, adapters=[LINEAR]).source
    assert "task.py" in find_model(checkpoint(here), task=without).source


def test_nothing_found_lists_the_ways_and_the_keys(here: Path) -> None:
    write_tensors(here / "b.safetensors", {f"k{i:02d}": torch.ones(1) for i in range(12)})
    with pytest.raises(ModelNotFoundError) as caught:
        find_model(open_checkpoint(here / "b.safetensors"))
    text = str(caught.value)
    for words in ("--task", "--model", "surgeon.model", "CKPT.model.json", "adapter", "task.py", "12 keys"):
        assert words in text
    assert "k09" in text
    assert "k10" not in text


def test_a_prefix_can_be_the_models_own(here: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(3, 2)

    model = Wrapper()
    torch.save(model.state_dict(), here / "a.pt")
    opened = open_checkpoint(here / "a.pt")
    assert opened.prefix == "module."
    assert same(
        find_model(opened, adapters=[Building(lambda tensors: Wrapper())]).model.state_dict(), model.state_dict()
    )
    assert isinstance(find_model(opened, adapters=[LINEAR]).model, nn.Linear)


def test_the_mode_of_the_factory_is_kept(here: Path) -> None:
    assert find_model(checkpoint(here), adapters=[LINEAR]).model.training
    assert not find_model(checkpoint(here), adapters=[Building(lambda tensors: nn.Linear(3, 2).eval())]).model.training


class Describing(Adapter):
    """An adapter that knows linear layers as whole modules."""

    def describe(self, module: nn.Module) -> dict[str, Any] | None:
        if not isinstance(module, nn.Linear):
            return None
        sizes = {"in_features": module.in_features, "out_features": module.out_features}
        return {"factory": "torch.nn:Linear", "args": sizes}


def test_a_whole_module_is_described_as_plain_data(here: Path) -> None:
    torch.save(nn.Linear(3, 2).double(), here / "whole.pt")
    opened = open_checkpoint(here / "whole.pt", trust_pickle=True)
    found = find_model(opened, adapters=[Describing()])
    assert found.factory == {"factory": "torch.nn:Linear", "args": {"in_features": 3, "out_features": 2}}
    assert found.model is not opened.module
    assert same(found.model.state_dict(), opened.tensors)
    doubled = {key: 2 * value for key, value in opened.tensors.items()}
    assert same(found.rebuild(dataclasses.replace(opened, tensors=doubled)).state_dict(), doubled)
    assert same(found.rebuild().state_dict(), opened.tensors)


def test_a_module_that_no_adapter_describes_is_its_own_model(here: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(3, 2)), here / "whole.pt")
    found = find_model(open_checkpoint(here / "whole.pt", trust_pickle=True), adapters=[Describing()])
    assert found.factory is None
    assert "module inside" in found.source


class Recognising(Adapter):
    """An adapter that knows the weights of linear layers, but not what to build of them."""

    def recognise(self, tensors: Mapping[str, Tensor]) -> str | None:
        return "these are the weights of a line: give its file" if "weight" in tensors else None


def test_weights_that_are_only_recognised_are_named(here: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match="does not say how to build its model: these are the weights of a line"
    ):
        find_model(checkpoint(here), adapters=[Recognising()])
    assert find_model(checkpoint(here), adapters=[Recognising(), LINEAR]).factory is None
    torch.save({"other": torch.zeros(2)}, here / "other.pt")
    with pytest.raises(ModelNotFoundError, match="nothing says how to build the model"):
        find_model(open_checkpoint(here / "other.pt"), adapters=[Recognising()])


def test_a_deployed_model_is_trained_and_frozen_parts_stay_frozen(here: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).requires_grad_(False)
    torch.save(model, here / "deployed.pt")
    found = find_model(open_checkpoint(here / "deployed.pt", trust_pickle=True), adapters=[])
    assert found.notes == (DEPLOYED,)
    for opened in (found.model, found.rebuild()):
        assert all(parameter.requires_grad for parameter in opened.parameters())
    # the negative twin: somebody froze only a part
    model[1].requires_grad_(True)
    torch.save(model, here / "mixed.pt")
    found = find_model(open_checkpoint(here / "mixed.pt", trust_pickle=True), adapters=[])
    assert found.notes == ()
    assert [parameter.requires_grad for parameter in found.model.parameters()] == [False, False, True, True]


class Unable(Adapter):
    """An adapter whose plain data fails."""

    def describe(self, module: nn.Module) -> dict[str, Any]:
        return {"note": "its settings are lost"}


def test_a_module_that_cannot_be_described_is_used_as_it_is_with_a_note(here: Path) -> None:
    torch.save(nn.Linear(3, 2), here / "whole.pt")
    found = find_model(open_checkpoint(here / "whole.pt", trust_pickle=True), adapters=[Unable()])
    assert (found.source, found.factory) == ("the module inside whole.pt", None)
    assert found.notes[0].endswith("with --trust-pickle in every command: its settings are lost")


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_model_that_holds_the_files_weights_in_another_form_is_refused(here: Path, share: float) -> None:
    """As from a loader that puts old weights into another order; none of the file's weights, or all, are no reason."""
    stored = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    torch.save(stored.state_dict(), here / "a.pt")

    def build() -> nn.Module:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
        with torch.no_grad():
            for index, layer in enumerate(model):
                if share == 0 or (share == 0.25 and index == 2):
                    continue
                layer.load_state_dict(stored[index].state_dict())
        return model

    opened, options = open_checkpoint(here / "a.pt"), OpenOptions(build=build)
    if share == 0.25:
        with pytest.raises(CheckpointError, match=r"holds the weights of .* 2 tensors of them .*first 2\.weight"):
            find_model(opened, options)
    else:
        assert same(find_model(opened, options).model.state_dict(), stored.state_dict())
