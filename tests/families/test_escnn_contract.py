"""The adapter of escnn keeps the contract: images, volumes, and fields without a grid."""

from __future__ import annotations

import warnings
from typing import ClassVar

import pytest

from surgeon.testing.contract import AdapterContract
from surgeon.testing.soundness import Model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("escnn", reason="escnn is not installed: make test-escnn")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class TestEscnn(AdapterContract):
    adapter = "surgeon_adapters.escnn.adapter:adapter"
    libraries = ("escnn", "scipy")
    # escnn computes its bases in float32
    tolerance = 1e-6

    def sample(self) -> Model:
        from tests.families.escnn_models import c4_images

        return c4_images().model()


class OfKind(AdapterContract):
    """The contract on a network of one kind of field; what does not depend on the network is checked once, above."""

    adapter, tolerance = TestEscnn.adapter, TestEscnn.tolerance
    kind: ClassVar[str]
    test_it_is_registered_under_its_name = None
    test_importing_it_imports_no_library = None

    def sample(self) -> Model:
        from tests.families.escnn_kinds import model_of

        return model_of(self.kind)


class TestDihedralImages(OfKind):
    kind = "d4-images"


class TestAllPlanarMotions(OfKind):
    kind = "o2-vectors"


class TestVolumes(OfKind):
    kind = "so3-volumes"


class TestRotationsOfSpace(OfKind):
    kind = "so3-vectors"


class TestReflectionsOfSpace(OfKind):
    kind = "o3-vectors"
