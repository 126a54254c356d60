"""The adapter of escnn keeps the contract, on C4 images."""

from __future__ import annotations

import warnings

import pytest

from surgeon.soundness import Model
from surgeon.testing import AdapterContract

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("escnn", reason="escnn is not installed: make test-escnn")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class TestEscnn(AdapterContract):
    adapter = "surgeon_adapters.escnn_ops:adapter"
    libraries = ("escnn", "scipy")
    group = "C4"
    folds = False
    # escnn computes its bases in float32
    tolerance = 1e-6

    def sample(self) -> Model:
        from tests.families.escnn_models import c4_images

        return c4_images().model()
