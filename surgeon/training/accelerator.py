"""accelerate's driver, and errors of the machine turned into advice."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from surgeon.algebra.moments import mean_of_each, processes, weighted_mean_of_each
from surgeon.editing.relaxation import Relaxation
from surgeon.errors import SurgeonError, TrainingError, UsageError
from surgeon.support.imports import one_line
from surgeon.support.sharding import whole

if TYPE_CHECKING:
    from accelerate import Accelerator


def prepared(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
    """Return model and optimiser as accelerate runs them; buffers are shared after every step, not in every forward."""
    model, optimizer = accelerator.prepare(model, optimizer)
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            module.broadcast_buffers = False  # which is deprecated as an argument
    return model, optimizer


def make_accelerator(precision: str, trackers: Sequence[str] = (), folder: Path | None = None) -> Accelerator:
    """Return accelerate's driver; its state is one per process, and an earlier run may have had another precision.

    Raises:
        TrainingError: if the machine cannot train with this precision, or accelerate is told to distribute the training
            in a way that is not supported.
        UsageError: if a tracker's package is not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    _require_trackers(trackers)
    _refuse_deepspeed(_wanted("DEEPSPEED"))
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
    _refuse_deepspeed(accelerator.distributed_type == "DEEPSPEED")
    _require_supported_sharding(accelerator)
    return accelerator


def _wanted(name: str) -> bool:
    """Tell whether `accelerate launch` was told to use something."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1", "yes")


def _refuse_deepspeed(wanted: bool) -> None:
    if wanted:
        raise TrainingError(
            "expected training by DDP or FSDP, but accelerate is configured for DeepSpeed, which optimises by itself: "
            "launch with --multi_gpu, or with --use_fsdp --fsdp_version 2 to shard weights"
        )


def _require_supported_sharding(accelerator: Accelerator) -> None:
    """Refuse ways of sharding that would fail, or be ignored, later on."""
    sharding = accelerator.distributed_type == "FSDP"
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    parallelism = getattr(accelerator, "parallelism_config", None)
    found = ""
    if not sharding:
        if _wanted("FSDP") and accelerator.num_processes > 1:
            found = f"accelerate does not shard on the device {accelerator.device.type!r}: launch without FSDP there"
    elif getattr(plugin, "fsdp_version", 1) != 2:
        found = "this is FSDP version 1: launch with --fsdp_version 2 (accelerate 1.6 or newer)"
    elif "ignored_params" not in inspect.signature(_fully_shard()).parameters:
        found = f"torch {torch.__version__} cannot leave the branches whole: install torch 2.7 or newer"
    elif type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy":
        found = "weights are to be offloaded to the CPU: launch with --fsdp_offload_params false"
    elif isinstance(plugin.ignored_modules, str):
        found = "modules are to be ignored: leave fsdp_ignored_modules out"
    elif plugin.activation_checkpointing:
        found = (
            "modules are to be wrapped for activation checkpointing, branches among them: leave "
            "fsdp_activation_checkpointing out, and let the network do it by itself, with use_reentrant=False"
        )
    elif parallelism is not None and parallelism.non_data_parallel_size > 1:
        found = "tensor, context or sequence parallelism is asked for as well: leave it out"
    if found:
        raise TrainingError(f"expected sharding over processes by FSDP version 2 on accelerators, but {found}")


def _fully_shard() -> Callable[..., Any]:
    from torch.distributed.fsdp import fully_shard

    return fully_shard


def shards(accelerator: Accelerator) -> bool:
    """Tell whether weights are sharded over the processes."""
    return bool(accelerator.distributed_type == "FSDP")


def keep_whole(accelerator: Accelerator, modules: Sequence[nn.Module]) -> None:
    """Let FSDP leave some modules alone: every process holds their weights whole, on its device, from now on.

    Every process has read the checkpoint by itself, so that nothing needs to be sent to begin with.
    """
    plugin = accelerator.state.fsdp_plugin
    plugin.ignored_modules = [module.to(accelerator.device) for module in modules]
    plugin.cpu_ram_efficient_loading = False


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Average gradients over processes, in place, in one message; parameters without any on all processes keep none.

    Args:
        parameters: the same on all processes, not sharded.
    """
    if not parameters or processes() == 1:
        return
    present = torch.tensor([float(p.grad is not None) for p in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    *means, used = mean_of_each([*gradients, present])
    for parameter, seen, mean in zip(parameters, used.tolist(), means, strict=True):
        if seen:
            parameter.grad = mean


def broken_gradient(model: nn.Module, parameters: Sequence[Tensor]) -> str:
    """Name, of some parameters of a model and coefficients theta, the first whose gradient is not finite."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in parameters:
        if parameter.grad is not None and not bool(torch.isfinite(whole(parameter.grad)).all()):
            return repr(names.get(id(parameter), "theta"))
    return "the weights together"


def broken_term(relaxation: Relaxation) -> str:
    """Name the first site of which a term of the last penalty is not finite."""
    terms = relaxation.penalty_terms().items()
    broken = (key for key, pair in terms if not all(bool(torch.isfinite(term)) for term in pair))
    return next(broken, "all sites together")


class SharedBuffers:
    """Buffers that every process gathers from batches of its own, such as the statistics of BatchNorm.

    DDP would give every process those of the first one, and lose what others alone have gathered.

    Args:
        model: its floating buffers are equal in all processes to begin with.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = [buffer.detach().clone() for buffer in self._floating()]

    def _floating(self) -> list[Tensor]:
        """Return the buffers as they are now: a forward may put others in their places."""
        return [buffer for buffer in self._model.buffers() if buffer.numel() and buffer.is_floating_point()]

    @torch.no_grad()
    def share(self) -> None:
        """Set every buffer to its mean over those processes that have changed it since; all have to call it."""
        buffers = self._floating()
        changed = [float(not torch.equal(*pair)) for pair in zip(buffers, self._before, strict=True)]
        means = weighted_mean_of_each(buffers, changed)
        for now, before, mean in zip(buffers, self._before, means, strict=True):
            if mean is not None:
                now.copy_(mean)
                before.copy_(mean)


def as_tracked(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as trackers take them: numbers and strings only."""
    simple = (int, float, str, bool)
    return {name: value if isinstance(value, simple) else str(value) for name, value in data.items()}


def _require_trackers(trackers: Sequence[str]) -> None:
    from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_wandb_available

    available = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available, "mlflow": is_mlflow_available}
    for name in trackers:
        if name not in available:
            raise UsageError(f"expected a tracker among {', '.join(available)}, got {name!r}")
        if not available[name]():
            raise UsageError(f"expected the package of the tracker {name!r}, but it is missing: pip install {name}")


@contextmanager
def with_advice(precision: str, where: str) -> Iterator[None]:
    """Turn an exhausted memory, a lost process or a network that mixed precision breaks into a sentence that helps."""
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
        if _another_has_ended(error):
            raise TrainingError(
                f"expected all processes to go on until the training ends, but another one has ended "
                f"({one_line(error)}): see what it said; what was saved is whole, give the same command again to go on"
            ) from error
        if "Tensor and DTensor" in str(error):
            raise TrainingError(
                f"expected weights sharded by FSDP to be used inside their unit's own forward, but {where} used them "
                "elsewhere: let the task call model(...), not its methods or layers, or shard in larger units "
                "(--fsdp_auto_wrap_policy)"
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


def _another_has_ended(error: BaseException) -> bool:
    """Tell whether an error is that of a collective operation whose other side is gone; of gloo it has no class."""
    known = getattr(torch.distributed, "DistError", ())  # missing where torch is built without
    return isinstance(error, known) or "gloo/transport" in str(error)


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
