"""NumPy numbers in a pickled checkpoint, read without NumPy's own unpickling.

Training scripts store accuracies beside the weights as NumPy scalars. The safe reader refuses them; here a number is
made from its bytes if its type is a plain boolean, integer or float, and nothing else is.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Where NumPy 1 and 2 keep the function that makes a scalar."""

PLAIN = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})


class PlainType:
    """Stands in for ``numpy.dtype`` while a file is read: kind and size of a number, and its byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code not in PLAIN:
            raise pickle.UnpicklingError(f"a NumPy scalar of type {code!r} is no plain number")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1] if len(state) > 1 else None
        if order not in ("<", ">", "|") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("a NumPy scalar of a structured type is no plain number")
        self.order = order


def _scalar(plain: Any, data: Any) -> Any:
    """Stand in for NumPy's function of the same arguments."""
    import numpy

    if not isinstance(plain, PlainType) or not isinstance(data, bytes) or len(data) != int(plain.code[1:]):
        raise pickle.UnpicklingError("a NumPy scalar holds something that is no plain number")
    return numpy.frombuffer(data, plain.order + plain.code)[0].astype(plain.code)


def stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return what ``torch.serialization.safe_globals`` may call, with the names that files use."""
    return [(PlainType, "numpy.dtype"), *((_scalar, f"{module}.scalar") for module in MODULES)]
