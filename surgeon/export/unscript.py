"""Turn copies of models with TorchScript inside into eager ones that compute the same bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import CheckFailedError
from surgeon.export.stripped import Stripped
from surgeon.export.torchscript import Unscripted
from surgeon.opening.evaluation import outputs_on
from surgeon.support.copies import copied
from surgeon.support.trees import tensors_in

RUNS = 3
"""Runs of a scripted model, of which an eager one has to give the bits of one."""


def find_scripted(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost TorchScript modules by qualified name; a shared one goes by its first."""
    inside: list[str] = []
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and not any(name.startswith(above) for above in inside):
            found[name] = module
            inside.append(f"{name}." if name else "")
    return found


def unscripted(models: Sequence[nn.Module], run: Callable[[nn.Module], Sequence[Tensor]]) -> list[nn.Module]:
    """Return eager equivalents of models of one architecture; the models themselves stay as they are.

    Without TorchScript in any of them they are returned themselves. Otherwise all are copied: e3nn before 0.5 scripts
    its layers when they are copied, and copies of one architecture are then alike.

    Args:
        models: without branches.
        run: the outputs of a model on a sample, in eval mode.

    Raises:
        CheckFailedError: if something cannot be run outside of TorchScript, or a copy has other keys or other outputs.
    """
    if not any(find_scripted(model) for model in models):
        return list(models)
    return [_unscripted(copied(model), run) for model in models]


def _unscripted(model: nn.Module, run: Callable[[nn.Module], Sequence[Tensor]]) -> nn.Module:
    scripted, keys = find_scripted(model), list(model.state_dict())
    # TorchScript optimises what it has run once, and then rounds derivatives in another way.
    before = [run(model) for _ in range(RUNS)]
    done: dict[nn.Module, Unscripted] = {}
    for name, module in scripted.items():
        done[module] = Unscripted(module, name or type(model).__name__)
    if model in done:
        model = done[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in done:
                _replace(parent, name, done[child])
    _check(model, keys, before, run(model), ", ".join(scripted))
    return model


def _replace(parent: nn.Module, name: str, eager: nn.Module) -> None:
    parent._modules[name] = eager
    generated = getattr(parent, "__codegen__", None)
    if isinstance(generated, list) and name in generated:
        # What e3nn lists here it saves as TorchScript when the parent is copied.
        parent.__dict__["__codegen__"] = [other for other in generated if other != name]


def _check(
    model: nn.Module, keys: Sequence[str], before: Sequence[Sequence[Tensor]], after: Sequence[Tensor], where: str
) -> None:
    left = find_scripted(model)
    if left:
        name, module = next(iter(left.items()))
        kind = getattr(module, "original_name", type(module).__name__)
        raise CheckFailedError(
            f"{name} ({kind}) is a TorchScript module that could not be replaced by an eager one: "
            "build the model without scripting it"
        )
    same = any(len(run) == len(after) and all(map(torch.equal, run, after)) for run in before)
    if list(model.state_dict()) != list(keys) or not same:
        what = "outputs" if list(model.state_dict()) == list(keys) else "keys"
        raise CheckFailedError(
            f"without TorchScript the model has other {what} than with it (scripted: {where[:200]}): "
            "build the model without scripting it"
        )


def eager(stripped: Stripped, batch: Any) -> Stripped:
    """Return model and original without TorchScript, which torch.export does not see through."""

    def run(model: nn.Module) -> list[Tensor]:
        return tensors_in(outputs_on(model, stripped.task, [batch])[0])

    model, original = unscripted([stripped.model, stripped.original], run)
    return dataclasses.replace(stripped, model=model, original=original)
