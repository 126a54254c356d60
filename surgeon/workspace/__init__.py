"""Open a path that a user names, checkpoint or relaxed folder, into a model with everything that belongs to it."""

from __future__ import annotations

from surgeon.workspace.configuration import relaxed_config
from surgeon.workspace.opened import Workspace
from surgeon.workspace.opening import open_path
from surgeon.workspace.options import OpenOptions
from surgeon.workspace.originals import check_values
from surgeon.workspace.source import check_source

__all__ = ["OpenOptions", "Workspace", "check_source", "check_values", "open_path", "relaxed_config"]
