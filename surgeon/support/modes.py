"""Training and eval mode of models, exported ones included, and the dtypes and devices that they run in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def set_training(module: nn.Module, training: bool) -> None:
    """Put a module into training or eval mode, in place.

    The module of a ``torch.export`` program was traced in one mode and refuses to change; only its flags are set.
    """
    try:
        module.train(training)
    except NotImplementedError:
        for part in module.modules():
            part.training = training


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every module back into its own mode when the context closes.

    Each module whose mode differs is told by its ``train``, from the outside in: some modules rebuild there what they
    cache in eval mode, and would otherwise be left with the tensors of the other mode.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        with torch.no_grad():  # what is rebuilt belongs to no graph
            for module, mode in modes.items():
                if module.training != mode:
                    set_training(module, mode)
        for module, mode in modes.items():
            module.training = mode  # of modules that keep their parts in a mode of their own choice


def rebuilds(module: nn.Module) -> bool:
    """Tell whether a module, or one inside it, does more than take note when its mode changes."""
    return any(getattr(part.train, "__func__", None) is not nn.Module.train for part in module.modules())


def renew(module: nn.Module) -> None:
    """Let a module rebuild what it keeps of its weights in eval mode, as some libraries do, after these changed."""
    if rebuilds(module):
        with modes_kept(module):
            set_training(module, True)


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and every module back into its own mode afterwards."""
    with modes_kept(model):
        set_training(model, False)
        yield


def names_in_evaluation(model: nn.Module) -> set[str]:
    """Return the names of the state dict in eval mode, for which some libraries compute tensors of their own."""
    with in_evaluation_mode(model):
        return set(model.state_dict())


def drop_computed(model: nn.Module) -> set[str]:
    """Take off, in place, the tensors that a model computes of its weights in eval mode, and return their names.

    A model that has such (of escnn's layers) is left in training mode, in which it computes with its weights.
    """
    if not rebuilds(model):
        return set()
    evaluated = names_in_evaluation(model)
    with in_training_mode(model):
        computed = evaluated - set(model.state_dict())
    if computed:
        set_training(model, True)
    return computed


@contextmanager
def in_training_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into training mode and every module back into its own mode afterwards.

    In eval mode some libraries use cached kernels instead of their parameters.
    """
    with modes_kept(model):
        set_training(model, True)
        with torch.enable_grad():
            yield


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU if it has none."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def model_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the model's first floating parameter, or of real and imaginary parts if that is complex."""
    real = (p.real if p.is_complex() else p for p in model.parameters())
    return next((p.dtype for p in real if p.is_floating_point()), torch.float32)


@contextmanager
def each_with(holders: Iterable[Any], name: str, value: Any) -> Iterator[None]:
    """Give one attribute of some objects another value while the context is open."""
    before = [(holder, getattr(holder, name)) for holder in holders]
    for holder, _ in before:
        setattr(holder, name, value)
    try:
        yield
    finally:
        for holder, own in before:
            setattr(holder, name, own)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype while the context is open."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
