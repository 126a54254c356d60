"""The relaxed folder: written whole, read back equal, and refused when its files do not belong together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.algebra.representations.build import representation_from
from surgeon.algebra.schedule import Schedule
from surgeon.errors import CheckpointError, ExistsError, UsageError
from surgeon.files import relaxed
from surgeon.files.card import model_card
from surgeon.files.content import write_json
from surgeon.files.open_file import OpenFile
from surgeon.files.reading import keys_hash
from surgeon.files.relaxed import (
    RelaxedConfig,
    find_only_folder,
    is_relaxed_folder,
    read_relaxed,
    split_state,
    write_relaxed,
)
from surgeon.files.seals import check_seal
from surgeon.files.tensors import write_tensors
from surgeon.opening.loading import load_into
from surgeon.plan import Plan, Site

FILES = ["README.md", "model.safetensors", "relaxation.safetensors", "surgeon_config.json", "surgeon_seal.json"]


def branch(d_out: int, d_in: int) -> nn.Module:
    child = nn.Module()
    child.input = nn.Module()
    child.input.weight = nn.Parameter(torch.randn(d_out, d_in))
    return child


def network(relaxed: bool = True) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    if relaxed:
        for module, (d_out, d_in) in zip(model, [(4, 3), (2, 4)], strict=True):
            module._relaxation = branch(d_out, d_in)
    return model


def site(name: str, shape: tuple[int, int]) -> Site:
    return Site(
        name,
        "input",
        "linear",
        "test",
        *(representation_from("SO3", {"trivial": size}) for size in reversed(shape)),
        shape,
    )


def config() -> RelaxedConfig:
    return RelaxedConfig(
        plan=Plan("SO3", (site("0", (4, 3)), site("1", (2, 4)))),
        strip_mode="drop",
        schedule=Schedule("triangle", tail=0.02),
        penalty={"lambda": 0.01, "form": "gram", "scale": None},
        theta=(0.25, 0.5),
        step=7,
        base={
            "file": "base.pt",
            "repo": None,
            "revision": None,
            "sha256": "0" * 64,
            "entry": None,
            "keys_hash": keys_hash(network(relaxed=False).state_dict()),
            "container": "safetensors",
            "pickle": False,
        },
        model={"factory": "package:build", "args": {}},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_relaxed(tmp_path / "run", network(), config(), {"format": "pt", "note": "base"})
    return tmp_path / "run"


def edit(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "surgeon_config.json").read_text())
    write_json(folder / "surgeon_config.json", data | changes, force=True)


def test_a_folder_reads_back_equal(tmp_path: Path) -> None:
    model = network()
    write_relaxed(tmp_path / "run", model, config(), {"format": "pt", "note": "base"})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    files = read_relaxed(tmp_path / "run")
    assert files.config == config()
    assert files.base_metadata == {"format": "pt", "note": "base"}
    assert files.folder == tmp_path / "run"
    assert set(files.base) == set(network(relaxed=False).state_dict())
    state = model.state_dict()
    assert set(files.base) | set(files.branches) == set(state)
    assert all(torch.equal(state[key], value) for key, value in {**files.base, **files.branches}.items())


def test_the_base_file_loads_without_surgeon(folder: Path) -> None:
    from safetensors.torch import load_file

    plain = network(relaxed=False)
    plain.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    load_into(plain, read_relaxed(folder).base, "the folder")
    assert list(plain.state_dict()) == list(network(relaxed=False).state_dict())


@pytest.mark.parametrize("name", ["surgeon_config.json", "model.safetensors", "relaxation.safetensors"])
def test_the_seal_is_compared_with_what_was_read(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file that is right again when it is hashed was not when it was read."""
    right = folder / "right"
    (folder / name).rename(right)
    content = right.read_bytes()
    (folder / name).write_bytes(content + b" " if name.endswith(".json") else content[:-1] + bytes([content[-1] ^ 1]))

    def put_back(*given: Any) -> None:
        right.replace(folder / name)
        check_seal(*given)

    monkeypatch.setattr(relaxed, "check_seal", put_back)
    if name.endswith(".json"):  # then nobody has to wait for the hashes of the weights
        monkeypatch.setattr(OpenFile, "sha256", lambda _: pytest.fail("the weights were hashed"))
    with pytest.raises(CheckpointError, match=f"{name}' is not as it was written"):
        read_relaxed(folder)


def test_split_state_goes_by_whole_components() -> None:
    state = {
        "a._relaxation.x.weight": torch.ones(1),
        "_relaxation.x.weight": torch.ones(1),
        "a_relaxation.weight": torch.ones(1),
        "a._relaxations.weight": torch.ones(1),
    }
    base, branches = split_state(state)
    assert list(base) == ["a_relaxation.weight", "a._relaxations.weight"]
    assert list(branches) == ["a._relaxation.x.weight", "_relaxation.x.weight"]
    with pytest.raises(CheckpointError, match="the state a._extra_state is of type dict"):
        split_state({"a._extra_state": {}})


def test_a_branch_of_the_model_itself(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    base = dict(config().base) | {"keys_hash": keys_hash(model.state_dict())}
    settings = dataclasses.replace(config(), plan=Plan("SO3", (site("", (4, 3)),)), base=base)
    model._relaxation = branch(4, 3)
    write_relaxed(tmp_path / "run", model, settings, {})
    assert list(read_relaxed(tmp_path / "run").branches) == ["_relaxation.input.weight"]


def test_a_shared_module_goes_by_the_name_in_the_plan(tmp_path: Path) -> None:
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": shared})
    base = dict(config().base) | {"keys_hash": keys_hash(model.state_dict())}
    settings = dataclasses.replace(config(), plan=Plan("SO3", (site("a", (3, 3)),)), base=base)
    shared._relaxation = branch(3, 3)
    write_relaxed(tmp_path / "run", model, settings, {})
    files = read_relaxed(tmp_path / "run")
    assert list(files.branches) == ["a._relaxation.input.weight"]
    assert set(files.base) == {"a.weight", "a.bias", "b.weight", "b.bias"}


def test_another_model_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this is not the model that was relaxed"):
        write_relaxed(tmp_path / "run", network().double(), config(), {})
    model = network()
    del model[1]._relaxation
    with pytest.raises(CheckpointError, match="1 have none, first 1.input"):
        write_relaxed(tmp_path / "run", model, config(), {})
    model = network()
    model[0]._relaxation.other = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match="0._relaxation.other.weight .* belongs to no site"):
        write_relaxed(tmp_path / "run", model, config(), {})
    assert not any(tmp_path.iterdir())


def test_an_existing_folder_needs_force(folder: Path) -> None:
    with pytest.raises(ExistsError, match="--force"):
        write_relaxed(folder, network(), config(), {})
    write_relaxed(folder, network(), dataclasses.replace(config(), step=8), {}, force=True)
    assert read_relaxed(folder).config.step == 8


@pytest.mark.parametrize("name", FILES[1:-1])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {name}: it holds README.md"):
        read_relaxed(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_cut_file_is_noticed(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=name):
        read_relaxed(folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it holds nothing"):
        read_relaxed(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 3}, "of format version 1 or older, got version 3: update equisurgeon"),
        ({"format_version": "x"}, "format_version: Expected `int`, got `str`"),
        ({"extra": 1}, "extra: unknown"),
        ({"theta": [0.0]}, "theta: Expected `array` of length 2, got 1"),
        ({"step": "many"}, "step: Expected `int`, got `str`"),
        ({"strip_mode": "keep"}, "strip_mode: Invalid enum value 'keep'"),
        ({"plan": {"format_version": 3}}, "a plan in .* version 2 or older, got version 3: update equisurgeon"),
        ({"plan": {"format_version": 1}}, "plan: Object missing required field `group`"),
        ({"plan": 3}, "plan: Expected `object`, got `int`"),
        ({"penalty": {"lambda": 1.0}}, "penalty: Object missing required field `(form|scale)`"),
        ({"penalty": {"lambda": 1.0, "form": "gram", "scale": None, "more": 1}}, "penalty.more: unknown"),
        ({"base": None}, "base: Expected `object`, got `null`"),
        ({"task": {"path": "task.py"}}, "task: Object missing required field `(args|sha256)`"),
    ],
)
def test_a_bad_configuration_says_which_field(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=words):
        read_relaxed(folder)


def test_a_missing_field_is_named() -> None:
    data = config().to_data()
    del data["graph"]
    with pytest.raises(CheckpointError, match="graph: missing"):
        RelaxedConfig.from_data(data)
    with pytest.raises(CheckpointError, match="Expected `object`, got `array`"):
        RelaxedConfig.from_data([1])


def test_files_of_different_runs_are_noticed(folder: Path) -> None:
    files = read_relaxed(folder)
    write_tensors(
        folder / "relaxation.safetensors", {**files.branches, "9._relaxation.input.weight": torch.ones(1)}, force=True
    )
    with pytest.raises(
        CheckpointError, match="9._relaxation.input.weight .* belongs to no site of its plan, which has 0"
    ):
        read_relaxed(folder)
    write_tensors(folder / "relaxation.safetensors", {"0._relaxation.input.weight": torch.ones(4, 3)}, force=True)
    with pytest.raises(CheckpointError, match="expected a branch for each of the 2 sites"):
        read_relaxed(folder)
    write_tensors(folder / "model.safetensors", {**files.base, "more": torch.ones(1)}, force=True)
    with pytest.raises(CheckpointError, match="this is not the model that was relaxed"):
        read_relaxed(folder)


def test_the_configuration_survives_json() -> None:
    assert RelaxedConfig.from_data(json.loads(json.dumps(config().to_data()))) == config()


def test_the_only_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found none: name one"):
        find_only_folder(tmp_path)
    write_relaxed(tmp_path / "a-relaxed", network(), config(), {})
    (tmp_path / "other").mkdir()
    assert find_only_folder(tmp_path) == tmp_path / "a-relaxed"
    assert is_relaxed_folder(tmp_path / "a-relaxed")
    assert not is_relaxed_folder(tmp_path / "other")
    write_relaxed(tmp_path / "b-run", network(), config(), {})
    with pytest.raises(UsageError, match=r"found 2 \(a-relaxed, b-run\)"):
        find_only_folder(tmp_path)


def test_the_card_names_sites_and_no_path_of_the_machine(tmp_path: Path) -> None:
    base = dict(config().base) | {"file": str(tmp_path / "base.pt")}
    card = model_card(config().plan, base, (0.25, 0.5))
    assert "| base | `base.pt`, not on the Hub |" in card
    assert str(tmp_path) not in card
    assert "2 relaxation branches (20 parameters)" in card
    assert "| `1` | input | 2 x 4 |" in card
    remote = base | {"repo": "owner/name", "file": "net.safetensors", "revision": "a" * 40}
    assert f"(https://huggingface.co/owner/name), `net.safetensors` at `{'a' * 40}`" in model_card(
        config().plan, remote, (0.0, 0.0)
    )
