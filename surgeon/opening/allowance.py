"""What a file may have built: networks of registered factories, and none far larger than the file, whatever it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Self

from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from surgeon.errors import CheckpointError
from surgeon.files.tensors import forms
from surgeon.support.compiler import DispatchMode

ENTRY_POINT_GROUP = "surgeon.models"
TIMES, BESIDE = 16, 2**28
"""Allowed: so many times the numbers in the file, for what a library computes with, and so many in addition."""
PAGE = 2**12
"""Numbers that a tensor counts as at least: many small ones take memory, too."""
WEIGHTS, SOME = 8, 32
"""Weights allowed: so many times the tensors in the file, since some are replaced, and so many in addition."""


def is_registered(factory: str) -> bool:
    """Tell whether an installed package registers a factory, so that a file may name it."""
    return factory in {entry.value.replace(" ", "") for entry in entry_points(group=ENTRY_POINT_GROUP)}


class Allowance(DispatchMode):
    """While this is open, tensors that a function makes count, each before it is allocated.

    Args:
        tensors: of the file.
        what: is built, in words.
    """

    def __init__(self, tensors: Mapping[str, Tensor], what: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._what, self._held = what, sum(tensor.numel() for tensor in forms(tensors).values())
        self._left = BESIDE + TIMES * (self._held + PAGE * len(tensors))
        self._weights = SOME + WEIGHTS * len(tensors)

    def __enter__(self) -> Self:
        self._hook = register_module_parameter_registration_hook(self._count)
        entered: Self = super().__enter__()  # type: ignore[no-untyped-call]
        return entered

    def __exit__(self, *error: Any) -> None:
        self._hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _count(self, *_: Any) -> None:
        """Count a weight: too many layers have too many long before these take much memory."""
        self._weights -= 1
        self._refuse_beyond(self._weights)

    def __torch_dispatch__(
        self, function: Callable[..., Any], _: Any, given: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(named or {})
        schema: Any = function
        if any(argument.name == "device" for argument in schema._schema.arguments):
            of_the_cpu = {"generator": None} if "generator" in named else {}
            self._take(function(*given, **{**named, **of_the_cpu, "device": "meta"}))
        return function(*given, **named)

    def _take(self, form: Tensor) -> None:
        """Subtract what a tensor takes."""
        self._left -= max(form.numel(), PAGE)
        self._refuse_beyond(self._left)

    def _refuse_beyond(self, left: int) -> None:
        """Refuse to go on.

        Raises:
            CheckpointError: if less than nothing is left.
        """
        if left < 0:
            raise CheckpointError(
                f"expected a network of about the {self._held:,} numbers in the file, but {self._what} makes far more "
                "with the settings there: correct them, or name a factory with `--model`"
            )
