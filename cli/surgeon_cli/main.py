"""The command ``surgeon``."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import click
import typer

from surgeon import __version__
from surgeon.errors import SurgeonError
from surgeon_cli import commands

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Relax the equivariance of a pretrained network while it is fine-tuned, and give the architecture back.",
    epilog="Start with: surgeon inspect CHECKPOINT --group O3 --task task.py",
)
commands.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"surgeon {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options that stand before the command."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every error is one sentence on standard error and a non-zero exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given[:1]
    try:
        code = app(args=given, standalone_mode=False)
    except SurgeonError as error:
        code = _report(str(error), error.exit_code, debug)
    except click.exceptions.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        code = _report("interrupted; nothing half-written was left, give the same command again to repeat it", 2, debug)
    except Exception as error:
        text = str(error).strip().splitlines() or ["no message"]
        code = _report(
            f"unexpected {type(error).__name__}: {text[0]} - in the model, the task, or surgeon itself; "
            "`surgeon --debug ...` shows where",
            2,
            debug,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _report(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
