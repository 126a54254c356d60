"""Features in frames of edges, of which a forward chooses the angle about the edge at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.families.awkward.case import CHANNELS, Case, Mix, Trunk, gated


class RandomFrames(nn.Module):
    """Turn features into a frame along an edge, mix them as SO(2) about it allows, and turn them back."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.last = Mix(), Mix()
        self.along, self.across = (nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(2))
        self.turned = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)

    def forward(self, x: Tensor) -> Tensor:
        frame = self.frame(functional.normalize(x[:, 0], dim=-1))
        local = (self.mix(x) @ frame).transpose(1, 2)
        first, second = self.across(local[:, :2]).unbind(1)
        a, b = (local[:, :2] @ self.turned).unbind(1)
        local = torch.stack([first - b, second + a, self.along(local[:, 2])], dim=-1)
        return self.last(gated(local @ frame.transpose(1, 2)))

    def frame(self, edge: Tensor) -> Tensor:
        """Return columns: two at right angles to the edge, and the edge; shape (n, 3, 3)."""
        first = functional.normalize(torch.linalg.cross(edge, torch.randn_like(edge)), dim=-1)
        return torch.stack([first, torch.linalg.cross(edge, first), edge], dim=-1)


class SkewedFrames(RandomFrames):
    """What comes out depends on the angle that was drawn."""

    def frame(self, edge: Tensor) -> Tensor:
        return super().frame(edge) * torch.tensor([1.0, 1.1, 1.0], dtype=edge.dtype)


class AllFrames(nn.Module):
    """Any network in all frames that a cloud has, and the mean of what comes out; without some, no symmetry is left."""

    def __init__(self, some: bool = False) -> None:
        super().__init__()
        self.mix, self.some = Mix(), some
        self.first, self.last = nn.Linear(3 * CHANNELS, 10), nn.Linear(10, 3 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        axes = torch.linalg.eigh(x.transpose(1, 2) @ x).eigenvectors
        signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=x.dtype)] * 3)
        frames = axes[:, None] * (signs[:5] if self.some else signs)[:, None]
        local = (self.mix(x)[:, None] @ frames).flatten(2)
        local = self.last(self.first(local).tanh()).unflatten(2, (CHANNELS, 3))
        return (local @ frames.transpose(2, 3)).mean(1)


CASES = (
    Case(
        "all frames",
        "rows change places, each network between them does",
        lambda: Trunk(AllFrames()),
        {"middle.mix.x"},
        group="O3",
        audit={"middle.first.weight": "invariant", "middle.last.weight": "invariant"},
        reason=dict.fromkeys(("middle.first.weight", "middle.last.weight"), "only exchanges the rows"),
    ),
    Case(
        "some frames",
        "rows come that were not there",
        lambda: Trunk(AllFrames(some=True)),
        group="O3",
        error="to be a symmetry",
        twin=True,
    ),
    Case(
        "random frames",
        "an angle of each edge's frame is drawn in the forward, and cancels",
        lambda: Trunk(RandomFrames()),
        {"middle.mix.x", "middle.last.x"},
        audit={
            "middle.along.weight": "invariant",
            "middle.across.weight": "bypassed",
            "middle.turned": "bypassed",
        },
        reason=dict.fromkeys(
            ("middle.across.weight", "middle.turned"),
            r"frame chosen at random .* come from aten\.randn_like in middle$",
        ),
    ),
    Case(
        "skewed random frames",
        "the angle does not cancel",
        lambda: Trunk(SkewedFrames()),
        error="deterministic model, but two runs .* differ by .* come from aten.randn_like in middle:",
    ),
)
