"""Layers of e3nn whose classes are not e3nn's: out of an archive of torch.package, and of a copy inside a package."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
import warnings
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.package.package_exporter import PackageExporter
from torch.package.package_importer import PackageImporter

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import irreps
from surgeon.proof.architecture import Architecture
from surgeon.support.e3nn_compat import import_e3nn
from surgeon_adapters.e3nn_layers.adapter import adapter
from tests.nets import state

pytestmark = pytest.mark.e3nn

SOURCE = """
import torch
from {e3nn} import o3


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = o3.Linear("2x0e+2x1o", "3x0e+2x1o", biases=True)
        self.product = o3.FullyConnectedTensorProduct("3x0e+2x1o", "1x0e+1x1o", "2x0e+2x1o")
        self.last = o3.Linear("2x0e+2x1o", "1x0e+1x1o")

    def forward(self, x, y):
        return self.last(self.product(self.first(x), y))
"""
VENDOR = "carrier._vendor.e3nn"
RHO_X, RHO_Y, RHO_OUT = (irreps(parse_group("O3"), each) for each in ("2x0e+2x1o", "1x0e+1x1o", "1x0e+1x1o"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable package ``carrier``, which is forgotten afterwards."""
    (tmp_path / "carrier" / "_vendor").mkdir(parents=True)
    for part in ("", "_vendor/"):
        (tmp_path / "carrier" / f"{part}__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "carrier"
    for name in [name for name in sys.modules if name.partition(".")[0] == "carrier"]:
        del sys.modules[name]


def network(folder: Path, e3nn: str) -> Any:
    """Return the network, on layers of the package of this name."""
    (folder / "network.py").write_text(SOURCE.format(e3nn=e3nn))
    with torch.serialization.safe_globals([slice]), warnings.catch_warnings():  # e3nn before 0.5
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("carrier.network").Network()


def packaged(folder: Path) -> Any:
    """Return the network as it comes out of an archive that holds its code and e3nn's."""
    if (Path(import_e3nn().__file__ or "").parent / "constants.pt").exists():
        pytest.skip("this e3nn reads a file beside its code, which an archive does not hold")
    with warnings.catch_warnings(), PackageExporter(folder / "network.pt") as exporter:
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        exporter.intern(["e3nn.**", "carrier.**"])
        exporter.extern("**", exclude=["e3nn.**", "carrier.**"])
        exporter.save_pickle("network", "network.pkl", network(folder, "e3nn"))
    return opened(folder)


def opened(folder: Path) -> Any:
    with torch.serialization.safe_globals([slice]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PackageImporter(folder / "network.pt").load_pickle("network", "network.pkl")


def vendored(folder: Path) -> Any:
    """Return the network on a copy of e3nn that is part of another package."""
    source = Path(sys.modules[import_e3nn().__name__.partition(".")[0]].__file__ or "").parent
    shutil.copytree(source, folder / "_vendor" / "e3nn", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (folder / "_vendor" / "e3nn").rglob("*.py"):
        text = re.sub(r"^(\s*from) e3nn\b", rf"\1 {VENDOR}", file.read_text(), flags=re.MULTILINE)
        text = re.sub(r"^(\s*)import e3nn$", rf"\1import {VENDOR} as e3nn", text, flags=re.MULTILINE)
        file.write_text(text)
    return network(folder, VENDOR)


@pytest.fixture(params=[packaged, vendored], ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest, folder: Path) -> Any:
    made = request.param(folder)
    assert not isinstance(made.first, import_e3nn().Linear)
    return made


def act(g: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    moved = [rho.action(g).to(each).apply(each)[0] for rho, each in ((RHO_X, x), (RHO_Y, y))]
    return moved[0], moved[1]


def act_output(g: Tensor, out: Tensor) -> Tensor:
    return RHO_OUT.action(g).to(out).apply(out)[0]


def deviation(model: Any, inputs: tuple[Tensor, Tensor]) -> float:
    """Return how far the model is from equivariance under a rotation, relative to its output."""
    with torch.no_grad():
        turn = parse_group("O3").sample(1, torch.Generator().manual_seed(0))[0]
        expected = act_output(turn, model(*inputs))
        return float((model(*act(turn, *inputs)) - expected).norm() / expected.norm())


def test_they_are_relaxed_trained_and_folded(model: Any) -> None:
    inputs = torch.randn(6, 8), torch.cat([torch.ones(6, 1), torch.randn(6, 3)], dim=1)
    before, architecture, keys = model(*inputs).detach(), Architecture.of(model), list(state(model))
    plan = surgeon.find(model, "O3", *inputs, act=act, act_output=act_output)
    assert [site.name for site in plan.sites] == ["first", "product", "last"]
    assert all(site.adapter == "e3nn" and site.verified and site.fold for site in plan.sites)
    assert all(site.evidence.startswith("annotated and measured") for site in plan.sites)
    relaxation = surgeon.relax(model, plan, dense=True, mode="fold")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    relaxation.set_theta(1.0)
    model(*inputs).square().sum().backward()
    optimizer.step()
    assert deviation(model, inputs) > 1e-2
    surgeon.strip(model)
    after = model(*inputs).detach()
    assert list(state(model)) == keys
    assert Architecture.of(model).classes == architecture.classes
    assert not torch.allclose(after, before)
    assert deviation(model, inputs) < 1e-5


def test_an_archive_that_is_opened_again_has_the_same_architecture(folder: Path) -> None:
    first, second = packaged(folder), opened(folder)
    assert type(first.first) is not type(second.first)
    assert Architecture.of(first).classes == Architecture.of(second).classes
    assert Architecture.of(first).attributes == Architecture.of(second).attributes
    assert Architecture.of(first).classes != Architecture.of(network(folder, "e3nn").first).classes


LinearPath = namedtuple("LinearPath", ["i_in", "i_out", "path_shape", "path_weight"])


class Linear(nn.Module):
    """By its name and its irreps it could be e3nn's; its weight is a matrix of channels, as cuequivariance's is."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out, self.weight_numel = "2x1o", "2x1o", 4
        self.internal_weights = self.shared_weights = True
        self.instructions = [LinearPath(0, 0, (2, 2), 1.0)]
        self.weight = nn.Parameter(torch.randn(4))
        for name, value in changes.items():
            setattr(self, name, value)

    def forward(self, features: Tensor) -> Tensor:
        return features


@pytest.mark.parametrize(
    "changes",
    [
        {"instructions": [(0, 0)]},
        {"instructions": [LinearPath(0, 0, (2, 3), 1.0)]},
        {"weight_numel": 5},
        {"weight": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_class_of_this_name_that_is_made_otherwise_is_not_taken(changes: dict[str, Any]) -> None:
    group = parse_group("O3")
    assert adapter.propose(Linear(), group) is not None
    assert adapter.propose(Linear(**changes), group) is None
    assert adapter.blocks(Linear(**changes)) is None
