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


CASES = (
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
