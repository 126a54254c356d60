"""One module per command."""

from __future__ import annotations

import typer

from surgeon_cli.commands.demo import demo
from surgeon_cli.commands.doctor import doctor
from surgeon_cli.commands.finetune import finetune
from surgeon_cli.commands.hub import pull, push
from surgeon_cli.commands.init import init
from surgeon_cli.commands.inspect import inspect
from surgeon_cli.commands.measure import measure
from surgeon_cli.commands.relax import relax
from surgeon_cli.commands.report import report
from surgeon_cli.commands.strip import export, strip
from surgeon_cli.commands.verify import verify


def register(app: typer.Typer) -> None:
    """Add all commands to the application."""
    for command in (inspect, relax, finetune, measure, strip, export, verify, report, push, pull, init, demo, doctor):
        app.command(command.__name__)(command)
