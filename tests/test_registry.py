"""Adapters are found by their entry point and looked up by name."""

from __future__ import annotations

import pytest

from surgeon.errors import PlanError
from surgeon.registry import adapter_named, installed_adapters

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
