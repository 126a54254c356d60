"""``surgeon doctor``: what is installed, and what does not fit together."""

from __future__ import annotations

import platform

import typer

from surgeon import __version__
from surgeon.support.installation import look_at_installation
from surgeon_cli.options import JsonOption
from surgeon_cli.screen import print_json, print_table, say


def doctor(json_output: JsonOption = False) -> None:
    """Look at the installation: versions, extras, devices, and packages that exclude each other.

    One line for each problem, with what to do about it. Exit code 0 if there is none, 1 otherwise.

    Examples:

        surgeon doctor

        surgeon doctor --json
    """
    found = look_at_installation()
    if json_output:
        print_json({"surgeon": __version__, "python": platform.python_version(), **found.to_data()})
    else:
        say(f"surgeon {__version__}, Python {platform.python_version()}")
        rows = [
            [package.name, package.needed, package.installed or "no", ", ".join(package.extras) or "everything"]
            for package in found.packages
        ]
        print_table("packages", [["package", "needed", "installed", "for"], *rows])
        for device in found.devices:
            say(device)
        for problem in found.problems:
            say(f"problem: {problem}")
        say("no problem was found" if not found.problems else f"{len(found.problems)} problems")
    if found.problems:
        raise typer.Exit(1)
