"""A task file that was found and not given runs only if the user of this machine allows it."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import sys
from pathlib import Path

import pytest
import torch

from surgeon.errors import TaskError, TrustError
from surgeon.files.seals import seal_folder
from surgeon.integrations.settings import RelaxationSettings, plan_of_step
from surgeon.opening import trust
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.trust import check_task, is_remembered, remember_task, state_folder
from tests.commands import Surgeon
from tests.opening.test_workspace import make_relaxed

RAN = "\nPath(__file__).with_name('RAN').touch()\n"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as it was downloaded: its ``task.py``, which leaves ``RAN`` behind, was never given here."""
    folder = Surgeon.folder(tmp_path, monkeypatch)
    (folder / "task.py").write_text((folder / "task.py").read_text() + RAN)
    return folder


@pytest.fixture
def surgeon(work: Path, capsys: pytest.CaptureFixture[str]) -> Surgeon:
    return Surgeon(work, capsys)


def ran(folder: Path) -> bool:
    found = (folder / "RAN").exists()
    (folder / "RAN").unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_task_beside_a_checkpoint_does_not_run_by_itself(surgeon: Surgeon, options: tuple[str, ...]) -> None:
    told = surgeon("inspect", "net.pt", *options, code=2).err
    assert "is code that was never given on this machine: check it and give it as `--task" in told
    assert not ran(surgeon.path)


def test_a_task_that_was_given_once_is_remembered_as_it_was_where_it_was(surgeon: Surgeon) -> None:
    surgeon("inspect", "net.pt", "--task", "task.py")
    assert ran(surgeon.path)
    surgeon("inspect", "net.pt")
    assert ran(surgeon.path)
    copy = shutil.copytree(surgeon.path, surgeon.path.parent / "copy")  # what it imports could be another there
    surgeon("inspect", str(copy / "net.pt"), code=2)
    assert not ran(copy)
    Path("task.py").write_text(Path("task.py").read_text() + "\n")
    surgeon("inspect", "net.pt", code=2)
    assert not ran(surgeon.path)


def test_a_task_that_a_folder_names_needs_the_same(work: Path) -> None:
    folder = make_relaxed(work, options=OpenOptions(task=str(work / "task.py")))
    assert ran(work)
    bundle = Path(shutil.copytree(work, work.parent / "bundle"))
    config = bundle / folder.name / "surgeon_config.json"
    data = json.loads(config.read_text())
    data["task"]["path"] = str(bundle / "task.py")  # a sibling, with its right hash
    config.write_text(json.dumps(data))
    seal_folder(config.parent)
    open_path(folder)
    assert ran(work)
    with pytest.raises(TrustError, match="the task file of .*bundle.* never given on this machine"):
        open_path(bundle / folder.name)
    assert not ran(bundle)
    open_path(bundle / folder.name, OpenOptions(trust_task=True))
    assert ran(bundle)
    open_path(bundle / folder.name)
    assert ran(bundle)


def test_the_source_runs_and_no_compiled_file_beside_it(surgeon: Surgeon) -> None:
    """What a user has read and given is the source; a stranger can put any code into ``__pycache__``."""
    source, harmless = Path("task.py"), Path("task.py").read_text().replace(RAN, "")
    py_compile.compile("task.py", invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    source.write_text(harmless)
    surgeon("inspect", "net.pt", "--task", "task.py")
    assert not ran(surgeon.path)


def test_a_link_to_a_given_file_is_not_that_file(surgeon: Surgeon) -> None:
    """What it imports would come from beside the link."""
    surgeon("inspect", "net.pt", "--task", "task.py")
    assert ran(surgeon.path)
    bundle = surgeon.path.parent / "bundle"
    bundle.mkdir()
    shutil.copy("net.pt", bundle)
    (bundle / "task.py").symlink_to(surgeon.path / "task.py")
    assert "never given on this machine" in surgeon("inspect", str(bundle / "net.pt"), code=2).err
    bundle.chmod(0o777)
    assert "everybody may write to its folder" in surgeon("inspect", str(bundle / "net.pt"), code=2).err
    assert not ran(surgeon.path)
    assert not ran(bundle)


def test_a_plan_that_names_code_as_its_group_imports_nothing(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(surgeon.path)
    code = "from pathlib import Path\nfrom surgeon.algebra.groups import parse_group\n" + RAN
    Path("somebodys.py").write_text(code + "def group():\n    return parse_group('SO3')\n")
    surgeon("inspect", "net.pt", "--task", "task.py", "--plan", "plan.json", "--group", "SO3")
    assert ran(surgeon.path)
    plan = json.loads(Path("plan.json").read_text())
    Path("plan.json").write_text(json.dumps({**plan, "group": "somebodys:group"}))
    Path("task.py").write_text(Path("task.py").read_text().replace(RAN, ""))
    given = ("relax", "net.pt", "--task", "task.py", "--plan", "plan.json", "--dry-run")
    for flags in ((), ("--group", "SO3")):
        told = surgeon(*given, *flags, code=2).err
        assert "names 'somebodys:group' as its group, which is code" in told
    with pytest.raises(TrustError, match="which is code"):
        plan_of_step(torch.nn.Linear(1, 1), RelaxationSettings(plan="plan.json"), lambda: None)
    assert not ran(surgeon.path)
    surgeon(*given, "--group", "somebodys:group")
    assert ran(surgeon.path)
    del sys.modules["somebodys"]


@pytest.mark.parametrize("answer", [False, True])
def test_the_user_is_asked_where_that_is_possible(work: Path, answer: bool) -> None:
    questions: list[str] = []

    def ask(question: str) -> bool:
        questions.append(question)
        assert not ran(work)
        return answer

    if answer:
        open_path(work / "net.pt", OpenOptions(ask=ask))
        assert ran(work)
        open_path(work / "net.pt", OpenOptions(ask=ask))
    else:
        with pytest.raises(TrustError):
            open_path(work / "net.pt", OpenOptions(ask=ask))
    assert ran(work) == answer
    assert len(questions) == 1
    assert str(work / "task.py") in questions[0]


@pytest.mark.parametrize("flag", ["--task", "--trust-task"])
@pytest.mark.parametrize(("place", "mode"), [("task.py", 0o666), (".", 0o777), (".", 0o1777)])
def test_what_others_may_write_runs_only_if_it_is_given(surgeon: Surgeon, place: str, mode: int, flag: str) -> None:
    surgeon("inspect", "net.pt", "--task", "task.py")
    assert ran(surgeon.path)
    (surgeon.path / place).chmod(mode)
    told = surgeon("inspect", "net.pt", *([] if flag == "--task" else [flag]), code=2).err
    assert "everybody may write" in told
    assert not ran(surgeon.path)
    surgeon("inspect", "net.pt", "--task", "task.py")
    assert ran(surgeon.path)


def test_a_task_that_changes_after_it_was_checked_does_not_run(work: Path) -> None:
    remember_task(work / "task.py")

    def change(_: str) -> None:
        with (work / "task.py").open("a") as file:
            file.write("\n")

    with pytest.raises(TaskError, match="has changed since it was checked, and was not run"):
        open_path(work / "net.pt", OpenOptions(announce=change))
    assert not ran(work)


def test_a_group_counts_unless_it_is_the_users_own(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember_task(work / "task.py")
    (work / "task.py").chmod(0o664)
    monkeypatch.setattr(trust, "_is_private", lambda group: False)
    with pytest.raises(TrustError, match="its group may write the file"):
        check_task(work / "task.py", "it", allowed=True)
    monkeypatch.setattr(trust, "_is_private", lambda group: True)
    check_task(work / "task.py", "it")


def test_files_of_other_users_are_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getuid()
    if own == 0:
        os.chown(work / "task.py", 12345, -1)
    else:
        monkeypatch.setattr("os.getuid", lambda: own + 1)
    with pytest.raises(TrustError, match="belongs to another user"):
        check_task(work / "task.py", "it", allowed=True)


def test_a_memory_that_others_may_write_does_not_count(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGEON_HOME", str(tmp_path / "state"))
    remember_task(work / "task.py")
    assert is_remembered(work / "task.py")
    (tmp_path / "state" / "tasks").chmod(0o777)
    assert not is_remembered(work / "task.py")


def test_where_it_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SURGEON_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "equisurgeon"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_folder() == Path.home() / ".local" / "state" / "equisurgeon"


def test_a_machine_that_cannot_remember_still_runs_what_is_given(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "file").touch()
    monkeypatch.setenv("SURGEON_HOME", str(work / "file"))
    open_path(work / "net.pt", OpenOptions(task="task.py"))
    assert ran(work)
    assert not is_remembered(work / "task.py")
