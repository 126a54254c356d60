"""Every damage to a clean folder is found, and an untouched one passes wherever it is."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.errors import CheckFailedError, CheckpointError
from surgeon.export.reopening import container_extra
from surgeon.files.clean import ATTESTATION_FILE, WORDS_FILE, canonical_digest, sealed
from surgeon.files.content import sha256_of_file
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.trust import remember_task
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.attestation import attested
from surgeon.proof.clean_folder import write_clean
from surgeon.proof.records import SOURCE_CHECK
from surgeon.proof.strip_and_certify import strip_and_certify
from surgeon.proof.verdict import Verification
from surgeon.proof.verify import verify_clean
from surgeon.proof.words import certificate_text
from surgeon.support.attributes import tensor_sha256
from tests.commands import Surgeon, files_in
from tests.opening.test_workspace import make_relaxed
from tests.tiny import Net, Plain


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``net.pt``, ``task.py`` and ``clean/``, whose weights are not the original's."""
    with pytest.MonkeyPatch.context() as patch:
        work = Surgeon.folder(tmp_path_factory.mktemp("verification"), patch)
        (work / "config.json").write_text("{}")
        workspace = open_path(make_relaxed(work), mode="fold")
        model, certificate = strip_and_certify(workspace, "fold", MeasureSettings(2, 1))
        original = workspace.original()[1]
        extras = {"container": container_extra(workspace, model, original)}
        write_clean(work / "clean", model, certificate, original, extras=extras)
        yield work


@pytest.fixture
def work(exported: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(exported, tmp_path / "work"))
    remember_task(folder / "task.py")
    return folder


def verified(work: Path, original: str = "net.pt", group: str | None = "O3") -> Verification:
    return verify_clean(work / "clean", work / original, group=group)


def outcomes(verification: Verification) -> dict[str, str]:
    return {finding.name: finding.outcome for finding in verification.findings}


def test_an_untouched_folder_passes_and_stays_untouched(work: Path) -> None:
    before = files_in(work)
    verification = verified(work)
    assert verification.holds, verification.differences
    assert "not checked" not in outcomes(verification).values()
    assert verification.notes == ()
    assert files_in(work) == before
    weights = load_file(work / "clean" / "model.safetensors")
    assert not torch.equal(weights["first.weight"], torch.load(work / "net.pt")["first.weight"])
    json.dumps(verification.to_data())


def test_it_passes_after_being_moved_and_from_another_folder(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    for name in ("clean", "net.pt", "task.py"):
        (work / name).rename(target / name)
    remember_task(target / "task.py")
    monkeypatch.chdir(target)
    verification = verify_clean("clean", "net.pt", group="O3")
    assert verification.holds, verification.differences
    assert outcomes(verification)["recorded module classes"] == "holds"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def test_a_flipped_bit_in_the_weights_names_the_tensor(work: Path) -> None:
    path = work / "clean" / "model.safetensors"
    (header,) = struct.unpack("<Q", path.read_bytes()[:8])
    places = json.loads(path.read_bytes()[8 : 8 + header])
    start, _ = places["second.weight"]["data_offsets"]
    flip(path, 8 + header + start)
    verification = verified(work)
    assert any("the file model.safetensors was changed" in text for text in verification.differences)
    assert any("the values of second.weight are not those" in text for text in verification.differences)
    assert not any("first.weight" in text for text in verification.differences)


@pytest.mark.parametrize("place", ["length", "key", "dtype"])
def test_a_flipped_bit_in_the_header(work: Path, place: str) -> None:
    path = work / "clean" / "model.safetensors"
    content = path.read_bytes()
    flip(path, {"length": 3, "key": content.index(b"first.weight"), "dtype": content.index(b'"F32"') + 2}[place])
    verification = verified(work)
    assert any("the file model.safetensors was changed" in text for text in verification.differences)
    assert outcomes(verification)["files"] == "differs"
    assert len(verification.differences) > 1
    if place == "key":
        assert any("girst.weight" in text for text in verification.differences)


def edit(work: Path, change: Callable[[dict[str, Any]], None], forged: bool) -> None:
    """Change the certificate; a forger writes its words and its statement anew and renews both hashes."""
    path = work / "clean" / "certificate.json"
    data = json.loads(path.read_text())
    change(data)
    if forged:
        data["files"].pop(WORDS_FILE)
        (work / "clean" / WORDS_FILE).write_text(certificate_text(data))
        data["files"][WORDS_FILE] = sha256_of_file(work / "clean" / WORDS_FILE)
    path.write_text(json.dumps(sealed(data) if forged else data))
    if forged:
        (work / "clean" / ATTESTATION_FILE).write_text(json.dumps(attested(data, work / "clean")))


def metric(data: dict[str, Any]) -> None:
    data["metrics"]["stripped"]["mse"] *= 1.001


def error(data: dict[str, Any]) -> None:
    data["equivariance"]["stripped"]["float32"]["inversion"]["median"] = 1e-3


def smaller_error(data: dict[str, Any]) -> None:
    data["equivariance"]["original"]["float32"]["identity"]["mean"] /= 5


def count(data: dict[str, Any]) -> None:
    data["equivariance"]["original"]["float64"]["identity"]["count"] += 1


def graph(data: dict[str, Any]) -> None:
    data["details"]["graph_sha256"][0] = "0" * 64


def relaxed_graph(data: dict[str, Any]) -> None:
    data["details"]["relaxed_graph"]["sha256"] = "0" * 64


def form(data: dict[str, Any]) -> None:
    data["architecture"]["result"]["first.weight"][0][0] += 1


def original_form(data: dict[str, Any]) -> None:
    data["architecture"]["original"]["first.weight"][1] = "torch.float64"


def tensor(data: dict[str, Any]) -> None:
    data["architecture"]["result"]["first.weight"][2] = "0" * 64


def module_class(data: dict[str, Any]) -> None:
    data["architecture"]["classes"]["second"] = "task.Other"


def written_buffer(data: dict[str, Any]) -> None:
    data["buffers_written"]["first.output_mask"] = 0.5


def verdict(data: dict[str, Any]) -> None:
    data["checks"]["shapes"] = False


def source(data: dict[str, Any]) -> None:
    data["details"]["original"]["sha256"] = "0" * 64


def listed(data: dict[str, Any]) -> None:
    del data["files"]["model.safetensors"]


def outside(data: dict[str, Any]) -> None:
    data["files"]["../net.pt"] = "0" * 64


def lost_norm(data: dict[str, Any]) -> None:
    data["sites"][0]["norm"] *= 2


def theta(data: dict[str, Any]) -> None:
    data["details"]["theta"][0] = 0.75


CHANGES: list[tuple[Callable[[dict[str, Any]], None], str, str]] = [
    (metric, "metrics", "mse of the stripped on the test split: recorded is"),
    (error, "recorded equivariance", "stripped under inversion in float32: recorded median is 0.001, found"),
    (smaller_error, "recorded equivariance", "original under identity in float32: recorded mean is"),
    (count, "recorded equivariance", "recorded count is 6, found 5"),
    (graph, "recorded graph hashes", "graph of the original: recorded hash is 000"),
    (relaxed_graph, SOURCE_CHECK, "and when it was relaxed with 000"),
    (form, "recorded forms of the result", "first.weight of the result: recorded is"),
    (original_form, "recorded forms of the original", "first.weight of the original: recorded is"),
    (tensor, "tensors", "the values of first.weight"),
    (module_class, "recorded module classes", "module second: recorded class is task.Other"),
    (written_buffer, "recorded changes of buffers", "buffer first.output_mask: recorded change is 0.5"),
    (verdict, "recorded verdict and checks", "'shapes' does not hold"),
    (source, "original checkpoint", "is not the checkpoint that was relaxed"),
    (listed, "files", "its sha256 is "),
    (outside, "files", "the file ../net.pt is missing"),
]


@pytest.mark.parametrize(("change", "name", "words"), CHANGES, ids=[change.__name__ for change, _, _ in CHANGES])
def test_a_changed_figure_is_found_even_with_its_digest_recomputed(
    work: Path, change: Callable[[dict[str, Any]], None], name: str, words: str
) -> None:
    edit(work, change, forged=True)
    verification = verified(work)
    assert [finding.name for finding in verification.findings if finding.outcome == "differs"] == [name]
    assert words in verification.differences[0]


@pytest.mark.parametrize("change", [metric, lost_norm, theta])
def test_a_changed_figure_is_found_by_the_digest(work: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit(work, change, forged=False)
    assert "certificate.json was changed" in verified(work).differences[0]


@pytest.mark.parametrize("change", [lost_norm, theta])
def test_a_forged_figure_of_the_relaxed_model_is_not_found_and_said_to_be_only_recorded(
    work: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    edit(work, change, forged=True)
    verification = verified(work)
    assert verification.holds
    assert outcomes(verification)["norm, folded and lost part of every branch"] == "recorded"
    assert outcomes(verification)["theta"] == "recorded"


@pytest.mark.parametrize("name", ["model.safetensors", "CERTIFICATE.md", "net.pt", "config.json"])
def test_a_missing_and_a_changed_file(work: Path, name: str) -> None:
    content = (work / "clean" / name).read_bytes()
    (work / "clean" / name).unlink()
    assert f"the file {name} is missing" in verified(work).differences
    (work / "clean" / name).write_bytes(content + b" ")
    assert any(f"the file {name} was changed" in text for text in verified(work).differences)


def test_an_added_file_is_mentioned(work: Path) -> None:
    (work / "clean" / "more").mkdir()
    (work / "clean" / "more" / "notes.txt").write_text("mine")
    verification = verified(work)
    assert verification.holds
    assert verification.notes == ("the certificate does not know the file more/notes.txt",)


def test_another_architecture_names_the_first_differing_keys(work: Path) -> None:
    torch.save(Plain().state_dict(), work / "other.pt")
    verification = verified(work, "other.pt")
    (told,) = (finding for finding in verification.findings if finding.name.startswith("keys, shapes and dtypes"))
    assert told.differences[0] == "layer.weight: the original has [[3, 6], 'torch.float32'], the result nothing"
    assert any("first.weight: the original has nothing" in text for text in told.differences)
    wide = Net(3)
    torch.save(wide.state_dict(), work / "wide.pt")
    words = " ".join(verified(work, "wide.pt").differences)
    assert "first.weight: the original has [" in words
    for name in ("module classes", "recorded graph", "as equivariant as the original", "metrics"):
        assert outcomes(verification)[name] == "not checked"


def test_a_swapped_original(work: Path) -> None:
    torch.save(Net().state_dict(), work / "net.pt")
    verification = verified(work)
    failed = {finding.name for finding in verification.findings if finding.outcome == "differs"}
    # Whether another network rounds as much as this one is chance.
    assert failed - {"recorded equivariance"} == {"original checkpoint", "metrics"}


def test_swapped_weights_with_every_hash_recomputed_are_found_by_the_metrics(work: Path) -> None:
    path = work / "clean" / "model.safetensors"
    weights = {key: value * 1.5 if "weight" in key else value for key, value in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})

    def forge(data: dict[str, Any]) -> None:
        data["files"]["model.safetensors"] = sha256_of_file(path)
        for key, value in weights.items():
            data["architecture"]["result"][key][2] = tensor_sha256(value)

    edit(work, forge, forged=True)
    verification = verified(work)
    failed = [finding.name for finding in verification.findings if finding.outcome == "differs"]
    assert failed == ["metrics", "container net.pt: tensors", "container net.pt: outputs of its model"]


@pytest.mark.parametrize("model", [False, True])
def test_weights_that_are_not_finite(work: Path, model: bool) -> None:
    path = work / "clean" / "model.safetensors"
    weights = load_file(path)
    weights["first.weight"][0] = float("nan")
    save_file(weights, path, {"format": "pt"})
    if not model:
        (work / "task.py").unlink()
    assert outcomes(verified(work))["finite weights and buffers"] == "differs"


def test_without_a_task_the_files_are_compared(work: Path) -> None:
    (work / "task.py").unlink()
    verification = verified(work)
    assert verification.holds
    found = outcomes(verification)
    assert found["tensors"] == found["files"] == found["finite weights and buffers"] == "holds"
    names = ("module classes", "buffers", "recorded graph", "as equivariant as the original", "metrics")
    assert {found[name] for name in names} == {"not checked"}
    notes = {finding.note for finding in verification.findings if finding.outcome == "not checked"}
    assert notes == {"give --task or --model", "give --task"}
    with_model = verify_clean(work / "clean", work / "net.pt", OpenOptions(factory="tests.tiny:make_net"))
    assert outcomes(with_model)["module classes"] == "holds"
    assert outcomes(with_model)["recorded graph"] == "not checked"


def test_code_that_the_certificate_names_is_not_run(work: Path) -> None:
    def name(data: dict[str, Any]) -> None:
        data["details"]["group"] = "evil:group"

    edit(work, name, forged=True)
    verification = verified(work, group=None)
    told = next(finding for finding in verification.findings if finding.name == "as equivariant as the original")
    assert told.outcome == "not checked"
    assert "--group" in told.note
    assert outcomes(verified(work, group="O3"))["group"] == "differs"


def hide(data: dict[str, Any]) -> None:
    """What a forger leaves out is what would tell."""
    for name in ("as equivariant as the original", "attributes"):
        del data["checks"][name]
    data["equivariance"], data["metrics"] = {}, {}
    del data["details"]["graph_sha256"], data["details"]["relaxed_graph"]


def test_what_a_certificate_leaves_out_is_measured_all_the_same(work: Path) -> None:
    edit(work, hide, forged=True)
    verification = verified(work)
    assert verification.holds
    assert not verification.complete
    found = outcomes(verification)
    hidden = ("recorded check: attributes", "recorded equivariance", "recorded graph hashes", SOURCE_CHECK, "metrics")
    assert {found[name] for name in hidden} == {"not recorded"}
    assert found["as equivariant as the original"] == found["recorded graph"] == "holds"
    assert set(verification.equivariance) == set(verification.metrics) == {"original", "stripped"}


def test_what_a_certificate_leaves_out_is_judged_all_the_same(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(work, hide, forged=True)
    monkeypatch.setattr("surgeon.proof.equivariance.less_equivariant", lambda *_: ["worse than the original"])
    assert verified(work).differences == ("worse than the original",)


def test_a_grade_that_does_not_follow_from_the_checks(work: Path) -> None:
    edit(work, lambda data: data["checks"].pop("same function as clean evaluation"), forged=True)
    assert verified(work).differences == (
        "the certificate says 'same function', and from its checks follows 'same graph'",
    )


@pytest.mark.parametrize(("recorded", "given"), [("O3", None), ("O(3)", "O3")])
def test_the_recorded_group(work: Path, recorded: str, given: str | None) -> None:
    edit(work, lambda data: data["details"].update(group=recorded), forged=True)
    verification = verified(work, group=given)
    assert verification.holds, verification.differences
    assert outcomes(verification)["recorded equivariance"] == "holds"


def test_other_versions_leave_the_hashes_of_graphs_alone(work: Path) -> None:
    def older(data: dict[str, Any]) -> None:
        data["details"]["versions"]["torch"] = "0.1"
        graph(data)

    edit(work, older, forged=True)
    verification = verified(work)
    assert verification.holds
    assert outcomes(verification)["recorded graph"] == "holds"
    assert outcomes(verification)["recorded graph hashes"] == "not checked"


def test_a_package_that_decides_and_is_here_alone_leaves_the_hashes_of_graphs_alone(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cuequivariance-0.9.1.dist-info").mkdir()
    (tmp_path / "cuequivariance-0.9.1.dist-info/METADATA").write_text("Name: cuequivariance\nVersion: 0.9.1\n")
    assert outcomes(verified(work))["recorded graph hashes"] == "holds"
    monkeypatch.syspath_prepend(tmp_path)
    verification = verified(work)
    assert verification.holds
    (found,) = (each for each in verification.findings if each.name == "recorded graph hashes")
    assert found.outcome == "not checked"
    assert "cuequivariance none, here 0.9.1" in found.note


def test_code_that_was_changed_since_it_was_relaxed(work: Path) -> None:
    """The certificate's own graphs are left out: the folder still says what was relaxed."""
    task = work / "task.py"
    task.write_text(task.read_text().replace("torch.tanh(1 + gates)", "torch.sigmoid(1 + gates)"))
    remember_task(task)
    edit(work, lambda data: data["details"].pop("graph_sha256"), forged=True)
    found = outcomes(verified(work))
    assert found["recorded graph"] == "holds"
    assert (found["recorded graph hashes"], found[SOURCE_CHECK]) == ("not recorded", "differs")


def test_other_data_tell_nothing_about_the_code(work: Path) -> None:
    task = work / "task.py"
    task.write_text(task.read_text().replace("1000 * SEEDS", "1001 * SEEDS"))
    remember_task(task)
    told = next(finding for finding in verified(work).findings if finding.name == SOURCE_CHECK)
    assert (told.outcome, told.note) == ("not checked", "it was relaxed with other data")


def test_certificates_that_cannot_be_read(work: Path) -> None:
    path = work / "clean" / "certificate.json"
    content = path.read_text()
    path.write_text(content[:-20])
    with pytest.raises(CheckFailedError, match=r"is damaged \(.* line .*\): strip again"):
        verified(work)
    edited = json.loads(content)
    path.write_text(json.dumps({**edited, "architecture": {}}))
    with pytest.raises(CheckFailedError, match=r"missing or malformed \(.* field `original` - at `\$.architecture`\)"):
        verified(work)
    path.write_text("[]")
    with pytest.raises(CheckFailedError, match="missing or malformed"):
        verified(work)
    path.write_text(json.dumps({**edited, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 1 or older, got 99"):
        verified(work)
    path.unlink()
    with pytest.raises(CheckFailedError, match="it is missing"):
        verified(work)
    with pytest.raises(CheckpointError, match="expected a folder"):
        verify_clean(work / "nothing", work / "net.pt")


def test_the_digest_does_not_depend_on_order_or_itself() -> None:
    data = {"b": [1.5, None, "é"], "a": {"y": 1, "x": float("nan")}}
    other = {"sha256": "anything", "a": {"x": None, "y": 1}, "b": [1.5, None, "é"]}
    assert canonical_digest(data) == canonical_digest(other) == sealed(data)["sha256"]
    assert canonical_digest({**data, "b": [1.5, None, "e"]}) != canonical_digest(data)
    assert sealed(sealed(data)) == sealed(data)
