"""The picture of a model: valid SVG, every module once, no two boxes on top of each other."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.representations.build import representation_from
from surgeon.plan import AuditEntry, Plan
from surgeon.recording import flow
from surgeon.recording.flow import INPUT, OUTPUT, boxed_modules, data_flow
from surgeon.recording.labels import representation_in_words
from surgeon.recording.picture import model_picture
from surgeon.recording.record import record
from tests.families.awkward.case import gated, vectors
from tests.nets import default_dtype

LAYERS, SVG = 10, "{http://www.w3.org/2000/svg}"
WIDEST_LETTER = 8.0
"""Pixels of a wide letter at the size of the labels."""


class Chain(nn.Module):
    """Ten layers with skip connections over two of them, and an invariant side branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(LAYERS))
        self.scale, self.head = nn.Linear(4, 4), nn.Linear(4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale(x.square().sum(-1))[..., None]
        x = x.transpose(1, 2)
        for index, layer in enumerate(self.layers):
            y = gated(layer(x).transpose(1, 2)).transpose(1, 2)
            x = x + y if index % 3 == 2 else y
        return self.head((x.transpose(1, 2) * scale).square().sum(-1))


@pytest.fixture(scope="module")
def drawn() -> tuple[ElementTree.Element, str]:
    torch.default_generator.manual_seed(0)  # a fixture of the module is made before a test's own seed
    with default_dtype(torch.float64):
        net = Chain()
    plan = surgeon.find(net, "SO3", vectors(), adapters={}, act=lambda g, x: x @ g.T, act_output=lambda g, y: y)
    text = model_picture(data_flow(record(net.train(), vectors()), boxed_modules(plan)), plan)
    return ElementTree.fromstring(text), text


def test_many_modules_are_folded_into_those_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    audit = tuple(AuditEntry(f"{name}.weight", 1, "unexplained", "") for name in ("a.0.x", "a.0.y", "a.1.x", "b"))
    plan = Plan("SO3", (), audit=audit)
    assert list(boxed_modules(plan)) == ["a.0.x", "a.0.y", "a.1.x", "b"]
    monkeypatch.setattr(flow, "MOST", 3)
    assert boxed_modules(plan) == {"a.0": "unexplained", "a.1": "unexplained", "b": "unexplained"}
    monkeypatch.setattr(flow, "MOST", 1)
    assert boxed_modules(plan) == {"a": "unexplained", "b": "unexplained"}


def boxes(root: ElementTree.Element) -> list[tuple[float, float, float, float, list[str]]]:
    found = []
    for group in root.iter(f"{SVG}g"):
        rectangle = group.find(f"{SVG}rect")
        assert rectangle is not None
        x, y, width, height = (float(rectangle.attrib[key]) for key in ("x", "y", "width", "height"))
        found.append((x, y, width, height, [text.text or "" for text in group.iter(f"{SVG}text")]))
    return found


def test_every_module_is_there_once(drawn: tuple[ElementTree.Element, str]) -> None:
    names = [lines[0] for *_, lines in boxes(drawn[0])]
    assert sorted(names) == sorted([*(f"layers.{i}" for i in range(LAYERS)), "scale", "head", INPUT, OUTPUT])
    marked = [lines for *_, lines in boxes(drawn[0]) if "4 vectors → 4 vectors (axes -2, -1)" in lines]
    assert len(marked) == LAYERS


def test_boxes_and_texts_do_not_overlap(drawn: tuple[ElementTree.Element, str]) -> None:
    found = boxes(drawn[0])
    for i, (x, y, width, height, lines) in enumerate(found):
        assert all(len(line) * WIDEST_LETTER <= width + 20 for line in lines), lines
        for x2, y2, width2, height2, _ in found[:i]:
            assert x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y
    total = [float(value) for value in drawn[0].attrib["viewBox"].split()]
    assert all(x + width <= total[2] and y + height <= total[3] for x, y, width, height, _ in found)
    assert total[2] < 1400


def test_nothing_is_loaded_from_elsewhere(drawn: tuple[ElementTree.Element, str]) -> None:
    assert "href" not in drawn[1]
    assert drawn[1].count("http") == 1  # the name space


def test_flow_follows_the_data_and_leaves_out_shortcuts() -> None:
    net = Chain()
    found = data_flow(record(net, vectors().float()), [name for name, _ in net.named_modules() if name])
    assert ("layers.0", "layers.1") in found.edges
    assert ("layers.1", "layers.2") in found.edges
    assert ("layers.1", "layers.3") not in found.edges  # the skip connection: layers.2 says it already
    assert ("scale", "head") in found.edges
    assert ("scale", "layers.0") not in found.edges
    assert all(found.level[source] < found.level[target] for source, target in found.edges)


@pytest.mark.parametrize(
    ("rho", "words"),
    [
        ({"irreps": "2x0e+1x1o", "layout": "mul_ir"}, "2x0e+1x1o"),
        ({"axes": "c v", "sizes": {"c": 1}}, "1 vector"),
        ({"axes": "v w c", "sizes": {"c": 3}}, "3 tensors of rank 2"),
        ({"axes": "v w c", "sizes": {"c": 3}, "signs": [-1]}, "3 pseudo-tensors of rank 2"),
        ({"axes": "v w", "sizes": {}, "signs": [-1]}, "1 pseudo-tensor of rank 2"),
        ({"axes": "v", "sizes": {}, "signs": [-1]}, "1 pseudo-vector"),
        ({"axes": "v w u", "sizes": {}, "signs": [-1]}, "pseudo-tensor axes v w u"),
        ({"trivial": 5}, "5 scalars"),
    ],
)
def test_words(rho: dict[str, object], words: str) -> None:
    assert representation_in_words(representation_from("O3", rho)) == words
