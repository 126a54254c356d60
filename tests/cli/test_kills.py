"""Commands that are killed at any moment, and two that write one output: real commands in processes of their own."""

from __future__ import annotations

import hashlib
import json
import platform
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from surgeon.files.relaxed import read_relaxed
from tests.cli.sweeps import Done
from tests.commands import Surgeon, files_in
from tests.processes import forked

pytestmark = pytest.mark.slow

TRAIN = ("finetune", "net-relaxed", "--epochs", "1", "--lr", "1e-2")
STRIP = ("strip", "--metrics", "none", "--elements", "1", "--batches", "1")
WEIGHTS = "net-clean/model.safetensors"


def swept(work: Path, command: Sequence[str], *afterwards: Sequence[str]) -> list[list[Done]]:
    """Kill a command before each of its calls, the last time never; return how it and those afterwards ended."""
    done = forked(work, json.dumps(["killed", command, afterwards]), program="tests.cli.sweeps")
    assert done.returncode == 0, done.stderr
    found = [[Done(**part) for part in parts] for parts in json.loads((work.parent / "found.json").read_text())]
    codes = [parts[0].code for parts in found]
    assert codes == [-signal.SIGKILL] * (len(found) - 1) + [0]
    for part in (part for _, *parts in found for part in parts if part.code):
        assert part.code == 2, part
        assert part.err.splitlines()[-1].startswith("error: expected "), part
    return found


def hidden(done: Done) -> list[str]:
    return [name for name in done.files if "surgeon-" in name]


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["new", "replaced"])
def test_a_killed_relax_leaves_nothing_or_a_folder_that_can_be_trained(
    surgeon: Surgeon, force: tuple[str, ...]
) -> None:
    if force:
        surgeon("relax", "net.pt", "--strip-mode", "fold")
    train = ("finetune", "--epochs", "1", "-o", "run")
    found = swept(surgeon.path, ("relax", "net.pt", *force), train, ("relax", "net.pt", "--force"))
    assert {trained.code for _, trained, _ in found} == ({0} if force else {0, 2})
    assert [again.code for *_, again in found] == [0] * len(found)
    assert not [hidden(again) for *_, again in found if hidden(again)]


def test_after_a_killed_training_nothing_untrained_is_stripped_and_the_same_command_goes_on(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*STRIP, "net-relaxed")
    untrained = files_in(surgeon.path)[WEIGHTS]
    found = swept(surgeon.path, TRAIN, (*STRIP, "--force"), TRAIN)
    *killed, (whole, stripped, _) = found
    assert stripped.files[WEIGHTS] != untrained
    assert {part.code for _, part, _ in found} == {0, 2}
    assert {part.files[WEIGHTS] for _, part, _ in found if part.code == 0} == {stripped.files[WEIGHTS]}
    owners = 0
    for command, _, again in killed:
        assert again.code == 0, again
        owner = f"process {command.pid} on {platform.node()}"
        owned = command.files.get(".net-run.surgeon-lock") == hashlib.sha256(owner.encode()).hexdigest()
        assert owned == (f"taking over net-run from {owner}, which was killed" in again.err)
        owners += owned
        for name in ("model.safetensors", "relaxation.safetensors", "training_state/state.safetensors"):
            assert again.files[f"net-run/{name}"] == whole.files[f"net-run/{name}"]
        assert not hidden(again)
    assert owners > len(killed) / 2


def test_a_killed_strip_leaves_clean_weights_that_can_be_verified(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*TRAIN)
    surgeon(*STRIP, "net-relaxed")
    found = swept(
        surgeon.path, (*STRIP, "--force"), ("verify", "net-clean", "--against", "net.pt"), (*STRIP, "--force")
    )
    assert [part.code for parts in found for part in parts[1:]] == [0] * 2 * len(found)
    assert len({verified.files[WEIGHTS] for _, verified, _ in found}) == 2
    assert {again.files[WEIGHTS] for *_, again in found} == {found[-1][0].files[WEIGHTS]}
    assert not [hidden(again) for *_, again in found if hidden(again)]


def met(work: Path, second: Sequence[str], place: str, first: Sequence[str]) -> tuple[Done, int, str]:
    """Run a second command when the first one calls a function; return how both ended."""
    done = forked(work, json.dumps(["meeting", second, place, first]), program="tests.cli.sweeps")
    return Done(**json.loads((work.parent / "second.json").read_text())), done.returncode, done.stderr


COMPARE = ("finetune", "net-relaxed", "--epochs", "1", "--seeds", "1", "--compare", "plain")


@pytest.mark.parametrize(
    ("command", "place", "name"),
    [
        (TRAIN, "surgeon.training.finetune:save_run", "net-run"),
        (COMPARE, "surgeon.training.compare:run_arms", "net-compare.runs"),
    ],
    ids=["run", "comparison"],
)
def test_of_two_trainings_of_one_folder_the_second_is_refused(
    surgeon: Surgeon, command: Sequence[str], place: str, name: str
) -> None:
    surgeon.once("relax", "net.pt")
    second, code, told = met(surgeon.path, command, place, command)
    assert (second.code, code) == (2, 0), (second, told)
    (sentence,) = second.err.splitlines()
    assert f"{name}' is being written by process " in sentence
    assert f" on {platform.node()}: wait until it has ended" in sentence
    written = files_in(surgeon.path)
    assert not [path for path in written if "surgeon-" in path]
    if command == TRAIN:
        surgeon(*command, "-o", "alone")
        assert written["net-run/model.safetensors"] == files_in(surgeon.path)["alone/model.safetensors"]


def test_of_two_that_relax_into_one_folder_one_is_refused(surgeon: Surgeon) -> None:
    command = ("relax", "net.pt", "--strip-mode")
    second, code, told = met(surgeon.path, (*command, "fold"), "surgeon.files.atomic:_swap_in", (*command, "drop"))
    assert (second.code, code) == (2, 0), (second, told)
    assert "net-relaxed' is being written by process " in second.err
    assert read_relaxed(Path("net-relaxed")).config.strip_mode == "drop"
    assert not [name for name in files_in(surgeon.path) if "surgeon-" in name]
