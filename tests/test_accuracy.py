"""The page on accuracy says what the lines of finished runs give, and nothing else."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.algebra.equivariance import relative_difference
from surgeon.training.arms import Contender
from surgeon.training.settings import FinetuneSettings

FOLDER = Path(__file__).parents[1] / "benchmarks" / "accuracy"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.delitem(sys.modules, "lines", raising=False)
    return importlib.import_module("report")


@pytest.fixture
def runner(report: Any) -> Any:
    return importlib.import_module("runner")


def line(arm: str, rate: float, seed: int, error: float, epochs: int = 5, test: bool = True) -> dict[str, Any]:
    """Return a run with the same error on validation and test frames."""
    unmeasured = {"certificate": None, "equivariance": None, "curve": []}
    own = {"arm": arm, "seed": seed, "learning_rate": rate}
    metrics = {"force_mae": error, "energy_mae": 2.0}
    found = {"validation": metrics, "test": metrics if test else {}, "best_epoch": 1, "steps": 20 * epochs}
    return {
        "context": {"library": "mace", "molecule": "ethanol", "batch": 5, "settings": {"epochs": epochs}},
        "point": {**own, "test": test},
        "outcome": {**own, **found, "seconds": 1.0, "sites": [], **unmeasured},
        "cpu_seconds": 2.0 * epochs,
        "commit": "abc",
        "versions": {"torch": "2"},
        "machine": {"cores": 2, "threads": 1},
    }


def written(folder: Path, lines: list[dict[str, Any]]) -> Path:
    (folder / "table_a.small.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return folder


SWEEP = [
    *(line("plain@adamw+beta2=0.9", rate, 0, error, test=False) for rate, error in ((1e-2, 30.0), (3e-2, 28.0))),
    *(line("plain@adamw+beta2=0.999", rate, 0, error, test=False) for rate, error in ((1e-2, 25.0), (3e-2, 29.0))),
    *(line("plain@soap", rate, 0, error, test=False) for rate, error in ((1e-2, 24.0), (3e-2, 20.0))),
]
FINAL = [
    *(line("plain@adamw+beta2=0.999", 1e-2, seed, error) for seed, error in ((1, 20.0), (2, 30.0), (6, 25.0))),
    *(line("plain@soap", 3e-2, seed, error) for seed, error in ((1, 16.0), (2, 27.0), (6, 20.0))),
    line("plain@soap", 1e-2, 2, 24.0),
    line("plain@soap", 3e-2, 1, 19.0, epochs=4),
    {
        **{name: SWEEP[0][name] for name in ("context", "commit", "versions", "machine")},
        "step_seconds": {"plain@soap": 0.081, "plain@adamw+beta2=0.999": 0.072},
    },
]


def test_the_page_says_what_the_lines_give(report: Any, tmp_path: Path) -> None:
    pages = [path.read_text(encoding="utf-8") for path in report.PAGES]
    assert [report.written_anew(page) for page in pages] == pages
    for path in report.RESULTS.glob("*.jsonl"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert [report.written_anew(page, tmp_path) for page in pages] == pages
    path = tmp_path / "table_a.medium.jsonl"
    changed = [json.loads(each) for each in path.read_text(encoding="utf-8").splitlines()]
    run = next(each["outcome"] for each in changed if each.get("outcome", {}).get("test"))
    run["test"] = {name: 1.1 * value for name, value in run["test"].items()}
    path.write_text("".join(json.dumps(each) + "\n" for each in changed), encoding="utf-8")
    assert all(report.written_anew(page, tmp_path) != page for page in pages[:2])


def test_others_are_compared_with_the_best_adamw_paired_by_seed(report: Any, tmp_path: Path) -> None:
    told = report.text(report.KINDS[0], written(tmp_path, [*SWEEP, *FINAL]))
    assert "6 combinations" in told
    cells = {row.split(" | ")[0].removeprefix("| "): row.split(" | ") for row in told.splitlines() if row[:1] == "|"}
    assert cells["plain@adamw+beta2=0.999"][1:5] == ["0.01", "2", "25.0 ± 7.1", ""]
    assert cells["plain@soap"][1:4] == ["0.03", "2", "21.5 ± 7.8"]
    assert cells["plain@soap"][6].startswith("81 ms")
    # -20 % and -10 %; Student's t for 1 degree of freedom, from a printed table: 12.706 * 7.071 / sqrt(2)
    assert cells["plain@soap"][4] == "-15.0 ± 63.5 %, p = 0.205"
    assert cells["plain@soap, fresh seeds"][2:5] == ["1", "20.0", "-20.0 %"]
    assert cells["plain@soap at 0.01"][1:5] == ["0.01", "1", "24.0", "-20.0 %"]
    assert cells["plain@soap, 80 steps"][4] == "-5.0 %"
    assert cells["plain@soap, 80 steps"][6].startswith("90 % of its time")
    assert "plain@adamw+beta2=0.9" not in cells
    (_, (lines, *_)), *_ = report.comparisons(report.KINDS[0], tmp_path)
    assert report.verdicts.found_in(lines, report.FORCES) == {"plain@soap": "untold"}
    assert "| potentials, fine-tuned (table A) | `plain@soap` | 1 |  |  |  | 1 |  |" in report.together(tmp_path)
    drop = [line("drop@soap", 3e-2, seed, error, test=seed > 0) for seed, error in ((0, 21.0), (1, 17.0), (2, 28.5))]
    (_, (lines, *_)), *_ = report.comparisons(report.KINDS[0], written(tmp_path, [*SWEEP, *FINAL, *drop]))
    assert report.verdicts.found_in(lines, report.FORCES) == {"plain@soap": "untold", "drop@soap": "worse"}
    # +6.25 % and +5.56 %; 12.706 * 0.491 / sqrt(2)
    assert "Beside plain@soap, drop@soap is at +5.9 ± 4.4 %." in report.text(report.KINDS[0], tmp_path)
    assert "Not finished" not in told
    assert "Not finished" in report.text(report.KINDS[0], written(tmp_path, [*SWEEP, *FINAL[:7]]))
    assert report.chosen({}, report.FORCES) == {}
    again = [line("plain@soap", rate, 11, error, test=False) for rate, error in ((1e-2, 24.0), (3e-2, 30.0))]
    lines = report.Lines(written(tmp_path, [*SWEEP, *again]) / "table_a.small.jsonl", SWEEP[0]["context"])
    assert report.chosen(lines, report.FORCES)["plain@soap"] == (1e-2, 24.0)  # 24 and 24, not 20 and 30
    assert "6 combinations" in report.text(report.KINDS[0], tmp_path)
    assert "2 seeds" in report.text(report.KINDS[0], tmp_path)


@pytest.mark.parametrize("sign", [1, -1], ids=["error", "accuracy"])
def test_a_gain_is_claimed_only_if_fresh_seeds_show_it_again(report: Any, sign: int) -> None:
    findings = importlib.import_module("findings")
    measure = report.FORCES if sign == 1 else report.CLASSES
    better, worse, unclear = ((-6.0, -5.0, -5.5), (5.0, 6.0, 5.5), (-6.0, 5.0, 0.1))
    estimates = {
        name: findings.Estimate.of([sign * value for value in values])
        for name, values in zip("bwu", (better, worse, unclear), strict=True)
    }
    said = {
        pair: findings.verdict("soap", *(estimates.get(name) for name in pair), measure)
        for pair in ("bb", "bu", "bw", "b-", "w-", "u-")
    }
    assert "fresh ones confirm it" in said["bb"]
    assert all("no gain is claimed" in said[pair] for pair in ("bu", "bw", "b-"))
    assert "is worse" in said["w-"]
    assert "cannot be told" in said["u-"]
    assert measure.difference(0.6, 0.5) == pytest.approx(20.0 if sign == 1 else 10.0)


@pytest.mark.parametrize(("soap", "both", "by_soap"), [(20.0, False, True), (30.0, False, False), (30.0, True, True)])
def test_branches_are_trained_by_tuned_adamw_and_by_the_best_optimiser(
    runner: Any, report: Any, soap: float, both: bool, by_soap: bool
) -> None:
    best = {"plain@adamw+beta2=0.9": (0.1, 26.0), "plain@adamw+beta2=0.95": (0.1, 25.0)}
    best |= {"plain@soap": (0.1, soap), "plain@muon": (0.1, 40.0)}
    branches = ("drop", "drop+branch_factor=1")
    protocol = runner.Protocol(report.FORCES, (0.1,), ("plain@soap", "plain@muon"), branches, both)
    arms = protocol.with_branches(best)
    assert set(arms) == {
        *("drop@adamw+beta2=0.95", "drop@adamw+beta2=0.95+branch_factor=1"),
        *(("drop@soap", "drop@soap+branch_factor=1") if by_soap else ()),
    }
    assert {Contender.parse(arm).settings(FinetuneSettings()).branch_factor for arm in arms} == {0.1, 1.0}


def test_fewer_frames_are_a_comparison_of_their_own(report: Any, tmp_path: Path) -> None:
    ten = {
        "frames": 10,
        "settings": {"epochs": 5, "clip": report.CLIPS["mace"]},
    }  # clipped, as the short table wants it
    mine = [{**each, "context": {**each["context"], **ten}} for each in [*SWEEP, *FINAL]]
    titles = [title for title, _ in report.comparisons(report.KINDS[0], written(tmp_path, [*SWEEP, *FINAL, *mine]))]
    assert [" 10 frames, 100 steps" in title for title in titles] == [False, True]
    assert "10 training frames in batches of 5" in report.text(report.KINDS[0], written(tmp_path, mine))
    assert "ethanol" not in report.in_short(tmp_path)
    rmd17, frame = importlib.import_module("rmd17"), "2\nenergy={}\nC 0 0 0\nO 0 0 1\n"
    for split in ("train", "valid", "test"):
        (tmp_path / f"co_{split}.xyz").write_text("".join(frame.format(n) for n in range(3)))
    target = tmp_path / "fewer"
    target.mkdir()
    paths = rmd17.write_frames(tmp_path, "co", target, 2)
    assert paths["train"].read_text() == frame.format(0) + frame.format(1)
    assert paths["test"].read_text().count("energy") == 3
    with pytest.raises(SystemExit, match="expected 4 training frames of co, got 3"):
        rmd17.write_frames(tmp_path, "co", target, 4)


def test_old_runs_without_times_do_not_hinder_later_arms(
    report: Any, runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the reference took 4 s in its lines and 2 s now, one of soap 3 s now: 6 s."""
    runs = [*SWEEP, *FINAL[:-1], {**line("drop@soap", 3e-2, 1, 17.0), "seconds_per_step": 7.0}]
    adamw = "plain@adamw+beta2=0.999"
    runs += [{**line(adamw, 1e-2, 3, 20.0), "seconds_per_step": 4.0}]
    lines = report.Lines(written(tmp_path, runs) / "table_a.small.jsonl", SWEEP[0]["context"])
    monkeypatch.setattr(runner, "step_seconds", lambda comparison, arms: {adamw: 2.0, "plain@soap": 3.0})
    costs = runner._costs(None, lines, (adamw, "plain@soap", "drop@soap"), adamw)
    assert costs == {adamw: 4.0, "plain@soap": 6.0, "drop@soap": 7.0}


def test_steps_are_timed_without_what_lies_between_epochs(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, seconds = importlib.import_module("lines"), iter((0.0, 1.0, 3.0, 10.0, 13.0))
    monkeypatch.setattr(lines.time, "process_time", lambda: next(seconds))
    clock = lines.StepClock()
    assert clock.mean is None
    for step, epoch in enumerate((1, 1, 1, 2, 2), 1):
        clock.step(lines.StepEvent(step, 5, epoch, None, 0.0, None, {}, {}))
    assert clock.mean == 2.0  # of 1, 2 and 3 s, not the 7 in which it was evaluated


def test_a_target_is_reached_at_the_first_evaluation_as_good_as_the_last_of_adamw(report: Any) -> None:
    found = importlib.import_module("time_to_target")

    def runs(*curves: tuple[float, ...]) -> dict[int, Any]:
        empty = {"validation": {}, "test": {}, "best_epoch": 1, "steps": 30, "seconds": 1.0, "sites": ()}
        steps = (0, 10, 20, 30)
        return {
            seed: report.ArmRun("plain", seed, 0.1, **empty, curve=tuple(zip(steps, curve, strict=True)))
            for seed, curve in enumerate(curves)
        }

    adamw, mine = runs((9.0, 8.0, 4.0, 5.0), (9.0, 8.0, 7.0, 6.0)), runs((9.0, 5.0, 6.0, 3.0), (9.0, 8.0, 7.0, 6.5))
    assert found.steps_to_target(mine, adamw, report.FORCES) == [(10.0, 20.0), (float("inf"), 30.0)]
    assert found.steps_to_target(mine, adamw, report.CLASSES) == [(0.0, 0.0), (0.0, 0.0)]


def test_other_networks_stand_beside_the_one_of_a_comparison(report: Any, tmp_path: Path) -> None:
    beside = {report.BESIDE: {"network": "convolutions", "weights": [1234, 56]}}
    context = {"variant": "scale", "data": "", "layers": 3, "steps": 1, "inputs": 2, "batch": 8, "held_out": "2_2"}
    lines = []
    for errors, more in (((0.2, 0.3), {}), ((0.1, 0.24), beside)):
        for seed, error in enumerate((0.5, *errors)):
            run = line("plain@adamw+beta2=0.9", 1e-2, seed, error, test=seed > 0)
            run["context"] = {**context, **more, "settings": {"epochs": 5}}
            metrics = {"rmse": error, "domain rmse": 2 * error}
            run["outcome"] |= {"validation": metrics, "test": metrics if seed else {}}
            lines.append(run)
    (tmp_path / "table_e.small.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    told = report.networks(report.KINDS[4], tmp_path).splitlines()
    assert told[0].startswith("Approximately equivariant convolutions, 3 layers, scale")
    assert told[4] == "| as above, plain@adamw+beta2=0.9 | 0.01 | 2 | 250.0 ± 70.7 |  | 500.0 | 56 |"
    # -50 % and -20 %; 12.706 * 21.213 / sqrt(2)
    assert told[5].startswith("| convolutions, plain@adamw+beta2=0.9 | 0.01 | 2 | 170.0 ± 99.0 | -35.0 ± 190.6 %, p = ")
    assert "convolutions" not in report.text(report.KINDS[4], tmp_path).partition("\n")[2]
    assert report.networks(report.KINDS[2], tmp_path) == "Not run yet."


def test_networks_of_fields_have_the_symmetry_that_they_are_named_after(report: Any) -> None:
    fields = importlib.import_module("smoke_networks")
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 9)

    def turned(fields: torch.Tensor) -> torch.Tensor:
        found = torch.rot90(fields, -1, (-2, -1)).unflatten(1, (-1, 2))
        return torch.stack([-found[:, :, 1], found[:, :, 0]], 2).flatten(1, 2)

    def error(network: Any) -> float:
        return relative_difference(network(turned(x)), turned(network(x)))

    exact, free = fields.equivariant("rotation", 2, 2, 2), fields.Convolutions("rotation", 2, 2, 2)
    between = fields.ResidualPathways("rotation", 2, 2, 2, strength=0.5)
    assert error(exact) < 1e-5 < 0.1 < error(free)
    assert sum(weight.requires_grad for weight in exact.parameters()) == 3  # two banks of filters and a bias
    (0 * between(x)).sum().backward()
    assert all(torch.equal(weight.grad, 0.5 * weight) for weight in between.free.parameters())
    for weight in between.free.parameters():
        torch.nn.init.zeros_(weight)
    assert error(between) < 1e-5


def test_networks_of_clouds_see_them_turned(report: Any) -> None:
    clouds = importlib.import_module("cloud_networks")
    torch.manual_seed(0)
    points, rotation = torch.randn(3, 3, 24), torch.linalg.qr(torch.randn(3, 3)).Q
    network = clouds.Canonical(clouds.PointNet(4, 3)).eval()
    rotation = rotation * torch.det(rotation)
    torch.testing.assert_close(network(rotation @ points), network(points), atol=1e-5, rtol=0)
    assert not torch.allclose(network.network(rotation @ points), network.network(points), atol=1e-3)
    tuned = clouds.EquiTuned(lambda seen: seen)
    one, two = tuned(points), tuned(points)
    assert not torch.allclose(one, two, atol=1e-2)
    assert torch.equal(tuned.eval()(points), tuned(points))
    assert not torch.allclose(tuned(points), points, atol=1e-2)


def test_a_table_without_final_runs_says_so(report: Any, tmp_path: Path) -> None:
    assert "not finished" in report.text(report.KINDS[0], written(tmp_path, SWEEP))
    assert report.text(report.KINDS[1], tmp_path) == "Not run yet."


def test_the_rates_on_the_page_of_settings_are_those_of_the_sweeps() -> None:
    root = FOLDER.parents[1]
    page, found = (root / "docs/settings.md").read_text("utf-8"), []
    for example in ("potential", "nbody"):
        sweep = json.loads((root / f"examples/{example}/sweep.json").read_text("utf-8"))["sweep"]
        for arm, best in list(sweep["best"].items())[:3]:
            tried = sorted({run["learning_rate"] for run in sweep["runs"] if run["arm"] == arm} | {*sweep["grid"]})
            found.append(f"`{arm}` | {tried[0]:g} to {tried[-1]:g} | {best:g} |")
    assert [row for row in found if row not in page] == []
