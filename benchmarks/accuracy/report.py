"""Write the tables of ``docs/accuracy.md``, ``docs/theory.md`` and ``README.md`` from the lines of runs, or check them.

python benchmarks/accuracy/report.py
python benchmarks/accuracy/report.py --check
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import time_to_target
import verdicts
from defaults import CLIPS, DEFAULTS, MUON, SOAP
from findings import Measure, against, chosen, tested, tuned, tuned_adamw
from lines import BESIDE, RESULTS, Lines, read_lines
from measures import CLASSES, FIELDS, FORCES, MOLECULES, POSITIONS
from tables import Runs, grid_of, groups, in_words, networks_table, table

from surgeon.training.outcomes import ArmRun

PAGES = tuple(Path(__file__).parents[2] / name for name in ("docs/accuracy.md", "README.md", "docs/theory.md"))
NAMES = {"mace": "small MACE", "sevennet": "7net-0"}
MODELS = {"mace": "MACE, 3,808 weights, trained on two other molecules", "sevennet": "7net-0, as published"}


@dataclass(frozen=True)
class Kind:
    """One of the tables.

    Attributes:
        name: of its files, and in its marks.
        measure: what decides.
        title: of a comparison, given its context; the number of steps follows.
        data: a sentence about its data.
    """

    name: str
    measure: Measure
    title: Callable[[Mapping[str, Any]], str]
    data: Callable[[Mapping[str, Any]], str]


def _frames(context: Mapping[str, Any]) -> str:
    clip = context["settings"].get("clip")
    clipped = f"; gradients clipped at {clip:g}" if clip else ""
    batches = f"{context.get('frames', 100)} training frames in batches of {context['batch']}"
    return f"{batches}, 50 validation and 1,000 test frames{clipped}."


def _fine_tuned(context: Mapping[str, Any]) -> str:
    fewer = f", {context['frames']} frames" if "frames" in context else ""
    return f"{MODELS[context['library']]} → rMD17 {context['molecule']}{fewer}"


def _particles(context: Mapping[str, Any]) -> str:
    start = "the shipped checkpoint, fine-tuned" if context["start"] == "shipped" else "from scratch"
    return f"SEGNN of {context['layers']} layers with {context['hidden']}, {start}, {context['samples']} trajectories"


def _trajectories(context: Mapping[str, Any]) -> str:
    held_out = context["held_out"]
    return (
        f"Interaction strength {1 if context['start'] == 'scratch' else 2}; batches of {context['batch']}, "
        f"{held_out['validation']:,} validation and {held_out['test']:,} test trajectories."
    )


def _network(context: Mapping[str, Any]) -> str:
    network = {"pointnet": "VN-PointNet", "dgcnn": "VN-DGCNN"}[context["network"]]
    data = "ModelNet40" if "files" in context else f"{len(context['shapes'])} shapes of {context['points']} points"
    return f"{network} of width {context['base']} on {data}"


def _clouds(context: Mapping[str, Any]) -> str:
    if "files" in context:
        return f"{' and '.join(context['files'])}, {context['points']} points, batches of {context['batch']}."
    return (
        f"{', '.join(context['shapes'])}; {context['count']:,} training clouds in batches of {context['batch']}, "
        f"{context['validation']:,} validation and {context['test']:,} test clouds."
    )


def _molecule(context: Mapping[str, Any]) -> str:
    return f"Equiformer, {'as published' if context['published'] else 'small'}, on rMD17 {context['molecule']}"


def _smoke(context: Mapping[str, Any]) -> str:
    layers, data = context["layers"], context["data"] or "the shipped fields"
    return f"Approximately equivariant convolutions, {layers} layers, {context['variant']}, on {data}"


def _windows(context: Mapping[str, Any]) -> str:
    frames = f"{context['steps']} frame{'s' if context['steps'] > 1 else ''} from {context['inputs']}"
    return f"{frames}; batches of {context['batch']}; the test domain is experiment {context['held_out']}."


KINDS = (
    Kind("table A", FORCES, _fine_tuned, _frames),
    Kind("table B", POSITIONS, _particles, _trajectories),
    Kind("table C", CLASSES, _network, _clouds),
    Kind("table D", MOLECULES, _molecule, _frames),
    Kind("table E", FIELDS, _smoke, _windows),
)


def comparisons(kind: Kind, results: Path, beside: bool = False) -> Iterator[tuple[str, list[Lines]]]:
    """Yield title and lines of all comparisons of a table, those with most steps first; or of the networks beside."""
    name = kind.name.replace(" ", "_").lower()
    for path in sorted(results.glob(f"{name}.*.jsonl")):
        for found in groups(path):
            if (BESIDE in found[0].context) != beside:
                continue
            steps = max(run.steps for run in found[0].values() if isinstance(run, ArmRun))
            yield f"{kind.title(found[0].context)}, {steps} steps", found


def text(kind: Kind, results: Path = RESULTS) -> str:
    """Return everything between the markers of a table."""
    parts = []
    for title, (first, *others) in comparisons(kind, results):
        mine = [line for line in read_lines(first.path) if line["context"] == first.context]
        made = ", ".join(dict.fromkeys(f"`{line['commit']}`" for line in mine))
        machine, torch = mine[-1]["machine"], mine[-1]["versions"]["torch"]
        parts += [
            f"### {title}",
            "",
            kind.data(first.context),
            "",
            *table(first, others, kind.measure),
            "",
            f"Commit {made}; {machine['cores']} cores, {machine['threads']} thread; torch {torch}.",
            "",
        ]
    return "\n".join(parts).rstrip() or "Not run yet."


def in_short(results: Path = RESULTS) -> str:
    """Return a row for each model and molecule, clipped as its task prefers: the longest runs that are there."""
    heading = [
        "model, 100 frames of",
        "steps",
        "AdamW, tuned: meV/Å",
        "SOAP, tuned",
        "with fresh seeds",
        "`surgeon finetune` as it is",
        "Muon, tuned",
    ]
    rows: dict[str, list[str]] = {}
    for _, (lines, *_) in comparisons(KINDS[0], results):
        best = chosen(lines, FORCES)
        adamw = tuned_adamw(best, FORCES)
        reference = tested(lines, adamw, best[adamw][0], False)
        if not reference:
            continue
        steps = next(iter(reference.values())).steps
        library = lines.context["library"]
        name = f"{NAMES[library]}, {lines.context['molecule']}"
        others = "frames" in lines.context or lines.context["settings"].get("clip") != CLIPS[library]
        if others or steps < int(rows.get(name, ["", "0"])[1]):
            continue
        soap = tuned(best, FORCES, [arm for arm in best if arm.startswith(SOAP)])
        shown = ((soap, best[soap][0]), DEFAULTS[library], (MUON, best.get(MUON, (math.nan,))[0]))  # nan: not run
        cells = [difference(tested(lines, arm, rate, False), reference, FORCES) for arm, rate in shown]
        again = (tested(lines, arm, best[arm][0], True) for arm in (soap, adamw))
        cells.insert(1, difference(*again, FORCES))
        error = statistics.fmean(run.test[FORCES.metric] for run in reference.values())
        rows[name] = [name, str(steps), f"{error:.1f}", *cells]
    return "\n".join(grid_of([heading, *(rows[name] for name in sorted(rows))]))


def difference(mine: Runs, reference: Runs, measure: Measure) -> str:
    """Return the difference from tuned AdamW, in bold where it is told from 0; nothing where it was not run."""
    found = against(mine, reference, measure)
    if found is None or len(found.values) == 1:
        return ""
    words = f"{in_words(found, measure)} {measure.unit}"
    return f"**{words}**" if measure.gain(found) or measure.loss(found) else words


def sizes(results: Path = RESULTS) -> str:
    """Return the errors of table B by size of model and data: tuned AdamW, and every other arm's difference from it."""
    kind, arms = KINDS[1], ("plain@soap", "plain@muon", "drop", "fold", "lowrank")
    rows = [["", "AdamW, tuned: " + kind.measure.words, *(f"{arm} with AdamW" for arm in arms)]]
    rows[0][2:4] = ["SOAP", "Muon"]
    for title, (lines, *_) in comparisons(kind, results):
        best = chosen(lines, kind.measure)
        adamw = tuned_adamw(best, kind.measure)
        reference = tested(lines, adamw, best[adamw][0], False)
        if not reference:
            continue
        names = [arm if "@" in arm else adamw.replace("plain", arm) for arm in arms]
        own = [tested(lines, name, best[name][0], False) if name in best else {} for name in names]
        error = statistics.fmean(kind.measure.factor * run.test[kind.measure.metric] for run in reference.values())
        rows.append([title, f"{error:.1f}", *(difference(each, reference, kind.measure) for each in own)])
    return "\n".join(grid_of(rows)) if len(rows) > 1 else "Not run yet."


def networks(kind: Kind, results: Path = RESULTS) -> str:
    """Return, for every comparison that has some, the errors of other networks beside its own."""
    others: dict[str, list[Lines]] = {}
    for _, (lines, *_) in comparisons(kind, results, beside=True):
        others.setdefault(_without_beside(lines), []).append(lines)
    parts: list[str] = []
    for title, (lines, *_) in comparisons(kind, results):
        found = others.get(_without_beside(lines))
        parts += [f"{title}:", "", *networks_table(lines, found, kind.measure), ""] if found else []
    return "\n".join(parts).rstrip() or "Not run yet."


def _without_beside(lines: Lines) -> str:
    return str({name: value for name, value in lines.context.items() if name != BESIDE})


def times(results: Path = RESULTS) -> str:
    """Return table F."""
    found = [
        (kind.name, title, lines, kind.measure) for kind in KINDS for title, (lines, *_) in comparisons(kind, results)
    ]
    return "\n".join(time_to_target.table(found)).strip()


def together(results: Path = RESULTS) -> str:
    """Return what all comparisons show of every arm."""
    found = [(kind.name, lines, kind.measure) for kind in KINDS for _, (lines, *_) in comparisons(kind, results)]
    return "\n".join(verdicts.table(found))


PARTS: Mapping[str, Callable[[Path], str]] = {
    **{kind.name: (lambda results, kind=kind: text(kind, results)) for kind in KINDS},
    "table A in short": in_short,
    "table B by size": sizes,
    **{
        f"{kind.name} by network": (lambda results, kind=kind: networks(kind, results)) for kind in (KINDS[2], KINDS[4])
    },
    "table F": times,
    "all tables": together,
}
"""What is written between the marks of each name."""


def marks(name: str) -> tuple[str, str]:
    """Return what stands before and after what is written."""
    return f"<!-- {name}: from the lines, by benchmarks/accuracy/report.py -->", f"<!-- end of {name} -->"


def written_anew(page: str, results: Path = RESULTS) -> str:
    """Return a page with what the lines give between the marks that it has."""
    for name, make in PARTS.items():
        begin, end = marks(name)
        before, mark, rest = page.partition(begin)
        if mark:
            page = f"{before}{begin}\n\n{make(results)}\n\n{end}{rest.partition(end)[2]}"
    return page


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page says something else")
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES}
    wanted = {path: written_anew(page) for path, page in pages.items()}
    if parser.parse_args().check:
        return int(pages != wanted)
    for path, page in wanted.items():
        path.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
