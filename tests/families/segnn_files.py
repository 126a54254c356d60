"""N-body files as the published generator writes them, and the keys and shapes of the published network for them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from surgeon_adapters.zoo.segnn.models import build
from tests.modules import importable

EXAMPLE = Path(__file__).parents[2] / "examples" / "nbody"
SUFFIX = "charged5_initvel1small"
FRAMES = {"start": 2, "end": 4}
SMALL = {
    "input_irreps": "2x1o+1x0e",
    "hidden_irreps": "4x0e+3x1o",
    "output_irreps": "1x1o",
    "edge_attr_irreps": "1x0e+1x1o",
    "node_attr_irreps": "1x0e+1x1o",
    "layers": 1,
    "additional_message_irreps": "2x0e",
}

Shapes = dict[str, tuple[int, ...]]


def example_module(name: str) -> ModuleType:
    """A module of the example; neither it nor what it imports beside it is left behind among the imported ones."""
    with importable(EXAMPLE):
        return importlib.import_module(name)


def write_motions(folder: Path, sizes: tuple[int, int, int] = (20, 6, 6), frames: int = 5) -> Path:
    """Write positions, velocities, charges and edges of each split; return the file of the training positions."""
    simulate, writer = example_module("simulate"), example_module("write_files")
    assert writer.SUFFIX == SUFFIX
    for index, (split, count) in enumerate(zip(("train", "valid", "test"), sizes, strict=True)):
        writer.write_split(folder, split, count, (index, 0), 1.0, frames * simulate.FRAME_INTERVAL)
    return folder / f"loc_train_{SUFFIX}.npy"


def network(**settings: object) -> nn.Module:
    """A small network with random weights."""
    torch.manual_seed(0)
    return build(**{**SMALL, **settings}).eval()  # type: ignore[arg-type]


def published() -> Shapes:
    """The network of the published command for N-body: 32x0e+32x1o, 4 layers; keys in the order of its state dict."""
    layers: Shapes = {}
    for index in range(4):
        name = f"layers.{index}"
        layers |= {
            **gated(f"{name}.message_layer_1", 12480),
            **gated(f"{name}.message_layer_2", 6144),
            **gated(f"{name}.update_layer_1", 12288),
            **product(f"{name}.update_layer_2", 4096, 32, 128),
        }
    return {
        **product("embedding_layer", 192, 32, 128),
        **layers,
        **gated("pre_pool1", 6144),
        **product("pre_pool2", 64, 0, 3),
    }


def product(name: str, weights: int, biases: int, entries: int) -> Shapes:
    bias: Shapes = {f"{name}.biases": (biases,)} if biases else {}
    return {**bias, f"{name}.tp.weight": (weights,), f"{name}.tp.output_mask": (entries,)}


def gated(name: str, weights: int) -> Shapes:
    gate: Shapes = {f"{name}.gate.mul.weight": (0,), f"{name}.gate.mul.output_mask": (96,)}
    return {**product(name, weights, 64, 160), **gate}
