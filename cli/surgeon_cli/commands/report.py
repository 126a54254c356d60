"""``surgeon report``: what a run, a comparison or a certificate records, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli.options import ForceOption, output_stem
from surgeon_cli.screen import say


def report(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|COMPARISON|CLEAN", help="Run folder, record of --compare, or clean folder.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write; default: NAME-report.html.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write one HTML page, with figures, of what a run, a comparison or a certificate records.

    The page needs no other file and no network. No model is opened: it shows what the records say.

    Examples:

        surgeon report segnn-run

        surgeon report segnn-compare.json -o compare.html

        surgeon report segnn-clean --force
    """
    target = out or Path(f"{output_stem(path)}-report.html")
    page = surgeon.write_report(path, target, force=force)
    for sentence in page.lead:
        say(sentence.replace("`", ""))
    say(f"wrote {target}")
