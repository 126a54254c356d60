"""Tensors on the disk come back as they were."""

from __future__ import annotations

import errno
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.errors import WriteError
from surgeon.support.shelf import Shelf

TENSORS = {
    "turned": torch.randn(4, 3, dtype=torch.float64).T,
    "expanded": torch.arange(3).expand(2, 3),
    "flag": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    "complex": torch.randn(2, dtype=torch.complex64),
    "conjugate": torch.randn(2, dtype=torch.complex64).conj(),
    "empty": torch.empty(0, 4),
    "sparse": torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("order", [TENSORS, list(reversed(TENSORS))])
def test_tensors_come_back_in_any_order(order: Any) -> None:
    shelf = Shelf()
    put = {name: shelf.put(tensor) for name, tensor in TENSORS.items()}
    assert not any(tensor.numel() for name, tensor in put.items() if name != "sparse")
    for name in order:
        back, tensor = shelf.get(put[name]), TENSORS[name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(back.to_dense(), tensor.to_dense())
    own = torch.ones(2)
    assert shelf.get(own) is own


def test_nothing_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shelf = Shelf()
    shelf.put(torch.ones(10))
    assert not list(tmp_path.iterdir())
    file = shelf._file
    del shelf
    gc.collect()
    assert file.closed


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, *_: int) -> int:
            return 0

        def write(self, _: Tensor) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with pytest.raises(WriteError, match=r"room for 8 bytes more in .*No space left .*TMPDIR"):
        Shelf().put(torch.ones(2))
