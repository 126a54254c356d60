"""The command line in a folder with a tiny checkpoint, as for the tests of the commands."""

from __future__ import annotations

from tests.cli.conftest import surgeon, work

__all__ = ["surgeon", "work"]
