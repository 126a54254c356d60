"""The command line with FSDP on CPUs: a program for test_sharding.py.

accelerate switches FSDP on for accelerators only and trains on CPUs with DDP whatever it is told, but all that it then
does for FSDP (its plugin, ``prepare`` with ``fully_shard``, accumulation, reductions) works on CPUs with gloo. So this
one decision is reversed here, and nothing else is replaced.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from surgeon_cli.main import main as command

_usual = AcceleratorState.__init__


def _decide_for_fsdp(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
    _usual(self, *args, **kwargs)
    plugin = kwargs.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self.mixed_precision != "no":
            plugin.set_mixed_precision(self.mixed_precision)
        self.fsdp_plugin = plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def main(arguments: list[str]) -> None:
    """Run the command with FSDP where accelerate is told to use it."""
    AcceleratorState.__init__ = _decide_for_fsdp
    command(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
