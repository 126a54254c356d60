"""Running statistics of normalisation layers, measured anew on the clean model.

During training they are gathered by the relaxed forward (theta > 0), but it is the clean model that uses them.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import SurgeryError, UsageError
from surgeon.support.modes import in_evaluation_mode

Forward = Callable[[nn.Module, Any], Any]

INDEPENDENT = 1e-3
"""Largest share of an earlier value that statistics may keep at momentum 1; rounding on an accelerator is far below."""


@dataclass(frozen=True)
class StatisticsChange:
    """What a recalibration did to one layer.

    Attributes:
        mean: change of the running mean, root mean square over channels, relative to the old standard deviation (to
            the old mean, if the layer keeps no variance); dimensionless.
        variance: change of the other statistics, root mean square over channels, relative to the old ones;
            dimensionless.
        calls: how often the layer was called; each call counts once in the mean.
        note: why the layer was left as it was; empty if it was recalibrated.
    """

    name: str
    mean: float = 0.0
    variance: float = 0.0
    calls: int = 0
    note: str = ""

    @property
    def largest(self) -> float:
        """The larger one of the two changes."""
        return max(self.mean, self.variance)


def statistics_of(layer: nn.Module) -> dict[str, Tensor]:
    """Return a module's own floating buffers ``running_*`` or ``*_running_*``, without those of its children."""
    own = layer.named_buffers(recurse=False)
    return {name: value for name, value in own if "_running_" in f"_{name}" and value.is_floating_point()}


def layers_with_statistics(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules that hold running statistics by qualified name, whether or not they have a momentum."""
    return {name: module for name, module in model.named_modules() if statistics_of(module)}


def running_statistics(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return copies of all running statistics, by name of the layer and of the buffer."""
    return {
        name: {key: value.detach().clone() for key, value in statistics_of(layer).items()}
        for name, layer in layers_with_statistics(model).items()
    }


def gathered_since(model: nn.Module, before: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Name the layers whose statistics are no longer, to the bit, what :func:`running_statistics` once returned."""
    return [
        name
        for name, layer in layers_with_statistics(model).items()
        if name not in before or not _same(before[name], statistics_of(layer))
    ]


def _same(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> bool:
    # the model may have moved to another device since
    return before.keys() == now.keys() and all(torch.equal(before[key].to(value), value) for key, value in now.items())


def recalibrate(
    model: nn.Module, batches: Iterable[Any], forward: Forward, only: Collection[str] | None = None
) -> tuple[StatisticsChange, ...]:
    """Set running statistics, in place, to their mean over batches of the model as it now is.

    The i-th call of a layer uses momentum 1/i, which makes an exponential mean the mean over all calls: every batch
    counts the same, whatever its number of rows (this is torch's own cumulative mean; a mean over rows would need their
    number in every layer). Only these layers are in training mode, so there is no dropout. Modes, momenta and
    ``num_batches_tracked`` are as before afterwards, and on an exception the statistics, too. At its first call each
    layer is run twice more, to find out whether it uses its momentum in this way.

    Args:
        model: without branches, or inside of ``relaxation.clean()``.
        batches: training batches; not read if there is nothing to recalibrate.
        forward: ``forward(model, batch)``; gradients are enabled, because some models differentiate inside.
        only: names of the layers to recalibrate; default all. The others normalise by the statistics they have.

    Returns:
        One change for each layer that holds running statistics; those left alone carry a ``note``. These are layers
        without a momentum that can be set, or that use it in another way, that are frozen (momentum 0, or in eval mode
        while the model is in training mode), or that the batches do not reach.

    Raises:
        UsageError: if there is no batch.
        SurgeryError: if a statistic becomes NaN or infinite.
    """
    found = layers_with_statistics(model)
    if only is not None:
        found = {name: layer for name, layer in found.items() if name in only}
    notes = {name: note for name, layer in found.items() if (note := _unsuitable(layer, model.training))}
    layers = {name: layer for name, layer in found.items() if name not in notes}
    if not layers:
        return tuple(StatisticsChange(name, note=note) for name, note in notes.items())
    before = _Snapshot(layers)
    try:
        with _only_training(model, layers.values()), _cumulative(layers) as (calls, found_out), torch.enable_grad():
            empty = True
            for batch in batches:
                forward(model, batch)
                empty = False
            if empty:
                raise UsageError("expected at least one batch to recalibrate normalisation statistics on, got none")
        notes |= found_out | {name: before.why_not_called(name) for name in layers if not calls[name]}
        before.finish([name for name in layers if name not in notes])
    except BaseException:
        before.restore()
        raise
    return tuple(
        StatisticsChange(name, note=notes[name])
        if name in notes
        else StatisticsChange(name, *before.change(name), calls[name])
        for name in found
    )


@contextmanager
def recalibrated(
    model: nn.Module, batches: Iterable[Any], forward: Forward, only: Collection[str] | None = None
) -> Iterator[tuple[StatisticsChange, ...]]:
    """Recalibrate while the context is open, and put the previous statistics back at its end.

    For clean evaluation in the middle of a training, while ``relaxation.clean()`` is open. The arguments and errors are
    those of :func:`recalibrate`; the context gives what it returns.
    """
    layers = layers_with_statistics(model).items()
    before = _Snapshot({name: layer for name, layer in layers if not isinstance(layer, torch.jit.ScriptModule)})
    try:
        yield recalibrate(model, batches, forward, only)
    finally:
        before.restore()


def _unsuitable(layer: nn.Module, training: bool) -> str:
    """Say why a layer cannot be recalibrated, before it is tried; an empty string if it can."""
    if isinstance(layer, torch.jit.ScriptModule):
        return "it is compiled by TorchScript, which fixes its momentum"
    momentum = getattr(layer, "momentum", "missing")
    if momentum is not None and not isinstance(momentum, Real):
        return "it has no momentum that is a number or None"
    try:
        layer.momentum = momentum  # type: ignore[assignment]
    except AttributeError:
        return "its momentum cannot be set"
    if momentum == 0:
        return "its momentum is 0, so that training leaves its statistics alone"
    if training and not layer.training:
        return "it is in eval mode while the model is in training mode"
    return ""


@contextmanager
def _only_training(model: nn.Module, layers: Iterable[nn.Module]) -> Iterator[None]:
    """Put these layers into training mode and everything else into eval mode; put modes and keys back afterwards."""
    trained = set(layers)
    others = [m for m in model.modules() if m not in trained and not isinstance(m, torch.jit.ScriptModule)]
    buffers = {module: dict(module.named_buffers(recurse=False, remove_duplicate=False)) for module in others}
    try:
        with in_evaluation_mode(model):
            for layer in trained:
                layer.training = True
            yield
    finally:
        for module, before in buffers.items():  # some layers cache their kernels while in eval mode
            after = dict(module.named_buffers(recurse=False, remove_duplicate=False))
            for key in after.keys() - before.keys():
                delattr(module, key)
            module._buffers.update({key: value for key, value in before.items() if after.get(key) is not value})


@contextmanager
def _cumulative(layers: Mapping[str, nn.Module]) -> Iterator[tuple[Counter[str], dict[str, str]]]:
    """Make layers gather the mean over their calls, and give the number of calls and why some layers do not."""
    calls: Counter[str] = Counter()
    notes: dict[str, str] = {}

    def before_call(name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        if not layer.training:
            return
        calls[name] += 1
        layer.momentum = 1.0 / calls[name]  # type: ignore[assignment]
        if calls[name] == 1 and not _forgets(layer, lambda: layer.forward(*args, **kwargs)):
            notes[name] = "at momentum 1 its statistics are not those of the last batch"
            layer.training = False  # from this call on it is used as it will remain

    momenta = {layer: layer.momentum for layer in layers.values()}
    handles = [
        layer.register_forward_pre_hook(functools.partial(before_call, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield calls, notes
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in momenta.items():
            layer.momentum = momentum


def _forgets(layer: nn.Module, run: Callable[[], Any]) -> bool:
    """Tell whether the statistics after a run do not depend on those before it.

    If so they are 0 afterwards (0 * NaN would be NaN in the next update), and as they were otherwise.
    """
    own = layer.named_buffers(recurse=False)
    before = {key: value.detach().clone() for key, value in own}
    with torch.no_grad():
        for value in statistics_of(layer).values():
            value.zero_()
        run()
        once = {key: value.detach().clone() for key, value in statistics_of(layer).items()}
        for key, value in statistics_of(layer).items():
            value.copy_(1 + once[key].abs())
        run()
        kept = {key: (value - once[key]).abs() / (1 + once[key].abs()) for key, value in statistics_of(layer).items()}
        forgets = not any(bool((share > INDEPENDENT).any()) for share in kept.values())
        for key, value in layer.named_buffers(recurse=False):
            value.copy_(torch.zeros_like(value) if forgets and key in once else before[key])
    return forgets


class _Snapshot:
    """All buffers of some layers, as objects and by value."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self._objects = {name: dict(layer.named_buffers(recurse=False)) for name, layer in layers.items()}
        self._values = {
            name: {key: value.detach().clone() for key, value in buffers.items()}
            for name, buffers in self._objects.items()
        }

    def restore(self) -> None:
        """Put everything back."""
        self._put(self._values)

    def finish(self, recalibrated: Collection[str]) -> None:
        """Keep the new statistics of some layers and put everything else back.

        Raises:
            SurgeryError: if one of them is NaN or infinite; nothing is put back then.
        """
        wanted = dict(self._values)
        for name in recalibrated:
            new = {key: value.detach().clone() for key, value in statistics_of(self._layers[name]).items()}
            bad = [key for key, value in new.items() if not torch.isfinite(value).all()]
            if bad:
                raise SurgeryError(
                    f"expected finite statistics of the normalisation layer {name!r}, got NaN or infinity in {bad[0]}: "
                    "look for broken samples among the training batches; the statistics are as they were"
                )
            wanted[name] = self._values[name] | new
        self._put(wanted)

    def why_not_called(self, name: str) -> str:
        """Say what became of a layer that was not called."""
        if any(
            not torch.equal(value, self._values[name][key]) for key, value in statistics_of(self._layers[name]).items()
        ):
            return "its statistics are written without calling it"
        return "the batches do not reach it"

    def _put(self, values: Mapping[str, Mapping[str, Tensor]]) -> None:
        # Into the tensors that were there, which others may hold; some layers put new ones in their place.
        with torch.no_grad():
            for name, layer in self._layers.items():
                for key, buffer in self._objects[name].items():
                    buffer.copy_(values[name][key])
                    layer._buffers[key] = buffer

    def change(self, name: str) -> tuple[float, float]:
        """Return the relative change of means and of other statistics since the snapshot."""
        old, means, others = self._values[name], [0.0], [0.0]
        for key, new in statistics_of(self._layers[name]).items():
            changed = _root_mean_square(new - old[key])
            variance = old.get(key.replace("mean", "var")) if "mean" in key else None
            deviation = 0.0 if variance is None else math.sqrt(abs(float(variance.double().mean())))
            scale = deviation or _root_mean_square(old[key])
            (means if "mean" in key else others).append(changed / scale if scale else changed and math.inf)
        return max(means), max(others)


def _root_mean_square(value: Tensor) -> float:
    return float(value.detach().double().square().mean().sqrt()) if value.numel() else 0.0
