"""The example batch, its names and its axes without a fixed size; and what a task may say about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.errors import TaskError
from surgeon.export.sample import Sample, sample_of
from tests.export.graphs import GraphTask


class Given:
    """A task that yields what it is given."""

    def __init__(self, batches: Sequence[Any], axes: Any = None) -> None:
        self._batches = batches
        if axes is not None:
            self.dynamic_axes = axes

    def batches(self, split: str, seed: int) -> Sequence[Any]:
        return self._batches

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return torch.zeros(())


def sample(task: Any) -> Sample:
    return sample_of(task, torch.float32)


def shapes(batch: dict[str, Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in batch.values()]


def graph_task(sizes: Sequence[Sequence[int]], axes: Any) -> GraphTask:
    task: Any = GraphTask(sizes)
    task.dynamic_axes = axes
    return task  # type: ignore[no-any-return]


def test_images_are_sliced() -> None:
    found = sample(Given([torch.zeros(12, 2, 5, 5, dtype=torch.float64)]))
    assert found.dynamic == ((0,),)
    assert found.names == ("input_0",)
    assert found.batch.dtype == torch.float32
    assert [len(batch) for batch in (found.batch, *found.others)] == [7, 3, 5, 11]


def test_kinds_of_atoms_are_sliced_only_where_the_task_says_that_first_axes_count_samples() -> None:
    batch = {"kinds": torch.zeros(8, 5, dtype=torch.int64), "positions": torch.zeros(8, 5, 3)}
    found = sample(Given([batch], {"kinds": [0], "positions": [0]}))
    assert [shapes(each)[0] for each in (found.batch, *found.others)] == [(7, 5), (3, 5), (5, 5), (11, 5)]
    assert found.titles() == {("kinds", 0): "kinds_0", ("positions", 0): "kinds_0"}
    with pytest.raises(TaskError):  # as edges, they could point at rows
        sample(Given([batch]))


def test_clouds_of_several_sizes_are_sliced_and_keep_both_axes() -> None:
    found = sample(Given([{"points": torch.zeros(8, 3, count)} for count in (10, 12)]))
    assert found.dynamic == ((0, 2),)
    alike = sample(Given([{"points": torch.zeros(8, 3, count)} for count in (7, 12)]))  # in the example itself
    assert found.titles() == alike.titles() == {("points", 0): "points_0", ("points", 2): "points_2"}
    assert {tuple(batch["points"].shape) for batch in found.others} == {
        (3, 3, 10),
        (5, 3, 10),
        (11, 3, 10),
        (7, 3, 12),
    }


def test_graphs_stay_whole_and_the_smallest_is_the_example() -> None:
    found = sample(GraphTask(((6, 2, 3), (4, 3), (4, 4), (2, 5))))
    assert found.names == ("features", "positions", "edge_index", "batch", "ptr")
    assert found.dynamic == ((0,), (0,), (1,), (0,), (0,))
    assert shapes(found.batch) == [(7, 2), (7, 3), (2, 18), (7,), (3,)]
    assert [len(batch["batch"]) for batch in found.others] == [7, 8, 11]


def test_short_batches_are_repeated_to_compare_three_other_sizes() -> None:
    rows = torch.arange(2.0).reshape(2, 1, 1).expand(2, 3, 4)
    found = sample(Given([rows.clone()]))
    assert [batch[:, 0, 0].tolist() for batch in (found.batch, *found.others)] == [
        [0, 1],
        [0, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0],
    ]


def test_other_orders_are_tried_for_batches_of_other_sizes() -> None:
    class Shuffled(Given):
        def batches(self, split: str, seed: int) -> Sequence[Any]:
            return [self._batches[seed]]

    pairs = [(torch.zeros(nodes, 4), torch.zeros(edges)) for nodes, edges in ((3, 5), (4, 6), (5, 9), (6, 7))]
    assert [len(batch[0]) for batch in (sample(Shuffled(pairs)).batch, *sample(Shuffled(pairs)).others)] == [3, 4, 5, 6]


def test_axes_that_never_change_are_fixed_unless_the_task_names_them() -> None:
    sizes = ((4, 3, 5), (3, 3, 6), (2, 4, 6), (2, 2, 8))
    assert sample(GraphTask(sizes)).dynamic == ((), (), (1,), (), ())
    axes = {"features": 0, "positions": [0], "edge_index": {-1: "edges"}, "batch": (0,), "ptr": [0]}
    assert sample(graph_task(sizes, axes)).dynamic == ((0,), (0,), (1,), (0,), (0,))
    assert sample(graph_task(sizes, {"ptr": [0]})).dynamic == ((), (), (1,), (), (0,))


IMAGES = [torch.zeros(12, 2, 5, 5)]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (graph_task(((4, 3), (2, 2, 3)), {"node": [0]}), "inputs out of features, .*, got 'node'"),
        (graph_task(((4, 3), (2, 2, 3)), {"positions": [2]}), "axes of positions from -2 to 1 .*, got 2"),
        (Given(IMAGES, ["input_0"]), "dynamic_axes as a mapping .*, got list"),
        (Given([torch.zeros(1, 2, 5, 5)]), "all batches of the task have the same"),
        (
            Given([(torch.zeros(a, 4), torch.zeros(b)) for a, b in ((1, 3), (1, 4), (1, 5), (2, 1))]),
            "length 2 .*, got 1",
        ),
        (Given([(torch.zeros(a, 4), torch.zeros(b)) for a, b in ((2, 3), (3, 4), (4, 5))]), "4 sizes .* have 3"),
        (Given([]), "at least one batch"),
    ],
)
def test_what_does_not_fit_is_said(task: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        sample(task)
    assert not re.search(r"\n", str(caught.value))
