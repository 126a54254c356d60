"""Small steerable networks for every kind of group and layer, with their task: copied as the task file of a user."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.opening.task_calls import task_symmetry
from surgeon.support.copies import copied
from surgeon.testing.soundness import Model

KINDS = {
    "c4-images": ("C4", "rot2dOnR2", 4),
    "c8-images": ("C4", "rot2dOnR2", 8),
    "d4-images": ("D4", "flipRot2dOnR2", 4),
    "so2-images": ("C4", "rot2dOnR2", -1),
    "o2-images": ("D4", "flipRot2dOnR2", -1),
    "so3-volumes": ("OCTA", "rot3dOnR3", 2),
    "o3-volumes": ("OCTAH", "flipRot3dOnR3", 2),
    "c4-volumes": ("tests.families.escnn_kinds:about_z", "rot2dOnR3", 4),
    "so2-volumes": ("tests.families.escnn_kinds:about_z", "rot2dOnR3", -1),
    "c6-vectors": ("C6", "cyclic_group", 6),
    "d5-vectors": ("D5", "dihedral_group", 5),
    "so2-vectors": ("SO2", "so2_group", 2),
    "o2-vectors": ("O2", "o2_group", 2),
    "so3-vectors": ("SO3", "so3_group", 2),
    "o3-vectors": ("O3", "o3_group", 2),
}
"""Kind to the group that it is relaxed under, and to the function of escnn that makes its own, with an argument."""

SIZE = {"images": (7, 7), "volumes": (5, 5, 5), "vectors": ()}


def about_z() -> tuple[None, list[list[list[int]]]]:
    """Quarter turns of space about the last of its coordinates, as a group of one's own."""
    return None, [[[0, -1, 0], [1, 0, 0], [0, 0, 1]]]


def about_x() -> tuple[None, list[list[list[int]]]]:
    """Quarter turns about another axis."""
    return None, [[[1, 0, 0], [0, 0, -1], [0, 1, 0]]]


def space_of(kind: str) -> Any:
    """Return the G-space of a kind."""
    from escnn import group, gspaces

    _, name, argument = KINDS[kind]
    if kind.endswith("vectors"):
        return gspaces.no_base_space(getattr(group, name)(argument))
    return getattr(gspaces, name)(argument, **({"maximum_frequency": 2} if argument == -1 else {}))


def hidden_fields(space: Any) -> list[Any]:
    """Return scalars, vectors and a further irrep, and the regular representation of a finite group."""
    group = space.fibergroup
    name = type(group).__name__
    vectors, further = {"O3": ((1, 1), (0, 2)), "O2": ((1, 1), (1, 2)), "DihedralGroup": ((1, 1), (1, 2))}.get(
        name, ((1,), (2,))
    )
    irreps = [group.trivial_representation, group.irrep(*vectors), group.irrep(*further)]
    return [*irreps, group.regular_representation] if group.order() > 0 else irreps


class Net(nn.Module):
    """Two steerable layers with gates by the norms of fields, and an invariant."""

    def __init__(self, kind: str) -> None:
        from escnn import nn as enn

        super().__init__()
        self.geometric, space = enn.GeometricTensor, space_of(kind)
        layer = {"images": enn.R2Conv, "volumes": enn.R3Conv, "vectors": enn.Linear}[kind.split("-")[1]]
        settings = {} if layer is enn.Linear else {"kernel_size": 3, "padding": 1}
        group = space.fibergroup
        inputs = 2 * [group.trivial_representation]
        if not settings:
            inputs += 2 * [getattr(group, "standard_representation", lambda: hidden_fields(space)[1])()]
        type_in, hidden = enn.FieldType(space, inputs), enn.FieldType(space, hidden_fields(space))
        self.first, self.second = layer(type_in, hidden, **settings), layer(hidden, hidden, **settings)
        self.sizes = [each.size for each in hidden.representations]
        self.head = nn.Linear(len(self.sizes), 2)

    def plain(self) -> nn.Module:
        """Return the same network of layers of torch alone, by escnn's own export; this one is in eval mode then."""
        result = copied(self.train())
        self.eval()
        result.first, result.second = self.first.export(), self.second.export()
        return result

    def _run(self, layer: Any, x: Tensor) -> Tensor:
        result: Tensor = layer(x) if not hasattr(layer, "in_type") else layer(self.geometric(x, layer.in_type)).tensor
        return result

    def forward(self, x: Tensor) -> Tensor:
        """Return two invariants, shape (b, 2)."""
        h = self._run(self.first, x)
        parts = [part * torch.tanh(part.norm(dim=1, keepdim=True)) for part in h.split(self.sizes, dim=1)]
        h = self._run(self.second, torch.cat(parts, dim=1))
        norms = torch.stack([part.norm(dim=1) for part in h.split(self.sizes, dim=1)], dim=1)
        result: Tensor = self.head(torch.tanh(norms).flatten(2).mean(2) if norms.ndim > 2 else torch.tanh(norms))
        return result


class KindTask:
    """Random scalars on a grid, or scalars and vectors without one; the target is an invariant of each sample."""

    input_names = ("features",)
    output_names = ("scores",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def model(self) -> nn.Module:
        return Net(self.kind).train()  # a new layer of escnn has the buffers of eval mode, too

    def batches(self, split: str, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(len(split))
        size = SIZE[self.kind.split("-")[1]]
        dimension = 2 if size else 2 + 2 * (3 if "o3" in self.kind else 2)
        for count in (12, 9, 7, 5):
            yield torch.randn(count, dimension, *size, generator=generator)

    def loss(self, outputs: Tensor, batch: Tensor) -> Tensor:
        return (outputs - batch.flatten(1).square().mean(1, keepdim=True)).square().mean()

    def act(self, g: Tensor, batch: Tensor) -> Tensor:
        if batch.ndim == 2:
            vectors = batch[:, 2:].unflatten(1, (2, -1))
            return torch.cat([batch[:, :2], (vectors @ g.to(batch).T).flatten(1)], dim=1)
        # columns run along x, rows against y, planes against z; coordinates in the order of the axes, the last is x
        signs = torch.ones(len(g), dtype=torch.float64)
        signs[:-1] = -1
        matrix = (signs[:, None] * g.flip(0, 1) * signs).round()
        source = matrix.abs().argmax(1).tolist()
        moved = batch.permute(0, 1, *(2 + axis for axis in source))
        return moved.flip([2 + axis for axis, old in enumerate(source) if matrix[axis, old] < 0])

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        return outputs


def make_task(kind: str) -> KindTask:
    """Return the task of a kind."""
    return KindTask(kind)


def model_of(kind: str) -> Model:
    """Return the network of a kind in float64 with an input, and how the group acts on both ends."""
    torch.manual_seed(0)
    task = make_task(kind)
    # a copy: escnn shares bases between the models of a process, and a cast would reach them all
    module = copied(task.model()).double().eval()
    batch = next(task.batches("validation", 0)).double()[:4]
    return Model(module, (batch,), task_symmetry(task, parse_group(KINDS[kind][0])))
