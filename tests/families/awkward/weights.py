"""Weights that are borrowed, tied, computed, unused, or not matrices at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.families.awkward.case import CHANNELS, Case, Mix, Trunk, gated


class Borrowed(nn.Module):
    """The caller multiplies by its child's weight; the child's forward never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.child = Mix(), Mix()

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,ncv->nov", self.child.weight, gated(self.mix(x)))


class BorrowedAndCalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child, self.mix = Mix(), Mix()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:  # torch.fx cannot follow this
            return x
        return torch.einsum("oc,ncv->nov", self.child.weight, gated(self.child(self.mix(x))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Mix(), Mix()
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(gated(self.first(x)))


class Rescaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("co,ncv->nov", self.weight / CHANNELS**0.5, x)


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.upper = nn.Parameter(torch.randn(1, CHANNELS))
        self.lower = nn.Parameter(torch.randn(CHANNELS - 1, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.upper, self.lower]) @ x


class Supplied(nn.Module):
    """Matrices from another network, one per point: an op without weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.hyper = Mix(), nn.Linear(CHANNELS, CHANNELS * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        matrices = self.hyper(x.square().sum(-1)).unflatten(-1, (CHANNELS, CHANNELS))
        return torch.bmm(matrices, self.mix(x))


class Factor(nn.Module):
    """One factor per entry."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class OnlyScales(nn.Module):
    """Scales vectors, and squares of their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.scale, self.squares = Mix(), Factor(CHANNELS, 1), Factor(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.scale(self.mix(x))
        return h * self.squares(h.square().sum(-1)).tanh()[..., None]


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(3, CHANNELS), Mix()
        self.register_buffer("species", torch.tensor([0, 1, 2, 0, 1, 2, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x * self.table(self.species)[..., None])


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.spare, self.frozen = Mix(), Mix(), Mix()
        self.frozen.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(gated(self.mix(x)))


class Cached(nn.Module):
    """In eval mode the kernel of the last training step is used instead of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS))
        self.kernel: Tensor | None = None

    def train(self, mode: bool = True) -> Cached:
        super().train(mode)
        self.kernel = None if mode else torch.tanh(self.weight)
        return self

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel if self.kernel is not None else torch.tanh(self.weight)
        return torch.einsum("oc,ncv->nov", kernel, x)


class KeptForEvaluation(nn.Module):
    """A buffer of eval mode alone holds what the weight makes: the state dict has a key more in that mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS))

    def train(self, mode: bool = True) -> KeptForEvaluation:
        if mode:
            self._buffers.pop("kernel", None)
        elif "kernel" not in self._buffers:
            self.register_buffer("kernel", 2 * self.weight.detach())
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,ncv->nov", 2 * self.weight if self.training else self.get_buffer("kernel"), x)


class TunedForEvaluation(KeptForEvaluation):
    """What is kept for eval mode, components and all, is not what the weight makes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 if self.training else x.new_tensor([1.0, 1.0, 1.1]))


class NoEffect(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.lost, self.silenced = Mix(), Mix(), Mix()

    def forward(self, x: Tensor) -> Tensor:
        self.lost(x)
        return self.mix(x) + 0.0 * self.silenced(x)


def _normed() -> nn.Module:
    """On the last axis of (n, 3, c)."""
    return parametrizations.weight_norm(nn.Linear(CHANNELS, CHANNELS, bias=False))


class Parametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = _normed()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.transpose(1, 2)).transpose(1, 2)


class Scripted(nn.Module):
    """A TorchScript child takes no branch."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()
        self.compiled = torch.jit.script(nn.Linear(CHANNELS, CHANNELS, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.compiled(self.mix(x).transpose(1, 2)).transpose(1, 2)


class ZeroInitialised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Mix(), Mix()
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(gated(self.first(x)))


CASES = (
    Case(
        "borrowed",
        "weight read by the caller, traced and rewritten",
        lambda: Trunk(Borrowed()),
        {"middle.mix.x", "middle.child_weight"},
    ),
    Case(
        "borrowed and called",
        "a branch at the child would miss one of two uses; at the other one, which is the caller's, it acts",
        lambda: Trunk(BorrowedAndCalled()),
        {"middle.mix.x", "middle.child_weight"},
    ),
    Case("tied", "one parameter in two modules", lambda: Trunk(Tied()), {"middle.first.x", "middle.second.x"}),
    Case("rescaled", "transposed and rescaled weight", lambda: Trunk(Rescaled()), {"middle.x"}),
    Case(
        "concatenated",
        "one matrix from two parameters",
        lambda: Trunk(Concatenated()),
        {"middle.x"},
        audit={"middle.upper": "site", "middle.lower": "site"},
    ),
    Case(
        "supplied",
        "weights from another network",
        lambda: Trunk(Supplied()),
        {"middle.mix.x"},
        audit={"middle.hyper.weight": "invariant"},
    ),
    Case(
        "only scales",
        "a factor per channel is no mixing map",
        lambda: Trunk(OnlyScales()),
        {"middle.mix.x"},
        audit={"middle.scale.factor": "not linear", "middle.squares.factor": "not linear"},
    ),
    Case(
        "embedding",
        "a table is looked up",
        lambda: Trunk(Embedded()),
        {"middle.mix.x"},
        audit={"middle.table.weight": "not linear"},
    ),
    Case(
        "unused and frozen",
        "parameters that take no part",
        lambda: Trunk(Unused()),
        {"middle.mix.x"},
        audit={"middle.spare.weight": "unused", "middle.frozen.weight": "frozen"},
    ),
    Case("keys of one mode", "eval mode has a buffer more", lambda: Trunk(KeptForEvaluation()), {"middle.x"}),
    Case(
        "keys of one mode that break",
        "only training mode is equivariant",
        lambda: Trunk(TunedForEvaluation()),
        error="to be a symmetry of the model",
        twin=True,
    ),
    Case("cached kernel", "eval mode does not use the parameter", lambda: Trunk(Cached()), {"middle.x"}),
    Case(
        "no effect",
        "results that are dropped or multiplied by 0",
        lambda: Trunk(NoEffect()),
        {"middle.mix.x"},
        audit={"middle.lost.weight": "no effect", "middle.silenced.weight": "no effect"},
    ),
    Case("weight norm", "a parametrised weight", lambda: Trunk(Parametrised()), {"middle.mix.input"}),
    Case(
        "TorchScript",
        "a scripted child",
        lambda: Trunk(Scripted()),
        {"middle.mix.x"},
        audit={"middle.compiled.weight": "bypassed"},
    ),
    Case(
        "zero initialised",
        "a last layer that is 0",
        lambda: Trunk(ZeroInitialised()),
        {"middle.first.x", "middle.last.x"},
        sound=False,
    ),
)
