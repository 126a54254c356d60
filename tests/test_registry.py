"""Adapters are found by their entry point and looked up by name."""

from __future__ import annotations

import pytest
import torch

from surgeon.algebra.groups.custom import group_from_generators
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import PlanError
from surgeon.registry import CUSTOM, Adapter, adapter_named, installed_adapters, speaks_of

pytestmark = pytest.mark.e3nn


def test_the_adapter_of_e3nn_is_installed() -> None:
    found = installed_adapters()
    assert list(found) == sorted(found)
    assert adapter_named("e3nn", found) is found["e3nn"]
    assert found["e3nn"].name == "e3nn"


@pytest.mark.parametrize("installed", [True, False])
def test_an_unknown_adapter_is_an_error_that_lists_the_choices(installed: bool) -> None:
    found = installed_adapters() if installed else {}
    with pytest.raises(PlanError, match=f"'nobody'.*only .*{'e3nn' if installed else 'none'}.* is installed"):
        adapter_named("nobody", found)


@pytest.mark.parametrize(("groups", "of_a_user"), [(("C4", CUSTOM), True), (("C4",), False)])
def test_an_adapter_may_speak_of_every_group_that_users_give(groups: tuple[str, ...], of_a_user: bool) -> None:
    class Reader(Adapter):
        pass

    adapter = Reader()
    adapter.groups = groups
    about_z = group_from_generators("about z", None, torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]]))
    assert speaks_of(adapter, about_z) is of_a_user
    assert speaks_of(adapter, parse_group("C4"))
    assert not speaks_of(adapter, parse_group("C5"))
