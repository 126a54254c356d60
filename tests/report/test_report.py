"""A report says what the records say, in one file that needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from surgeon.errors import CheckpointError, ExistsError, SurgeonError, UsageError
from surgeon.files.clean import sealed
from surgeon.files.seals import seal_folder
from surgeon.report.graph import GRAPH
from surgeon.report.page import NO_BREAK, with_code
from surgeon.report.pairs import PAIRS
from surgeon.report.run import THETA, VALIDATION
from surgeon.report.use import SHARE, SINGLE, SPECTRUM, USE, spectrum_part, use_part
from surgeon.report.write import write_report
from tests.report.pages import Seen

pytest.importorskip("matplotlib", reason="matplotlib is not installed: the extra plots")

KINDS = ("net-run", "net-compare.json", "net-clean")
HOSTILE = '</td><script>alert(1)</script> $x_{ `a` & "b" url(#c) \u0007\x1b]0;t\x9b\u202e'


def main(arguments: list[str]) -> None:
    from surgeon_cli.main import main as command

    command(arguments)


def report(path: Path) -> Seen:
    target = path.parent / "page.html"
    write_report(path, target, force=True)
    return Seen.read(target)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def changed(path: Path, change: Callable[[Any], None]) -> None:
    """Change a record as if it had been written so."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(sealed(data) if path.name == "certificate.json" else data))


def test_a_run_is_drawn_and_told_as_it_was_recorded(folder: Path) -> None:
    run, seen = folder / "net-run", report(folder / "net-run")
    steps, history = lines(run / "steps.jsonl"), lines(run / "records.jsonl")
    assert steps
    for name in ("loss", "penalty"):
        assert seen.column(THETA, name) == [entry[name] for entry in steps]
    assert seen.column(THETA, "θ") == [entry["theta"][0] for entry in steps]
    for name, key in (("clean", "validation"), ("relaxed", "validation_relaxed")):
        assert seen.column(VALIDATION, f"mse: {name}") == [entry[key]["mse"] for entry in history]
    (run / "steps.jsonl").write_text(json.dumps(steps[0]) + "\n")
    seal_folder(run)
    assert "Steps that were recorded: 1, too few for a figure." in report(run).text
    state = json.loads((run / "training_state" / "state.json").read_text())
    best = state["state"]["best_validation"]["mse"]
    (row,) = [row for row in seen.table("metric")[1:] if row[0] == "mse"]
    assert row[1:3] == [f"{history[0]['validation']['mse']:.6g}", f"{best:.6g}"]
    assert row[-1] == "better"
    assert "Worse than before: loss" not in seen.text
    state["state"]["best_epoch"] = 1
    history[1]["validation"]["loss"] = 2 * history[0]["validation"]["loss"]
    (run / "records.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    changed(run / "training_state" / "state.json", lambda data: data.update(state))
    seal_folder(run)
    assert "Worse than before: loss." in report(run).text
    sites = json.loads((run / "surgeon_config.json").read_text())["plan"]["sites"]
    assert len(seen.table("site")) == 1 + len(sites) > 1
    assert ["learning rate", "0.01"] in seen.table("setting")


def rewritten(run: Path, change: Callable[[Any], None]) -> None:
    """Change every epoch's record as if it had been written so."""
    history = lines(run / "records.jsonl")
    for entry in history:
        change(entry)
    (run / "records.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    seal_folder(run)


def test_what_the_branches_did_is_drawn_site_by_site(folder: Path) -> None:
    run = folder / "net-run"
    config, history = json.loads((run / "surgeon_config.json").read_text()), lines(run / "records.jsonl")
    keys = [f"{site['name']}.{site['argument']}" for site in config["plan"]["sites"]]
    seen = report(run)
    for number, key in enumerate(keys):
        for label, name in (("|Wx| / |f(x)|", "share"), ("Lie derivative / output", "lie")):
            assert seen.column(USE, f"{label}: {key}") == [entry["use"][name][number] for entry in history]
    assert all(value > 0 for entry in history[1:-1] for value in entry["use"]["lie"])
    assert history[-1]["theta"] == [0.0, 0.0]
    assert set(history[-1]["use"]["lie"]) == {0.0}
    largest = [max(entry["use"]["share"][number] for entry in history) for number in range(len(keys))]
    assert seen.column(GRAPH, "largest |Wx| / |f(x)|") == [None, *largest, None]
    assert all(f": {value:.2g}<" in seen.svg[GRAPH] for value in largest)
    fills = re.findall(r'fill="var\(--c0\)" fill-opacity="([0-9.]+)"', seen.svg[GRAPH])[2:]
    assert sorted(zip(largest, map(float, fills), strict=True)) == sorted(
        zip(sorted(largest), sorted(map(float, fills)), strict=True)
    )
    assert min(history[-1]["use"]["share"]) > 0


def test_of_many_sites_the_median_and_the_largest_are_named(folder: Path) -> None:
    evaluated = [{"epoch": 0, "use": {"share": [1.0, 2.0, None] * SINGLE, "lie": [None] * 3 * SINGLE}}]
    part = use_part(evaluated, [f"site {number}" for number in range(3 * SINGLE)])
    assert part.drawing is not None
    head, row = part.drawing.rows
    values = dict(zip(head, row, strict=True))
    assert [values[f"|Wx| / |f(x)|: {name}"] for name in ("site 1", "median", "largest")] == [2.0, 1.5, 2.0]
    assert values["Lie derivative / output: median"] is None
    assert ">median<" in part.drawing.svg
    assert ">site 1<" not in part.drawing.svg


def test_a_run_that_has_not_recorded_it_has_no_such_figure(folder: Path) -> None:
    rewritten(folder / "net-run", lambda entry: entry.pop("use"))
    assert USE not in [heading for _, heading in report(folder / "net-run").headings]


def test_what_is_in_the_branches_is_drawn_for_a_run_and_its_clean_weights(folder: Path) -> None:
    contents = lines(folder / "net-run" / "branches.jsonl")
    for name in ("net-run", "net-clean"):
        seen = report(folder / name)
        assert seen.column(SHARE, "W") == [content["equivariant"] for content in contents]
        assert seen.column(SHARE, "random W") == [content["random"] for content in contents]
    assert SPECTRUM in report(folder / "net-run").csv
    text = (folder / "net-run" / "branches.jsonl").read_text()
    (folder / "net-run" / "branches.jsonl").write_text(text + "\n")
    with pytest.raises(CheckpointError, match="is not as it was written"):
        report(folder / "net-run")
    (folder / "net-run" / "branches.jsonl").unlink()
    assert not {SHARE, SPECTRUM} & set(report(folder / "net-run").csv)


def test_singular_values_are_relative_to_the_largest_of_their_site() -> None:
    contents = [
        {"spectrum": {"0e -> 0e": [4.0, 2.0], "0e -> 1o": [1.0]}},
        {"spectrum": {"0e -> 0e": [1.0], "0e -> 1o": [10.0, 5.0]}},
        {"spectrum": {"0e -> 0e": [2.0, 0.0]}},
    ]
    drawing = spectrum_part(contents).drawing
    assert drawing is not None
    assert drawing.rows[0] == ["number", "relative singular value: 0e → 0e", "relative singular value: 0e → 1o"]
    assert drawing.rows[1:] == [[1, 1.0, 0.625], [2, 0.25, 0.5]]


def test_pairs_of_a_certificate_are_drawn_name_by_name(folder: Path) -> None:
    found = {"computed": [1.0, 2.5, -1.0], "label": [1.5, 2.0, -1.0]}
    pairs = {"original": {"force on H (eV/A)": found, "energy": found}, "stripped": {"energy": found}}
    changed(folder / "net-clean" / "certificate.json", lambda data: data["details"].update(pairs=pairs))
    seen = report(folder / "net-clean")
    assert seen.column(PAIRS, "label") == 3 * found["label"]
    assert seen.column(PAIRS, "computed") == 3 * found["computed"]
    names = [row[:2] for row in seen.csv[PAIRS][1::3]]
    assert names == [["force on H (eV/A)", "original"], ["energy", "original"], ["energy", "stripped"]]
    changed(
        folder / "net-run" / "figures.json", lambda data: data.update(pairs={"clean": {"energy": found}}, flow=None)
    )
    seal_folder(folder / "net-run")
    seen = report(folder / "net-run")
    assert seen.csv[PAIRS][1:] == [
        ["energy", "clean", str(x), str(y)] for x, y in zip(found["label"], found["computed"], strict=True)
    ]
    assert GRAPH not in seen.csv
    changed(folder / "net-clean" / "certificate.json", lambda data: data["details"].pop("pairs"))
    assert PAIRS not in report(folder / "net-clean").csv


def told_apart(row: Any) -> str:
    assert row["half_width"] > 0
    if abs(row["difference"]) <= row["half_width"]:
        return "not told apart"
    return "better" if row["difference"] < 0 else "worse"


def test_a_comparison_shows_means_paired_differences_and_what_the_command_says(folder: Path) -> None:
    data, seen = json.loads((folder / "net-compare.json").read_text()), report(folder / "net-compare.json")
    plain, drop = data["rows"]
    assert seen.column("Differences from plain", "difference") == [drop["difference"]]
    assert seen.column("Differences from plain", "half width of the 95 % interval") == [drop["half_width"]]
    test = {(run["arm"], run["seed"]): run["test"]["mse"] for run in data["runs"]}
    for seed in (0, 1):
        paired = test["drop", seed] - test["plain", seed]
        assert seen.column("Differences from plain", f"value {seed + 1}") == [paired]
    assert seen.column("Results by arm", "mean") == [plain["mean"], drop["mean"]]
    for run in data["runs"]:
        name = f"mse: {run['arm']}, seed {run['seed']}"
        assert seen.column("Validation over the training", name) == [value for _, value in run["curve"]]
    assert f"drop {told_apart(drop)}" in seen.text.partition("Arms")[0]
    assert len(data["sentences"]) == 2
    assert all(sentence in seen.text for sentence in data["sentences"])
    assert [row[5] for row in seen.table("arm", "learning rate")[1:]] == ["", told_apart(drop).replace(" ", NO_BREAK)]


@pytest.mark.parametrize(
    ("direction", "difference", "word"),
    [("min", -1.0, "better"), ("min", 1.0, "worse"), ("max", -1.0, "worse"), ("max", 1.0, "better")],
)
def test_a_comparison_says_first_which_arm_is_better(
    folder: Path, direction: str, difference: float, word: str
) -> None:
    def decide(data: Any) -> None:
        data["rows"][1].update(difference=difference, half_width=0.1)
        data["judging"].update(direction=direction)

    changed(folder / "net-compare.json", decide)
    assert f"drop {word} than plain" in report(folder / "net-compare.json").text.partition("Arms")[0]


def test_a_certificate_shows_its_verdict_errors_and_checks(folder: Path) -> None:
    data = json.loads((folder / "net-clean" / "certificate.json").read_text())
    seen = report(folder / "net-clean")
    assert "same function: the recorded graph is the original's" in seen.text
    errors = data["equivariance"]
    rows = [row[0].split(", ") for row in seen.csv["Equivariance errors"][1:]]
    for model in errors:
        expected = [errors[model].get(d, {}).get(c, {}).get("maximum") for c, d in rows]
        assert seen.column("Equivariance errors", model) == expected
    allowed = seen.column("Equivariance errors", "allowed")
    assert allowed == [1e-10 if dtype == "float64" else None for _, dtype in rows]
    assert [row[0] for row in seen.table("check")[1:]] == list(data["checks"])
    assert seen.bad == []
    assert "no other file was opened" in seen.text


def test_what_got_worse_is_marked_and_what_was_not_looked_at_is_said(folder: Path) -> None:
    place = folder / "net-clean" / "certificate.json"

    def change(data: Any) -> None:
        data["metrics"]["stripped"]["mse"] = 2 * data["metrics"]["original"]["mse"]
        data["details"]["judging"]["units"] = {"mse": "meV"}
        data["checks"].pop("as equivariant as the original")
        data["equivariance"] = {}

    changed(place, change)
    seen = report(folder / "net-clean")
    (row,) = [row for row in seen.table("metric")[1:] if row[0] == "mse (meV)"]
    assert row[-2:] == [f"+100.0{NO_BREAK}%", "worse"]
    assert len(seen.bad) == 1
    assert "Worse than before: mse (meV)." in seen.text
    assert "They were not measured." in seen.text
    assert "Equivariance was not compared with the original's." in seen.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_needs_nothing_else_and_is_the_same_again(folder: Path, kind: str) -> None:
    seen, again = report(folder / kind), report(folder / kind)
    assert seen.source == again.source
    assert not re.search(r"https?:|//[a-z]|@import|\bsrc=", seen.source)
    assert not {"script", "link", "img", "iframe", "base"} & set(seen.tags)
    assert [tag for tag, _ in seen.headings] == ["h1", *["h2"] * (len(seen.headings) - 1)]
    ids = [value for _, name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', seen.source)
    assert used
    assert set(used) <= set(ids)
    assert len(seen.csv) == seen.tags.count("figure") == seen.tags.count("svg") > 0
    assert all(seen.values("svg", "aria-label"))
    assert seen.svg.keys() == seen.csv.keys()
    for drawn in seen.svg.values():
        root = ElementTree.fromstring(drawn)
        shown = set(re.findall(r"var\((--\w+)\)", drawn))
        assert shown
        assert all(f"{name}:#" in root.attrib["style"] for name in shown)  # a file has no page around it


@pytest.mark.parametrize("kind", KINDS)
def test_figures_take_their_colours_from_the_page(folder: Path, kind: str) -> None:
    seen = report(folder / kind)
    figures = "".join(re.findall("<svg.*?</svg>", seen.source, re.DOTALL))
    assert re.findall(": #[0-9a-f]{6}", figures) == []
    assert {"currentColor", "var(--c0)"} <= set(re.findall(r"currentColor|var\(--\w+\)", figures))
    defined = re.findall(r"(--\w+):", seen.source)
    assert all(defined.count(name) == 2 for name in re.findall(r"var\((--\w+)\)", seen.source))  # light and dark


def test_names_from_records_are_text_and_nothing_else(folder: Path) -> None:
    def renamed(values: dict[str, Any] | None, name: str = HOSTILE) -> None:
        if values:
            values[name] = values.pop("mse")

    def change(data: Any) -> None:
        renamed(data["metrics"]["original"])
        renamed(data["metrics"]["stripped"])
        data["details"]["judging"]["metric"] = data["details"]["original"]["file"] = HOSTILE

    def change_comparison(data: Any) -> None:
        data["metric"] = data["judging"]["metric"] = data["rows"][1]["arm"] = HOSTILE
        for run in data["runs"]:
            renamed(run["test"], HOSTILE)
            run["arm"] = HOSTILE if run["arm"] == "drop" else run["arm"]

    def change_run(data: Any) -> None:
        data["judging"] = {"metric": HOSTILE, "direction": "min", "units": {HOSTILE: HOSTILE}}
        data["state"]["stopped"] = HOSTILE

    run = folder / "net-run"
    history = lines(run / "records.jsonl")
    for entry in history:
        renamed(entry["validation"])
        renamed(entry["validation_relaxed"])
    (run / "records.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    changed(run / "training_state" / "state.json", change_run)
    seal_folder(run)
    changed(folder / "net-compare.json", change_comparison)
    changed(folder / "net-clean" / "certificate.json", change)
    for kind in KINDS:
        seen = report(folder / kind)
        assert "script" not in seen.tags
        assert '</td><script>alert(1)</script> $x_{ a & "b" url(#c)' in seen.text
        assert seen.tags.count("svg") > 0
        assert all(letter.isprintable() or letter in "\n\u00a0" for letter in unquote(seen.source))


def bad_inputs(folder: Path) -> list[tuple[Path, str]]:
    """Return paths that are no records, each with what is said of it."""
    damaged = folder / "damaged"
    (damaged / "clean").mkdir(parents=True)
    shutil.copytree(folder / "net-run", damaged / "run")
    with (damaged / "run" / "records.jsonl").open("a") as file:
        file.write("{}\n")
    shutil.copytree(folder / "net-run", damaged / "odd")
    (damaged / "odd" / "records.jsonl").write_text("{}\n")
    seal_folder(damaged / "odd")
    (damaged / "other.json").write_text('{"rows": []}')
    text = (folder / "net-clean" / "certificate.json").read_text()
    (damaged / "clean" / "certificate.json").write_text(text.replace('"grade": "same', '"grade": "same ', 1))
    (damaged / "edited").mkdir()
    (damaged / "edited" / "certificate.json").write_text(text.replace("torch.float32", "torch.float64"))
    return [
        (folder / "net-relaxed", "expected a run folder"),
        (folder / "net.pt", "got a file at"),
        (folder / "gone", "got nothing at"),
        (damaged / "run", "is not as it was written"),
        (damaged / "odd", "are damaged or of another version"),
        (damaged / "other.json", "expected what `surgeon finetune --compare` wrote"),
        (damaged / "clean", "expected a certificate"),
        (damaged / "edited", "its own sha256 is another"),
    ]


def test_anything_else_is_refused_in_one_sentence_and_nothing_is_written(folder: Path) -> None:
    for path, words in bad_inputs(folder):
        with pytest.raises(SurgeonError, match=re.escape(words)) as refused:
            write_report(path, folder / "page.html")
        assert refused.value.exit_code == 2
        assert "\n" not in str(refused.value)
    assert not (folder / "page.html").exists()


def test_a_report_is_not_replaced_unasked(folder: Path) -> None:
    (folder / "page.html").write_text("mine")
    with pytest.raises(ExistsError, match="--force"):
        write_report(folder / "net-run", folder / "page.html")
    assert (folder / "page.html").read_text() == "mine"


def test_without_matplotlib_the_remedy_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'equisurgeon\[plots\]'"):
        write_report(folder / "net-run", folder / "page.html")
    assert not (folder / "page.html").exists()


def test_a_comparison_without_finished_runs_is_refused(folder: Path) -> None:
    changed(folder / "net-compare.json", lambda data: data.update(rows=[], runs=[]))
    with pytest.raises(CheckpointError, match="expected finished runs"):
        report(folder / "net-compare.json")


def test_the_command_names_its_page_after_the_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(["report", "net-clean"])
    assert ended.value.code == 0
    assert "wrote net-clean-report.html" in capsys.readouterr().out
    assert Seen.read(folder / "net-clean-report.html").headings[0][1] == "Clean weights net-clean"


def test_the_template_is_part_of_the_wheel() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    root = Path(__file__).parents[2]
    included = {file.distribution_path for file in wheel.WheelBuilder(str(root)).recurse_included_files()}
    assert "surgeon/report/page.html" in included


def test_lines_of_a_command_end_between_words() -> None:
    told = "say <code><span>a</span> <span>--x</span> <span>&lt;b&gt;</span></code>"
    assert with_code("say `a --x <b>`") == told
