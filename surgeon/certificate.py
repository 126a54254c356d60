"""Proof that stripping gave back exactly the original architecture, recomputable from the two models."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.branch import branches_of
from surgeon.graph import compare_graphs, graph_hash, record
from surgeon.modes import set_training
from surgeon.types import Certificate

SHOWN = 5
"""Differences listed per check."""


@dataclass(frozen=True)
class Architecture:
    """Everything of a module that is not the value of a parameter."""

    keys: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    classes: Mapping[str, str]
    trainable: Mapping[str, bool]
    hooks: Mapping[str, int]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Architecture:
        """Read a model; buffers are copied."""
        state = model.state_dict()
        modules = list(model.named_modules())
        return cls(
            keys=tuple(state),
            shapes={key: tuple(value.shape) for key, value in state.items()},
            dtypes={key: str(value.dtype) for key, value in state.items()},
            classes={name: f"{type(module).__module__}.{type(module).__qualname__}" for name, module in modules},
            trainable={name: parameter.requires_grad for name, parameter in model.named_parameters()},
            hooks={name: _hook_count(module) for name, module in modules},
            buffers={name: buffer.detach().clone() for name, buffer in model.named_buffers()},
        )


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def _hook_count(module: nn.Module) -> int:
    """Return the number of hooks on a module and its own parameters."""
    on_parameters = sum(len(parameter._backward_hooks or ()) for parameter in module.parameters(recurse=False))
    return on_parameters + sum(len(getattr(module, name, ())) for name in _HOOKS)


def buffers_written_by_training(model: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, Tensor]:
    """Return the buffers that one training-mode forward of a copy of ``model`` changes, with their values before."""
    probe = copy.deepcopy(model)
    set_training(probe, True)
    before = {name: buffer.detach().clone() for name, buffer in probe.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        run(probe)
    after = dict(probe.named_buffers())
    return {name: value for name, value in before.items() if not _same(value, after[name])}


def _same(left: Tensor, right: Tensor) -> bool:
    """Bit-equal, NaN included."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(_bytes(left), _bytes(right))


def _bytes(tensor: Tensor) -> Tensor:
    # A copy, because a tensor can count as contiguous and still have a last stride that forbids the view.
    return tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def certify(before: nn.Module, after: nn.Module, run: Callable[[nn.Module], Any] | None = None) -> Certificate:
    """Compare two models in everything but the values of their parameters, which only have to be finite.

    Args:
        before: the original model, without branches.
        after: the stripped model.
        run: one forward on a sample batch, ``run(model)``; without it the recorded graphs are not compared and every
            changed buffer counts as a difference.

    Returns:
        The certificate; ``identical`` is the verdict, ``differences`` say in words what is not.
    """
    left, right = Architecture.of(before), Architecture.of(after)
    if left.keys != right.keys:
        # A deep copy of some generated modules (e3nn's tensor products) has more keys than the original: copy both.
        left, right = (Architecture.of(copy.deepcopy(model)) for model in (before, after))
    differences: dict[str, list[str]] = {
        "no branch left": [f"branch at {key}" for key in branches_of(after)],
        "state-dict keys and order": _differing_keys(left.keys, right.keys),
        "shapes": _differing("shape of", left.shapes, right.shapes),
        "dtypes": _differing("dtype of", left.dtypes, right.dtypes),
        "module classes": _differing("class of", left.classes, right.classes),
        "trainable flags": _differing("trainable flag of", left.trainable, right.trainable),
        "forward hooks": _differing("number of hooks of", left.hooks, right.hooks),
    }
    differences["finite weights"] = _newly_non_finite(before, after)
    written: dict[str, float] = {}
    details: dict[str, Any] = {"versions": versions(), "tensors": len(left.keys)}
    allowed = buffers_written_by_training(before, run) if run else {}
    differences["buffers"] = _differing(
        "presence of buffer", dict.fromkeys(left.buffers, "yes"), dict.fromkeys(right.buffers, "yes")
    )
    for name, value in left.buffers.items():
        other = right.buffers.get(name)
        if other is None or _same(value, other):
            continue
        if name in allowed and (value.shape, value.dtype) == (other.shape, other.dtype):
            written[name] = float((other.double() - value.double()).abs().max()) if value.numel() else 0.0
        else:
            differences["buffers"].append(f"buffer {name} changed and the model's training forward does not write it")
    if run:
        differences["recorded graph"] = _differing_graphs(before, after, run, details)
    checks = {name: not found for name, found in differences.items()}
    listed = tuple(text for found in differences.values() for text in found[:SHOWN])
    return Certificate(all(checks.values()), checks, listed, written, details=details)


def _differing_graphs(
    before: nn.Module, after: nn.Module, run: Callable[[nn.Module], Any], details: dict[str, Any]
) -> list[str]:
    graph = record(_in_eval_mode(before), forward=run).graph
    try:
        other = record(_in_eval_mode(after), forward=run).graph
    except Exception as error:  # a damaged model can fail in any way, and that is the verdict
        return [f"the forward of the result fails ({type(error).__name__}: {error})"]
    details["graph_sha256"] = [graph_hash(graph), graph_hash(other)]
    details["graph_nodes"] = len(graph.nodes)
    return compare_graphs(graph, other)


def _in_eval_mode(model: nn.Module) -> nn.Module:
    probe = copy.deepcopy(model)
    set_training(probe, False)
    return probe


def _newly_non_finite(before: nn.Module, after: nn.Module) -> list[str]:
    """Name the parameters that hold NaN or infinity, unless the original's did."""
    broken = {name for name, parameter in before.named_parameters() if not torch.isfinite(parameter).all()}
    return [
        f"parameter {name} holds NaN or infinity"
        for name, parameter in after.named_parameters()
        if name not in broken and not torch.isfinite(parameter).all()
    ]


def _differing_keys(left: tuple[str, ...], right: tuple[str, ...]) -> list[str]:
    if left == right:
        return []
    missing, added = [k for k in left if k not in right], [k for k in right if k not in left]
    if not missing and not added:
        return ["the same keys in another order"]
    return [*(f"key {key} is missing" for key in missing), *(f"key {key} was added" for key in added)]


def _differing(what: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*left, *right])
    return [
        f"{what} {name or 'the model'}: expected {left.get(name, 'nothing')}, got {right.get(name, 'nothing')}"
        for name in names
        if left.get(name) != right.get(name)
    ]


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("equisurgeon", "torch", "e3nn", "accelerate", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what times depend on: processor architecture, cores, torch's threads, accelerator."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
    }
