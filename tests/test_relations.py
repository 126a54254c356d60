"""Images of a finite group's generators have to multiply as the generators do."""

from __future__ import annotations

import pytest
import torch

from surgeon.groups import parse_group
from surgeon.inference.axis import respects_relations
from surgeon.representations import regular


@pytest.mark.parametrize("name", ["C2", "C3", "D3", "OCTAH"])
def test_only_representations_respect_the_relations(name: str) -> None:
    group = parse_group(name)
    for images in (group.elements, regular(group, 1).action(group.elements).dense()):
        assert respects_relations(group, list(images))
        assert not respects_relations(group, [1.1 * images[0], *images[1:]])
    assert not respects_relations(group, list(torch.randn(len(group.elements), 2, 2, dtype=torch.float64)))
