"""``surgeon report``: what a run, a comparison or a certificate records, as one page."""

from __future__ import annotations

from contextlib import closing
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
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it anew whenever the records change, until they are complete.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Write one HTML page, with figures, of what a run, a comparison or a certificate records.

    The page needs no other file and no network. No model is opened: it shows what the records say. With --watch a
    browser that shows it opens it again by itself while the training goes on.

    Examples:

        surgeon report segnn-run

        surgeon report segnn-run --watch

        surgeon report segnn-compare.json -o compare.html

        surgeon report segnn-clean --force
    """
    target = out or Path(f"{output_stem(path)}-report.html")
    if watch:
        _watch(path, target, force)
        return
    page = surgeon.write_report(path, target, force=force)
    for sentence in page.lead:
        say(sentence.replace("`", ""))
    say(f"wrote {target}")


def _watch(path: Path, target: Path, force: bool) -> None:
    say(f"watching {path}, Ctrl-C ends it" if path.exists() else f"waiting for {path}, Ctrl-C ends it")
    with closing(surgeon.watch_report(path, target, force=force)) as pages:
        try:
            for page in pages:
                say(f"wrote {target}: {' '.join(page.lead).replace('`', '')}")
        except KeyboardInterrupt:
            say(f"stopped watching; {target} is as the records were last")
        else:
            say("the records are complete")
