"""accelerate's driver, and errors of the machine turned into advice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from surgeon.errors import SurgeonError, TrainingError, UsageError
from surgeon.imports import one_line

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(precision: str, trackers: Sequence[str] = (), folder: Path | None = None) -> Accelerator:
    """Return accelerate's driver; its state is one per process, and an earlier run may have had another precision.

    Raises:
        TrainingError: if the machine cannot train with this precision.
        UsageError: if a tracker's package is not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    _require_trackers(trackers)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=list(trackers) or None,
            project_dir=folder,
            # a model's last layers often have paths that no output needs
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        if precision == "fp16" and accelerator.device.type == "cpu":  # some versions would train without loss scaling
            raise ValueError("fp16 needs a GPU")
    except ValueError as error:
        AcceleratorState._reset_state()
        raise TrainingError(
            f"expected a machine that can train with precision {precision!r}, but {error}: choose 'no' or 'bf16'"
        ) from error
    if "FSDP" in str(accelerator.distributed_type) or "DEEPSPEED" in str(accelerator.distributed_type):
        raise TrainingError(
            f"expected processes that each hold the whole network, but accelerate is configured for "
            f"{accelerator.distributed_type.value}: the penalty needs whole weights, launch with --multi_gpu instead"
        )
    return accelerator


def _require_trackers(trackers: Sequence[str]) -> None:
    from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_wandb_available

    available = {
        "tensorboard": is_tensorboard_available,
        "wandb": is_wandb_available,
        "mlflow": is_mlflow_available,
    }
    for name in trackers:
        if name not in available:
            raise UsageError(f"expected a tracker among {', '.join(available)}, got {name!r}")
        if not available[name]():
            raise UsageError(f"expected the package of the tracker {name!r}, but it is missing: pip install {name}")


@contextmanager
def with_advice(precision: str, where: str) -> Iterator[None]:
    """Turn an exhausted memory, or a network that mixed precision breaks, into a sentence that says what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, SurgeonError):
            raise
        if _is_out_of_memory(error):
            raise TrainingError(
                f"expected enough memory for {where}, but it ran out ({one_line(error)}): make the batches smaller and "
                "give `--accumulate` in return, relax fewer sites (`--include`, `--max-extra-params`), or give the "
                "branches a rank"
            ) from error
        if precision != "no":
            raise TrainingError(
                f"expected a model that runs in mixed precision {precision!r}, but it fails with {one_line(error)}: "
                "its library may need one dtype throughout, choose precision 'no'"
            ) from error
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in text or "allocate mem" in text


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Refuse operations that are not deterministic while the context is open, if that is wanted."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if wanted:
            torch.use_deterministic_algorithms(before)


def gathered(accelerator: Any, value: Any) -> list[Any]:
    """Return a picklable value of every process, in order."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    found: list[Any] = gather_object([value])
    return found
