"""A report that is watched follows a run while it is written, and ends with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from surgeon.errors import CheckpointError, ExistsError, UsageError
from surgeon.files.seals import seal_folder
from surgeon.report import watch
from surgeon.report.watch import TRIES, watch_report
from surgeon.training.store import IDENTITY_FILE

pytest.importorskip("matplotlib", reason="matplotlib is not installed: the extra plots")

REFRESH = '<meta http-equiv="refresh"'


@pytest.fixture
def finished(made: Path) -> Path:
    return made / "net-run"


def as_after(epoch: int, finished: Path, run: Path) -> None:
    """Write a run folder as the save after an epoch left it."""
    if not run.exists():
        shutil.copytree(finished, run)
    path = run / "training_state" / "state.json"
    data = json.loads((finished / "training_state" / "state.json").read_text())
    state = data["state"]
    state["epoch"], state["best_epoch"] = epoch, min(epoch, state["best_epoch"])
    path.write_text(json.dumps(data))
    lines = (finished / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[: epoch + 1]))
    seal_folder(run)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens in the pauses between two looks, one after the other; after them a watcher is interrupted."""
    happens: list[Callable[[], None]] = []

    def sleep(seconds: float) -> None:
        if not happens:
            raise KeyboardInterrupt
        happens.pop(0)()

    monkeypatch.setattr(watch.time, "sleep", sleep)
    return happens


def test_the_page_follows_the_run_and_ends_with_it(
    finished: Path, tmp_path: Path, pauses: list[Callable[[], None]]
) -> None:
    run, target = tmp_path / "run", tmp_path / "page.html"
    pauses += [lambda epoch=epoch: as_after(epoch, finished, run) for epoch in (0, 1)]  # type: ignore[misc]
    pauses += [lambda: None, lambda: as_after(10, finished, run), lambda: pytest.fail("looked on after the end")]
    told = []
    for page in watch_report(run, target):
        told.append(" ".join(page.lead))
        assert (REFRESH in target.read_text()) == page.unfinished
    assert ["epoch 0 of 10" in told[0], "epoch 1 of 10" in told[1], "not finished" in told[2]] == [True, True, False]
    assert len(told) == 3
    assert [path.name for path in tmp_path.iterdir() if path != run] == ["page.html"]


def test_an_interruption_leaves_a_page_that_stays(
    finished: Path,
    tmp_path: Path,
    pauses: list[Callable[[], None]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from surgeon_cli.main import main

    monkeypatch.chdir(tmp_path)
    as_after(1, finished, Path("run"))
    with pytest.raises(SystemExit) as ended:
        main(["report", "run", "--watch"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "epoch 1 of 10" in shown
    assert "stopped watching" in shown
    assert "epoch 1 of 10" in Path("run-report.html").read_text()
    assert REFRESH not in Path("run-report.html").read_text()
    with pytest.raises(ExistsError):
        next(watch_report("run", "run-report.html"))


def test_a_save_in_progress_is_waited_for_and_a_damaged_run_is_not(
    finished: Path, tmp_path: Path, pauses: list[Callable[[], None]]
) -> None:
    run, target = tmp_path / "run", tmp_path / "page.html"
    as_after(1, finished, run)
    with (run / "records.jsonl").open("a") as file:  # as between two of the moves of a save
        file.write("{}\n")
    pauses += [lambda: None, lambda: as_after(10, finished, run)]
    (page,) = watch_report(run, target)
    assert not page.unfinished
    with (run / "records.jsonl").open("a") as file:
        file.write("{}\n")
    pauses += [lambda: None] * TRIES
    with pytest.raises(CheckpointError, match="not as it was written"):
        next(watch_report(run, tmp_path / "other.html"))
    assert len(pauses) == 1
    assert not (tmp_path / "other.html").exists()


def folders(root: Path) -> Iterator[tuple[Path, str]]:
    (root / "compare.runs").mkdir()
    (root / "compare.runs" / IDENTITY_FILE).write_text("{}")
    (root / "compare").mkdir()
    (root / "empty").mkdir()
    yield root / "compare.runs", "expected the record .*compare.json"
    yield root / "compare", "expected the record .*compare.json"
    yield root / "empty", "got a folder without their records"


def test_what_will_never_be_a_report_is_refused_at_once(tmp_path: Path, pauses: list[Callable[[], None]]) -> None:
    for path, words in folders(tmp_path):
        with pytest.raises(UsageError, match=words):
            next(watch_report(path, tmp_path / "page.html"))
