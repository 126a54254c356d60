"""The command ``surgeon``."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import traceback
from contextlib import suppress
from typing import Annotated, Any

import typer

from surgeon import __version__
from surgeon.errors import SurgeonError, UsageError, printable, sentence
from surgeon_cli import commands

INTERRUPTED = 130
"""What newer versions of typer return after Ctrl-C instead of raising."""

COMPLETE = "_SURGEON_COMPLETE"
"""What a shell sets that asks for completions; typer then ends the process itself."""

SPINS = "3000"
"""Rounds that a thread of OpenMP waits before it sleeps: as fast as OpenMP's own number where cores are idle."""

_INTERRUPTION = "interrupted; nothing half-written was left, give the same command again to repeat it"

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Relax the equivariance of a pretrained network while it is fine-tuned, and give the architecture back.",
    epilog="Start with: surgeon init CHECKPOINT, or, without one, surgeon demo",
)
commands.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"surgeon {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options that stand before the command; without one, what to do next is said."""
    if context.invoked_subcommand is None:
        from surgeon.training.next_steps import next_steps

        steps = next_steps()
        typer.echo(printable("\n".join([*steps, "surgeon --help lists the commands"])) if steps else context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every error is one sentence on standard error and a non-zero exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    before, sys.argv = sys.argv, ["surgeon", *given]  # which records name, however this was called
    _wait_asleep()
    debug = "--debug" in given[:1]
    try:
        _refuse_other_encodings(given)
        code = app(args=given, prog_name="surgeon", standalone_mode=False)
        if code == INTERRUPTED:
            code = _report(_INTERRUPTION, 2, debug=False)
        _leave_processes()
    except SurgeonError as error:
        code = _report(f"{_with_notes(error)} [{error.code}]", error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        code = _report(_INTERRUPTION, 2, debug)
    except (Exception, SystemExit) as error:
        if COMPLETE in os.environ:
            raise
        code = _report_usage(error, debug) if hasattr(error, "format_message") else _report_unexpected(error, debug)
    finally:
        sys.argv = before
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_other_encodings(given: list[str]) -> None:
    """Refuse names that records could not hold before anything is computed: they are UTF-8.

    Raises:
        UsageError: if a word of the command, or the current folder, has bytes that are not.
    """
    words = [*given]
    with suppress(FileNotFoundError):  # of a folder that was removed
        words.append(os.getcwd())
    for word in words:
        if word != word.encode("utf-8", "replace").decode("utf-8"):
            raise UsageError(f"expected names in UTF-8, as records keep them, got {word!r}: rename the file or folder")


def _wait_asleep() -> None:
    """Let torch's threads sleep soon when they wait for each other, unless the user says how they wait.

    GNU's OpenMP lets a thread spin for 300,000 rounds before it sleeps. Where something else uses a core, threads then
    spin for one that does not run. The variable is read once, when torch is loaded.
    """
    if "torch" not in sys.modules and not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = SPINS


def _leave_processes() -> None:
    """Close torch's process group, if one is open: a thread of it that outlives the interpreter aborts the process."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _report_usage(error: Any, debug: bool) -> int:
    """Report what is wrong with the command itself; whether typer uses click or a copy of it."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "surgeon"
    message = error.format_message().strip().rstrip(".").replace(": Value error, ", ": ")  # as pydantic begins
    return _report(f"{message}: see `{command} --help` [{UsageError.code}]", 2, debug)


def _with_notes(error: BaseException, message: str = "") -> str:
    """Return a message with what else was noted: where what was done is."""
    return "; ".join([message or str(error), *getattr(error, "__notes__", [])])


def _report_unexpected(error: BaseException, debug: bool) -> int:
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
        name = os.fsdecode(error.filename)
        return _report(f"could not use {name!r}: {error.strerror}: check the path [{UsageError.code}]", 2, debug)
    from surgeon.opening.task_calls import told

    found = told(error)
    return _report(
        f"{_with_notes(error, str(found))}; `surgeon --debug ...` shows where [{found.code}]", found.exit_code, debug
    )


def _report(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    told = f"error: {sentence(text)}"
    if sys.stderr.isatty():  # which would break lines inside words
        room = shutil.get_terminal_size().columns
        told = textwrap.fill(told, room, break_long_words=False, break_on_hyphens=False)
    print(told, file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
