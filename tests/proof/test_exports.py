"""ONNX file, torch.export archive and container of a clean folder are computed again, whatever the hashes say."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.errors import WriteError
from surgeon.export.onnx_file import ONNX_FILE, export_onnx
from surgeon.export.pt2_file import PT2_FILE, export_pt2
from surgeon.export.reopening import container_extra
from surgeon.export.stripped import Stripped, stripped_beside_original
from surgeon.files.clean import ATTESTATION_FILE, WORDS_FILE, hashes_of, sealed
from surgeon.opening.open import open_path
from surgeon.opening.trust import remember_task
from surgeon.proof import exports
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.attestation import attested
from surgeon.proof.clean_folder import write_clean
from surgeon.proof.strip_and_certify import strip_and_certify
from surgeon.proof.verdict import Verification
from surgeon.proof.verify import verify_clean
from surgeon.proof.words import certificate_text
from surgeon.support.attributes import tensor_sha256
from tests.commands import Surgeon
from tests.export.test_pt2 import other_node, other_weight, rewritten
from tests.opening.test_workspace import make_relaxed


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``net.pt``, ``task.py`` and ``clean/`` in all exports."""
    with pytest.MonkeyPatch.context() as patch:
        work = Surgeon.folder(tmp_path_factory.mktemp("formats"), patch)
        workspace = open_path(make_relaxed(work), mode="fold")
        model, certificate = strip_and_certify(workspace, "fold", MeasureSettings(1, 1))
        original, stripped = workspace.original()[1], stripped_beside_original(workspace, model)
        extras = {
            "container": container_extra(workspace, model, original),
            "pt2": lambda folder: export_pt2(folder / PT2_FILE, stripped),
            "onnx": lambda folder: export_onnx(folder / ONNX_FILE, stripped),
        }
        write_clean(work / "clean", model, certificate, original, extras=extras)
        yield work


@pytest.fixture(scope="module")
def files() -> dict[Any, tuple[bytes, dict[str, Any]]]:
    """What was exported in the tests of this file."""
    return {}


@pytest.fixture(autouse=True)
def exported_once(files: dict[Any, tuple[bytes, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a verification take the file that an earlier one exported from the same weights."""

    def remembered(export: Callable[..., dict[str, Any]], path: Path, stripped: Stripped, **options: Any) -> Any:
        weights = [tensor_sha256(tensor) for tensor in stripped.model.state_dict().values()]
        key = (path.name, repr(options), stripped.group is None, *weights)
        if key not in files:
            figures = export(path, stripped, **options)
            files[key] = (path.read_bytes(), figures)
        path.write_bytes(files[key][0])
        return copy.deepcopy(files[key][1])

    for name in ("export_onnx", "export_pt2"):
        monkeypatch.setattr(exports, name, functools.partial(remembered, getattr(exports, name)))


@pytest.fixture
def work(exported: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(exported, tmp_path / "work"))
    remember_task(folder / "task.py")
    return folder


def resealed(work: Path, change: Callable[[dict[str, Any]], None] = lambda data: None) -> None:
    """Compute every hash of the certificate anew, as a forger would."""
    path = work / "clean/certificate.json"
    data = json.loads(path.read_text())
    change(data)
    words = work / "clean" / WORDS_FILE
    words.unlink()
    words.write_text(certificate_text({**data, "files": hashes_of(work / "clean")}))
    data = sealed({**data, "files": hashes_of(work / "clean")})
    path.write_text(json.dumps(data))
    (work / "clean" / ATTESTATION_FILE).write_text(json.dumps(attested(data, work / "clean")))


def verified(work: Path) -> Verification:
    return verify_clean(work / "clean", work / "net.pt", group="O3")


def failed(verification: Verification) -> dict[str, str]:
    return {entry.name: entry.differences[0] for entry in verification.findings if entry.outcome == "differs"}


NAMES = {
    "container net.pt: tensors",
    "container net.pt: outputs of its model",
    "container net.pt: recorded figures",
    *(f"model.onnx: {part}" for part in ("tensors", "graph", "outputs and equivariance", "recorded figures")),
    *(f"model.pt2: {part}" for part in ("tensors", "graph", "recorded figures")),
}


def test_an_untouched_folder_passes_from_another_place(work: Path) -> None:
    verification = verified(work)
    assert verification.holds, verification.differences
    found = {entry.name: entry.outcome for entry in verification.findings}
    assert found.keys() >= NAMES
    assert {found[name] for name in NAMES} == {"holds"}
    assert "not checked" not in found.values()


@pytest.mark.parametrize("export", ["export_onnx", "export_pt2"])
def test_a_full_disk_says_nothing_about_a_file(work: Path, export: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any, **__: Any) -> Any:
        raise WriteError(f"could not write {str(path)!r}") if export == "export_onnx" else OSError(28, "no space")

    monkeypatch.setattr(exports, export, full)
    with pytest.raises(WriteError, match="could not write"):
        verified(work)


def onnx_weight(model: Any) -> None:
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "second.weight")
    changed = onnx.numpy_helper.to_array(weight) * np.float32(1 + 1e-6)
    weight.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), weight.name))


def onnx_node(model: Any) -> None:
    (node,) = (node for node in model.graph.node if node.op_type == "Tanh")
    node.op_type = "Atan"


def onnx_constant(model: Any) -> None:
    names = [tensor.name for tensor in model.graph.initializer]
    place = next(i for i, name in enumerate(names) if "." not in name and model.graph.initializer[i].data_type == 1)
    tensor = model.graph.initializer[place]
    changed = onnx.numpy_helper.to_array(tensor) * np.float32(1 + 1e-6)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), tensor.name))


def onnx_metadata(model: Any) -> None:
    (entry,) = (entry for entry in model.metadata_props if entry.key == "group")
    entry.value = "SE(3)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "onnx_fails", "archive", "pt2_fails"),
    [
        (onnx_weight, {"tensors": "second.weight in model.onnx has not the values"}, other_node, {"graph": "node "}),
        (
            onnx_node,
            {"graph": "Tanh", "outputs and equivariance": "deviates"},
            other_weight,
            {"tensors": "in model.pt2 has not the values of model.safetensors"},
        ),
        (onnx_constant, {"graph": "constant"}, None, {}),
        (onnx_metadata, {"graph": "metadata of model.onnx"}, None, {}),
    ],
)
def test_a_changed_file_is_found_with_all_hashes_recomputed(
    work: Path, change: Any, onnx_fails: dict[str, str], archive: Any, pt2_fails: dict[str, str]
) -> None:
    model = onnx.load(work / "clean/model.onnx")
    change(model)
    onnx.save(model, work / "clean/model.onnx")
    if archive is not None:
        rewritten(work / "clean/model.pt2", work / "changed.pt2", archive).replace(work / "clean/model.pt2")
    resealed(work)
    found = failed(verified(work))
    wanted = {f"model.onnx: {part}": words for part, words in onnx_fails.items()}
    wanted |= {f"model.pt2: {part}": words for part, words in pt2_fails.items()}
    assert found.keys() - {"model.onnx: recorded figures", "model.pt2: recorded figures"} == wanted.keys()
    assert all(words in found[name] for name, words in wanted.items()), found


def figures(data: dict[str, Any]) -> None:
    details = data["details"]
    details["onnx"]["deviation"] = 0.9
    details["onnx"]["equivariance"]["inversion"] = 0.8
    details["onnx"]["nodes"] += 1
    details["pt2"]["graph_sha256"] = "0" * 64
    details["pt2"]["inputs"] = ["scalars"]
    details["container"]["batches"] = 7
    details["container"]["opened_by"] = "nobody"


@pytest.mark.slow
def test_a_changed_figure_is_found_with_the_seal_renewed(work: Path) -> None:
    resealed(work, figures)
    verification = verified(work)
    assert set(failed(verification)) == {f"{name}: recorded figures" for name in ("model.onnx", "model.pt2")} | {
        "container net.pt: recorded figures"
    }
    told = " ".join(verification.differences)
    for words in (
        "model.onnx: recorded deviation is 0.9, found",
        "model.onnx, equivariance: recorded inversion is 0.8, found",
        "model.onnx: recorded nodes is",
        "model.pt2: recorded graph_sha256 is 000",
        "model.pt2: recorded inputs is ['scalars'], found ['scalars', 'vectors']",
        "container net.pt: recorded batches is 7, found 2",
        "container net.pt: recorded opened_by is nobody",
    ):
        assert words in told, words


@pytest.mark.slow
def test_a_changed_byte_of_the_weights_is_found_in_every_format(work: Path) -> None:
    path = work / "clean/model.safetensors"
    weights = load_file(path)
    weights["first.weight"][0] *= 1 + 1e-6
    save_file(weights, path, {"format": "pt"})

    def forge(data: dict[str, Any]) -> None:
        data["architecture"]["result"]["first.weight"][2] = tensor_sha256(weights["first.weight"])

    resealed(work, forge)
    found = failed(verified(work))
    assert {f"{name}: tensors" for name in ("model.onnx", "model.pt2", "container net.pt")} <= found.keys()


@pytest.mark.slow
def test_a_changed_container_is_found(work: Path) -> None:
    weights = torch.load(work / "clean/net.pt", weights_only=True)
    weights["second.weight"] = -weights["second.weight"]
    torch.save(weights, work / "clean/net.pt")
    resealed(work)
    found = failed(verified(work))
    assert found.keys() == {"container net.pt: tensors", "container net.pt: outputs of its model"}
    assert "does not give the trained model back" in found["container net.pt: outputs of its model"]


@pytest.mark.slow
def test_what_cannot_be_checked_is_listed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = exports.package_versions
    monkeypatch.setattr(
        exports, "package_versions", lambda names: {k: v for k, v in honest(names).items() if k != "onnxruntime"}
    )
    verification = verified(work)
    assert verification.holds, verification.differences
    notes = {entry.name: entry.note for entry in verification.findings if entry.outcome == "not checked"}
    assert notes == {"model.onnx": "needs the package onnxruntime: install it with `pip install onnxruntime`"}


def test_without_a_task_the_tensors_are_compared(work: Path) -> None:
    (work / "task.py").unlink()
    model = onnx.load(work / "clean/model.onnx")
    onnx_weight(model)
    onnx.save(model, work / "clean/model.onnx")
    resealed(work)
    verification = verified(work)
    assert set(failed(verification)) == {"model.onnx: tensors"}
    outcomes = {entry.name: entry.outcome for entry in verification.findings}
    assert outcomes["model.onnx: graph, outputs and equivariance"] == "not checked"
    assert outcomes["model.pt2: tensors"] == outcomes["container net.pt: tensors"] == "holds"


def test_a_folder_alone_runs_its_onnx_file(work: Path) -> None:
    verification = verify_clean(work / "clean")
    assert verification.holds, verification.differences
    found = {entry.name: entry for entry in verification.findings}
    for name in ("model.onnx", "model.pt2"):  # nodes, tensors and the graph's hash follow from the file
        assert found[f"{name}: recorded figures"].outcome == "holds"
        assert "graph_sha256" in found[f"{name}: recorded figures"].note
    assert found["model.onnx: tensors"].outcome == found["model.onnx: runs"].outcome == "holds"
    path = work / "clean/model.onnx"
    graph = onnx.load(str(path))
    graph.opset_import[0].version = 99
    onnx.save(graph, str(path))
    assert exports._onnx_alone(path, {}).differences[0].startswith("ONNX Runtime cannot open it")


def test_the_folder_says_what_its_onnx_file_takes_and_the_program_in_it_runs(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (work / "clean/README.md").read_text()
    assert "| `model.onnx`, `model.pt2` | vectors | input | float32 (scalars_0, 2, 3) | 1x1o |  |" in text
    kept = {entry.key: entry.value for entry in onnx.load(str(work / "clean/model.onnx")).metadata_props}
    assert kept["axes.vectors"] == "float32 (scalars_0, 2, 3)"
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(work / "clean")
    exec(program, {})  # noqa: S102
    assert capsys.readouterr().out == "output (3, 3)\n"


def test_tensors_under_other_names_were_not_compared(work: Path) -> None:
    path = work / "clean/model.onnx"
    graph = onnx.load(str(path))
    names = {tensor.name: f"other_{tensor.name}" for tensor in graph.graph.initializer}
    for tensor in (*graph.graph.initializer, *graph.graph.value_info):
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(graph, str(path))
    resealed(work)
    verification = verify_clean(work / "clean")
    assert failed(verification).keys() == {"model.onnx: recorded figures"}
    assert "model.onnx: recorded tensors is 2, found 0" in verification.differences
    found = {entry.name: entry for entry in verification.findings}
    assert found["model.onnx: tensors"].outcome == "not checked"
    assert found["model.onnx: tensors"].note.startswith("it has none of ")
    assert found["model.pt2: tensors"].outcome == "holds"
    assert found["metrics"].note == "give --task"
    assert found["recorded graph"].note == "give --against; give --task"


def test_files_that_are_missing_or_do_not_open(work: Path) -> None:
    (work / "task.py").unlink()
    (work / "clean/model.onnx").write_bytes(b"no graph")
    (work / "clean/model.pt2").unlink()
    (work / "clean/net.pt").write_bytes(b"PK\x03\x04")
    resealed(work)
    found = failed(verified(work))
    assert "model.onnx does not open" in found["model.onnx"]
    assert found["model.pt2"] == "the certificate describes it, but it is not there"
    assert "it does not open" in found["container net.pt"]
