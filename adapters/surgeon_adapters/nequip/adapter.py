"""Adapter for NequIP potentials: from its checkpoints and packages to plain data and back, and a task on extended XYZ.

The layers inside are those of e3nn, whose adapter annotates them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from surgeon_adapters.atoms.adapter import PotentialAdapter
from surgeon_adapters.nequip import files
from surgeon_adapters.nequip.task import NequipTask

INTERACTION = re.compile(r"(^|\.)layer\d+_convnet\.conv\.linear_1\.weight$")


class NequipAdapter(PotentialAdapter):
    """NequIP from its file to its file."""

    name = "nequip"
    task_class = NequipTask
    package = "nequip"
    calculator = (
        "from nequip.integrations.ase import NequIPCalculator\n\n"
        "# before: nequip-compile {file} compiled.nequip.pt2 --mode aotinductor --device cpu --target ase",
        'NequIPCalculator.from_compiled_model("compiled.nequip.pt2", device="cpu")',
    )

    open_file = staticmethod(files.open_file)
    write_file = staticmethod(files.write_file)
    reopen = staticmethod(files.open_by_nequip)

    def recognise(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Say of a state dict what to give instead; None for others."""
        if not any(INTERACTION.search(key) for key in tensors):
            return None
        return (
            "it is a state dict of NequIP, without settings: of version 0.7 or later give the checkpoint or package "
            "that it is from; networks of versions up to 0.6 are not built by later ones, for them install that one "
            "and give a task file with `model()`, as docs/families/nequip.md shows"
        )


adapter = NequipAdapter()
