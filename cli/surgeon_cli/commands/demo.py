"""``surgeon demo``: the whole path on a small network that is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon_cli.demonstration import run_demo


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="A new folder.")] = Path("surgeon-demo"),
    short: Annotated[bool, typer.Option("--short", help="Four epochs: to see that everything works.")] = False,
) -> None:
    """Relax, fine-tune, strip and verify a small network that is shipped; a minute or two.

    It predicts how five charged particles move. Its weights come from a weaker interaction than the task's.

    Examples:

        surgeon demo

        surgeon demo --short -o /tmp/demo
    """
    run_demo(out, short)
