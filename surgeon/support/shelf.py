"""Tensors that are put away on the disk until they are asked for."""

from __future__ import annotations

import tempfile
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.errors import WriteError
from surgeon.support.attributes import tensor_bytes


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are, and what else makes it; its stand-in is held so that no other object gets its id."""

    stand_in: Tensor
    offset: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Shelf:
    """Tensors in a file without a name, in the folder for temporary ones (``TMPDIR``), which goes with the shelf.

    Example:
        >>> shelf = Shelf()
        >>> stand_in = shelf.put(torch.arange(3))
        >>> stand_in.numel(), shelf.get(stand_in)
        (0, tensor([0, 1, 2]))
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as the shelf is there
        self._places: dict[int, _Place] = {}
        weakref.finalize(self, self._file.close)

    def put(self, tensor: Tensor) -> Tensor:
        """Return what stands for a tensor: one of no size. What is not dense stays where it is.

        Raises:
            WriteError: if it cannot be written.
        """
        if tensor.layout != torch.strided or not tensor.numel():
            return tensor
        offset, stand_in = self._file.seek(0, 2), tensor.new_empty(0)
        try:
            self._file.write(tensor_bytes(tensor).cpu().numpy().data)
        except OSError as error:
            raise WriteError(
                f"expected room for {tensor.nbytes} bytes more in {tempfile.gettempdir()}, where what does not fit "
                f"into memory is put for a while, got {error.strerror}: make room, or name another folder in TMPDIR"
            ) from error
        self._places[id(stand_in)] = _Place(stand_in, offset, tensor.shape, tensor.dtype, tensor.device)
        return stand_in

    def get(self, tensor: Tensor) -> Tensor:
        """Return what a tensor stands for; one that stands for nothing is itself."""
        place = self._places.get(id(tensor))
        if place is None:
            return tensor
        self._file.seek(place.offset)
        content = bytearray(self._file.read(place.shape.numel() * place.dtype.itemsize))
        return torch.frombuffer(content, dtype=place.dtype).reshape(place.shape).to(place.device)
