"""``surgeon`` without a command says what to do next with what lies in the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from surgeon_cli.main import main


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    main_exit = pytest.raises(SystemExit)
    with main_exit as ended:
        main([])
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(name: str, time: int) -> None:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path, (time, time))
    if path.parent != Path():
        os.utime(path.parent, (time, time))


def test_every_kind_gets_its_own_step_the_newest_first(capsys: pytest.CaptureFixture[str]) -> None:
    put("my net.pt", 1)
    put("net-relaxed/surgeon_config.json", 2)
    put("net-run/surgeon_config.json", 3)
    put("net-run/records.jsonl", 3)
    put("net-clean/certificate.json", 4)
    for name in ("notes.txt", "other/file.txt", ".hidden.pt", "bad\x1b[31m.pt"):
        put(name, 5)
    assert told(capsys) == [
        "net-clean is clean: surgeon verify net-clean",
        "net-run was trained: surgeon strip net-run",
        "net-relaxed was relaxed: surgeon finetune net-relaxed",
        "'my net.pt' may be a checkpoint: surgeon inspect 'my net.pt'",
        "surgeon --help lists the commands",
    ]
    put("task.py", 6)
    assert "'my net.pt' may be a checkpoint: surgeon inspect 'my net.pt' --task task.py" in told(capsys)


def test_a_folder_with_nothing_of_ours_gets_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    put("notes.txt", 1)
    assert any("Usage: surgeon" in line for line in told(capsys))


def test_many_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        put(f"{number}.safetensors", number)
    lines = told(capsys)
    assert (lines[0], lines[7], lines[8]) == (
        "11.safetensors may be a checkpoint: surgeon inspect 11.safetensors",
        "4.safetensors may be a checkpoint: surgeon inspect 4.safetensors",
        "and 4 more",
    )
