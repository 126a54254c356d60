"""Names under which users of the Hub's own libraries look for loading and saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.errors import CheckpointError, SurgeonError, UsageError
from surgeon.files.relaxed import read_relaxed
from surgeon.hub.pushing import push_to_hub
from tests import tiny
from tests.hub.folders import made
from tests.hub.server import Hub

__all__ = ["made"]

REPO = "alice/net"


def test_from_pretrained_gives_a_model_without_branches(logged_in: Hub, made: Path) -> None:
    push_to_hub(made / "run", REPO)
    net = tiny.Net()
    keys = list(net.state_dict())
    loaded = surgeon.from_pretrained(REPO, net)
    assert loaded is net
    assert list(loaded.state_dict()) == keys
    local = surgeon.from_pretrained(made / "run", tiny.make_net)
    stripped = read_relaxed(made / "run").base
    for model in (loaded, local):
        assert all(torch.equal(value, stripped[key]) for key, value in model.state_dict().items())
    folded = surgeon.from_pretrained(REPO, tiny.make_net, mode="fold")
    assert list(folded.state_dict()) == keys


def test_from_pretrained_takes_the_options_of_paths(logged_in: Hub, made: Path) -> None:
    push_to_hub(made / "run", REPO)
    with pytest.raises(SurgeonError, match="--model|factory"):
        surgeon.from_pretrained(REPO)
    options = surgeon.OpenOptions(factory="tests.tiny:make_net")
    loaded = surgeon.from_pretrained(REPO, options=options).state_dict()
    local = surgeon.from_pretrained(made / "run", options=options).state_dict()
    assert all(torch.equal(value, local[key]) for key, value in loaded.items())


def test_fold_is_not_drop(logged_in: Hub, made: Path, tmp_path: Path) -> None:
    opened = surgeon.open_path(made / "run")
    assert opened.relaxation is not None
    opened.relaxation.set_theta(0.5)
    surgeon.save_pretrained(opened, tmp_path / "half")
    assert read_relaxed(tmp_path / "half").config.theta == (0.5, 0.5)
    push_to_hub(tmp_path / "half", REPO)
    dropped, folded = (surgeon.from_hub(REPO, model=tiny.make_net, mode=mode).model for mode in ("drop", "fold"))
    assert not torch.equal(dropped.state_dict()["first.weight"], folded.state_dict()["first.weight"])
    again = surgeon.from_hub(REPO, model=tiny.make_net)
    assert again.relaxation is not None
    assert again.relaxation.theta == (0.5, 0.5)


def test_a_revision(logged_in: Hub, made: Path) -> None:
    first = push_to_hub(made / "relaxed", REPO).commit
    push_to_hub(made / "run", REPO)
    opened = surgeon.from_hub(REPO, model=tiny.make_net, revision=first)
    assert opened.files is not None
    assert opened.files.config.step == 0
    assert surgeon.from_hub(REPO, model="tests.tiny:make_net").files.config.step > 0  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="branch, a tag or a commit"):
        surgeon.from_hub(REPO, revision="../x")


def test_only_a_relaxed_model_is_saved(logged_in: Hub, made: Path, tmp_path: Path) -> None:
    push_to_hub(made / "run", REPO)
    with pytest.raises(CheckpointError, match="without branches"):
        surgeon.save_pretrained(surgeon.from_hub(REPO, model=tiny.make_net, mode="drop"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
