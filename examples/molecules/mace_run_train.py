"""MACE's own training script with SOAP on the matrices inside the weights: its options, files and loop, our optimiser.

    python examples/molecules/mace_run_train.py --name ethanol --train_file ethanol_gfn1.xyz --lr 0.02 ...

Takes what ``mace_run_train`` takes; ``--optimizer`` and ``--amsgrad`` have no effect. Its parameter groups, with their
rates and decays, and its scheduler act as with Adam.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from mace.cli import run_train

from surgeon import optim

BLOCKS: list[optim.WeightBlocks] = []
usual_options = run_train.get_params_options


def options_of(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, Any]:
    """Find the matrices of the model while MACE sorts its weights into groups."""
    BLOCKS[:] = optim.find_blocks(model)
    options: dict[str, Any] = usual_options(args, model)
    return options


def optimizer_of(args: argparse.Namespace, options: dict[str, Any]) -> torch.optim.Optimizer:
    """Make SOAP of MACE's groups."""
    optimizer = optim.Soap(options["params"], lr=args.lr)
    optimizer.use_blocks(BLOCKS)
    return optimizer


if __name__ == "__main__":
    run_train.get_params_options, run_train.get_optimizer = options_of, optimizer_of
    run_train.main()
