"""Tensors in files: nothing is believed of a header, and values are read when they are asked for."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from surgeon.errors import CheckpointError
from surgeon.files.open_file import OpenFile
from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import open_safetensors
from surgeon.opening.loading import load_into


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """A matrix, a row, a scalar, an empty one, and other dtypes."""
    return {
        "long": torch.randn(3, 2),
        "flat": torch.randn(1, 4),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "whole": torch.arange(5),
        "half": torch.randn(3, 3).to(torch.bfloat16),
    }


@pytest.fixture
def path(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    return tmp_path / "x.safetensors"


def test_a_file_that_is_replaced_meanwhile(path: Path, tensors: dict[str, Tensor]) -> None:
    stored, _ = open_safetensors(OpenFile(path))
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, path.with_name("new"))
    path.with_name("new").replace(path)
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)


def test_names_without_a_prefix(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_file({f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "x.safetensors")
    opened = open_checkpoint(tmp_path / "x.safetensors")
    assert opened.prefix == "module."
    twin = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    load_into(twin, opened.tensors, "x")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in twin.state_dict().items())


class Doubling(nn.Linear):
    """A layer with loading code of its own."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict = {name: 2 * value for name, value in state_dict.items()}
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_loading_code_of_a_module_is_run_and_must_not_change_values(tmp_path: Path) -> None:
    plain = nn.Linear(2, 3)
    save_file(plain.state_dict(), tmp_path / "x.safetensors")
    loaded = Doubling(2, 3)
    with pytest.raises(CheckpointError, match=r"Doubling changes the values of 2 \(bias, weight\) tensors"):
        load_into(loaded, open_checkpoint(tmp_path / "x.safetensors").tensors, "x")
    assert torch.equal(loaded.weight, 2 * plain.weight)


def test_metadata(path: Path) -> None:
    assert open_safetensors(OpenFile(path))[1] == {"format": "pt"}


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ([], "header that is a list"),
        ({"w": {**ONE, "shape": [2]}}, r"shape \[2\] and dtype F32 in 4 bytes"),
        ({"w": {**ONE, "shape": [10**18]}}, "in 4 bytes"),
        ({"w": {**ONE, "shape": [True]}}, "unusable shape"),
        ({"w": {**ONE, "shape": [1.0]}}, "unusable shape"),
        ({"w": {**ONE, "data_offsets": [4, 0]}}, "unusable shape or range"),
        ({"w": {**ONE, "data_offsets": [-4, 0]}}, "unusable shape or range"),
        ({"w": {**ONE, "data_offsets": [0]}}, "not enough values"),
        ({"w": {"dtype": "F32"}}, "KeyError"),
        ({"w": ONE, "v": ONE}, "overlap"),
        ({"w": {**ONE, "data_offsets": [4, 8]}}, "leave a gap"),
        ({}, "0 bytes of tensors announced, 4 there"),
        ({"w": {**ONE, "dtype": "X99"}}, "as safetensors"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, header: Any, words: str) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"0000")
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path / "x.safetensors")
