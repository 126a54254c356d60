"""Adapter for SevenNet potentials: from a checkpoint of sevenn to plain data and back, and a task on extended XYZ.

The layers inside are those of e3nn, whose adapter annotates them.
"""

from __future__ import annotations

from surgeon_adapters.atoms.adapter import PotentialAdapter
from surgeon_adapters.sevennet import files
from surgeon_adapters.sevennet.task import SevenNetTask


class SevenNetAdapter(PotentialAdapter):
    """SevenNet from its file to its file."""

    name = "sevennet"
    task_class = SevenNetTask
    package = "sevenn"
    calculator = (
        "from sevenn.calculator import SevenNetCalculator",
        'SevenNetCalculator("{file}", device="cpu")',
    )

    open_file = staticmethod(files.open_file)
    write_file = staticmethod(files.write_file)
    reopen = staticmethod(files.open_by_sevenn)


adapter = SevenNetAdapter()
