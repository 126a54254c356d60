"""Adapter for MACE potentials: from a pickled ``.model`` to plain data and back, and a task on extended-XYZ files.

The layers inside are those of e3nn, whose adapter annotates them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError
from surgeon.files.reading import scripts_on_the_cpu
from surgeon.opening.loading import load_into
from surgeon_adapters.atoms.adapter import PotentialAdapter
from surgeon_adapters.mace.checks import forces_of, further_inputs, needed_file, require_no_other_layers, require_same
from surgeon_adapters.mace.models import FACTORY, arguments_of, import_mace, is_potential
from surgeon_adapters.mace.task import MaceTask


class MaceAdapter(PotentialAdapter):
    """MACE from its file to its file."""

    name = "mace"
    task_class = MaceTask
    package = "mace"
    calculator = (
        "from mace.calculators import MACECalculator",
        'MACECalculator(model_paths="{file}", device="cpu", default_dtype="float64")',
    )

    def describe(self, module: nn.Module) -> Mapping[str, Any] | None:
        """Return the settings of a MACE potential, having checked that a rebuilt one computes the same.

        Its class may be of a copy of mace, in another package or an archive of torch.package: what it holds counts.
        Other classes of the library, and potentials with inputs besides atoms, are left as the modules that they are;
        and, with a note, those that cannot be rebuilt.

        Raises:
            CheckpointError: if it has other layers than e3nn's, or does not run.
        """
        kind = type(module).__name__
        if not is_potential(module) or further_inputs(module):
            return None
        require_no_other_layers(module)
        expected = forces_of(module)
        try:
            arguments, rebuilt = arguments_of(module, kind)
            load_into(rebuilt, module.state_dict(), f"this {kind}")
            require_same(rebuilt, expected)
        except CheckpointError as error:
            return {"note": str(error)}
        return {"factory": FACTORY, "args": arguments, "built": rebuilt}

    def recognise(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Say which potential the weights of a training checkpoint belong to, and which file is needed."""
        return needed_file(tensors)

    def reopen(self, path: Path) -> nn.Module | None:
        """Open a ``.model`` as MACE's own calculator does; None for other files."""
        if path.suffix != ".model":
            return None
        import_mace()
        with scripts_on_the_cpu():
            module = torch.load(path, map_location="cpu", weights_only=False)
        return module if type(module).__module__.startswith("mace.") or is_potential(module) else None


adapter = MaceAdapter()
