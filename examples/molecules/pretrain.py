"""Train a small MACE potential on GFN1-xTB labels, to be fine-tuned on GFN2-xTB ones.

    python examples/molecules/pretrain.py [FOLDER]
    python examples/molecules/pretrain.py --shipped [FOLDER]    # the potential beside this file, without training

Writes ``mace_gfn1.model``, a pickled module as MACE's own training writes it, and the same potential without pickle:
``mace_gfn1.safetensors`` with its settings in ``mace_gfn1.safetensors.model.json``. Training takes minutes on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from surgeon.opening.evaluation import evaluate
from surgeon_adapters.atoms.xyz_frames import read_labelled
from surgeon_adapters.mace.adapter import adapter
from surgeon_adapters.mace.data import head_of
from surgeon_adapters.mace.models import build
from surgeon_adapters.mace.task import MaceTask

HERE = Path(__file__).parent
DATA = HERE / "ethanol_gfn1.xyz"
EPOCHS, LEARNING_RATE = 60, 1e-2
SYMBOLS = (1, 6, 8)


def settings(energies: list[float]) -> dict[str, object]:
    """Return the settings of the potential, as a checkpoint without pickle stores them."""
    block = {"class": "RealAgnosticResidualInteractionBlock"}
    return {
        "r_max": 4.5,
        "num_bessel": 6,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls": block,
        "interaction_cls_first": block,
        "num_interactions": 2,
        "num_elements": len(SYMBOLS),
        "hidden_irreps": {"irreps": "8x0e+8x1o"},
        "MLP_irreps": {"irreps": "8x0e"},
        "gate": {"gate": "silu"},
        "atomic_energies": {"array": [energies]},
        "avg_num_neighbors": 8.0,
        "atomic_numbers": list(SYMBOLS),
        "correlation": 2,
        "radial_MLP": [16, 16],
        "atomic_inter_scale": {"array": 1.0},
        "atomic_inter_shift": {"array": 0.0},
    }


def untrained() -> torch.nn.Module:
    """Return the potential with random weights and the isolated atoms of the data."""
    first = build("ScaleShiftMACE", "float64", settings([0.0] * len(SYMBOLS)))
    isolated = read_labelled(DATA, {}, head_of(first, None).isolated).isolated
    torch.manual_seed(0)
    model = build("ScaleShiftMACE", "float64", settings([isolated[number] for number in SYMBOLS]))
    task = MaceTask(DATA).for_model(model)
    batches = list(task.batches("train", 0))
    atoms = sum(len(batch["positions"]) for batch in batches)
    with torch.no_grad():  # the usual start: mean energy of interaction per atom, root mean square of forces
        model.scale_shift.shift.fill_(float(sum(batch["energy"].sum() for batch in batches)) / atoms)
        model.scale_shift.scale.fill_(float(torch.cat([batch["forces"] for batch in batches]).square().mean().sqrt()))
    return model.float()


def train(model: torch.nn.Module, epochs: int = EPOCHS) -> dict[str, float]:
    """Train in place; return the metrics on the test frames."""
    task = MaceTask(DATA, batch_size=6).for_model(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, amsgrad=True)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for batch in task.batches("train", epoch):
            optimizer.zero_grad()
            loss = task.loss(task.forward(model, batch), batch)
            loss.backward()
            optimizer.step()
        plan.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: training loss {float(loss.detach()):.4g}", flush=True)
    return evaluate(model, task, "test")


def main(folder: Path, shipped: bool) -> None:
    """Train, or take the shipped weights, and write both forms."""
    model = untrained()
    if shipped:
        model.load_state_dict(load_file(HERE / "mace_gfn1.safetensors"))
    for name, value in {} if shipped else train(model).items():
        print(f"test {name}: {value:.4g}")
    torch.save(model, folder / "mace_gfn1.model")
    described = adapter.describe(model) or {}
    statement = {key: described[key] for key in ("factory", "args")}
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "mace_gfn1.safetensors")
    (folder / "mace_gfn1.safetensors.model.json").write_text(json.dumps(statement, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    folders = [Path(word) for word in sys.argv[1:] if word != "--shipped"]
    main(*folders or [HERE], shipped="--shipped" in sys.argv)
