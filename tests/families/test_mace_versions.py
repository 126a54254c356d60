"""Files of many versions of mace-torch: opened, compared with what those versions predicted, and written back."""

from __future__ import annotations

import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import relative_difference
from surgeon.errors import CheckpointError
from surgeon.export.container import write_container
from surgeon.opening.models import DEPLOYED
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon_adapters.mace.adapter import adapter
from surgeon_adapters.mace.models import build, import_mace
from tests.families.old_files.write_mace import FRAMES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")

from tests.families.mace_small import reopened, saved, small

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

FOLDER = Path(__file__).parent / "old_files"
PREDICTED = json.loads((FOLDER / "mace.json").read_text())
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Share of the largest entry."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    with tarfile.open(FOLDER / "mace.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def predicted(path: Path, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """What MACE's own calculator makes of a file."""
    import ase

    name = str(dtype).removeprefix("torch.")
    calculator = import_mace("calculators").MACECalculator(str(path), device="cpu", default_dtype=name)
    found = {}
    for title, (numbers, positions) in FRAMES.items():
        atoms = ase.Atoms(numbers, positions, calculator=calculator)
        found[title] = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    return tensors(found)


def tensors(found: Any) -> dict[str, dict[str, Tensor]]:
    return {
        title: {key: torch.as_tensor(value, dtype=torch.float64) for key, value in values.items()}
        for title, values in found.items()
    }


@pytest.mark.parametrize("name", PREDICTED)
def test_the_file_opens_predicts_what_it_did_and_goes_back(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as importing mace does, for its calculator
    path = files / f"{name}.model"
    workspace = open_path(path, OpenOptions(trust_pickle=True))
    model, checkpoint = workspace.model.eval(), workspace.checkpoint
    assert workspace.found.factory is not None  # rebuilt by the installed version from plain data
    assert workspace.found.notes == (DEPLOYED,)
    assert all(parameter.requires_grad for parameter in model.parameters() if parameter.numel())
    dtype = next(model.parameters()).dtype
    expected = tensors(PREDICTED[name])
    own = predicted(saved(tmp_path / "own.model", model), dtype)
    assert relative_difference(own, expected) < TOLERANCE[dtype]
    # and back, with other weights: exactly the keys, their order and dtypes of the file
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    write_container(checkpoint, model.state_dict(), tmp_path / "new.model")
    before, after = (reopened(each).state_dict() for each in (path, tmp_path / "new.model"))
    assert list(before) == list(after)
    assert all(before[key].dtype == after[key].dtype for key in before)
    found = predicted(tmp_path / "new.model", dtype)
    assert relative_difference(found, predicted(saved(tmp_path / "own.model", model), dtype)) < TOLERANCE[dtype]
    assert relative_difference(found, expected) > 10 * TOLERANCE[torch.float32]


def test_constants_that_the_file_lacks_or_keeps_otherwise_are_in_its_settings(files: Path) -> None:
    oldest, newest = (list(PREDICTED)[index] for index in (1, -1))  # in float64
    described = adapter.describe(reopened(files / f"{oldest}.model"))
    assert described is not None
    constants = described["args"]["constants"]
    assert {key.rpartition(".")[2]: value for key, value in constants.items()} == OLDEST
    described = adapter.describe(reopened(files / f"{newest}.model"))
    assert described is not None
    assert "constants" not in described["args"]


OLDEST = {"weights_0_zeroed": None, "weights_max_zeroed": None, "p": "float64"}


def test_frozen_parts_stay_frozen(tmp_path: Path) -> None:
    module = reopened(saved(tmp_path / "one.model", small()))
    module.node_embedding.requires_grad_(False)
    workspace = open_path(saved(tmp_path / "mixed.model", module), OpenOptions(trust_pickle=True))
    assert workspace.found.notes == ()
    frozen = [name for name, parameter in workspace.model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["node_embedding.linear.weight"]


def importable(monkeypatch: pytest.MonkeyPatch, reduced: Any = None) -> None:
    """As where cuequivariance is installed: its coefficients are taken wherever they are wished for."""
    for name in ("tools.cg", "modules.wrapper_ops"):
        monkeypatch.setattr(import_mace(name), "CUET_AVAILABLE", True)
    monkeypatch.setattr(import_mace("tools.cg"), "compute_U_cueq", reduced, raising=False)


def test_settings_are_those_that_took_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file wishes for reduced coefficients, but was written where cuequivariance was missing."""
    assert small().use_reduced_cg
    importable(monkeypatch, lambda *args, **kwargs: pytest.fail("asked for reduced coefficients"))
    described = adapter.describe(small())
    assert described is not None
    assert list(build(**described["args"]).state_dict()) == list(small().state_dict())


def test_reduced_coefficients_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written where it is installed: opened there by its settings, elsewhere as the module that it is."""

    def reduced(irreps_in: Any, irreps_out: Any, correlation: int, dtype: torch.dtype, **_: Any) -> list[Any]:
        full = import_mace("tools.cg").U_matrix_real(irreps_in, irreps_out, correlation, dtype=dtype, use_cueq_cg=False)
        return [full[0], full[-1][..., :1]]

    with monkeypatch.context() as patch:
        importable(patch, reduced)
        small.cache_clear()
        module = small()
        small.cache_clear()
        described = adapter.describe(module)
        assert described is not None
        assert described["args"]["settings"]["use_reduced_cg"] is True
    with pytest.raises(CheckpointError, match=r"coupling coefficients of cuequivariance: install that package"):
        build(**described["args"])
    told = adapter.describe(module)
    assert told is not None
    assert "cuequivariance" in told["note"]


@pytest.mark.parametrize("changes", [{"edge_irreps": True}, {"edge_irreps": True, "use_edge_irreps_first": True}])
def test_settings_of_the_edges_are_kept(changes: dict[str, Any]) -> None:
    module = variant(**{**changes, "edge_irreps": {"irreps": "2x0e+2x1o"}})
    described = adapter.describe(module)
    assert described is not None
    assert "factory" in described, described
    assert described["args"]["settings"]["edge_irreps"] == {"irreps": "2x0e+2x1o"}


def test_each_layer_keeps_its_correlation() -> None:
    described = adapter.describe(variant(correlation=[2, 1]))
    assert described is not None
    assert described["args"]["settings"]["correlation"] == [2, 1]


def test_half_precision_opens(tmp_path: Path) -> None:
    module = reopened(saved(tmp_path / "one.model", small())).to(torch.bfloat16)
    workspace = open_path(saved(tmp_path / "half.model", module), OpenOptions(trust_pickle=True))
    assert {parameter.dtype for parameter in workspace.model.parameters()} == {torch.bfloat16}
    assert workspace.found.factory is not None, workspace.found.notes


def variant(**changes: Any) -> nn.Module:
    described = adapter.describe(small())
    assert described is not None
    arguments = described["args"]
    return build(**{**arguments, "settings": {**arguments["settings"], **changes}})
