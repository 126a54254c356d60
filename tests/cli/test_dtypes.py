"""Checkpoints of every dtype and layout, and networks that compute in float32 inside: the whole way, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from surgeon import StripSettings, relax_checkpoint, strip_folder, verify_clean
from surgeon.errors import CheckpointError, TrustError
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import read_relaxed
from surgeon.files.tensors import same_bytes
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.tasks import load_task
from surgeon.proof.amounts import MeasureSettings
from tests.commands import QUICK, Surgeon

ASKING = """

class Asking(Net):
    def __init__(self, asks):
        super().__init__()
        self.asks, _, self.breaks = asks.partition(", ")
        self.table = torch.tensor([[0.9, 0.2], [-0.1, 1.1]], dtype=torch.float32)

    def forward(self, scalars, vectors):
        mixed = self.first(torch.cat([scalars, vectors.flatten(1)], 1))
        gates, features = mixed[:, :2], mixed[:, 2:].unflatten(1, (2, 3))
        if self.asks == "float":
            gates = torch.tanh(gates.float())
        elif self.asks == "softmax":
            gates = torch.nn.functional.softmax(gates, dim=1, dtype=torch.float32)
        elif self.asks == "insists":
            if gates.dtype != torch.float32:
                raise TypeError("float32 only")
            gates = torch.tanh(gates)
        elif self.asks == "table":
            gates = torch.tanh(gates @ self.table)
        if self.breaks:
            features = features + torch.tensor([0.3, 0.0, 0.0]).to(features)
        return self.second((features * gates.unsqueeze(2)).flatten(1))


class AskingTask(TinyTask):
    def __init__(self, asks):
        super().__init__()
        self.asks = asks

    def model(self):
        return Asking(self.asks)


def make_task(asks=""):
    return AskingTask(asks)
"""
EXPANDING = """

class Table(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("numbers", torch.ones(1), persistent=False)


TABLE = Table()


class Expanding(Net):
    def __init__(self):
        super().__init__()
        self.table = TABLE

    def train(self, mode=True):
        if not mode:
            torch.dot(self.table.numbers.expand(len(self.first.weight)), self.first.weight)
        return super().train(mode)


class ExpandingTask(TinyTask):
    def model(self):
        return Expanding()


def make_task():
    return ExpandingTask()
"""
HOLDING = """

class Holding(Net):
    def __init__(self):
        super().__init__()
        for name in "float16 bfloat16 float64 float8_e4m3fn float8_e5m2 complex64 int8 int64 uint16 bool".split():
            self.register_buffer(f"as_{name}", torch.arange(6).reshape(2, 3).to(getattr(torch, name)))
        self.register_buffer("transposed", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("whole", torch.arange(6.0))
        self.register_buffer("part", self.whole[2:4])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("scalar", torch.tensor(2.5))
        self.frozen = torch.nn.Parameter(torch.tensor([float("nan"), -0.0]), requires_grad=False)
        self.tied = o3.Linear("2x1o", "1x1o")
        self.tied.weight = self.second.weight


class HoldingTask(TinyTask):
    def __init__(self):
        super().__init__(1)

    def model(self):
        return Holding()


def make_task():
    return HoldingTask()
"""


def asking(asks: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """Write a checkpoint ``asks.pt`` and its task; return the options that name the task."""
    Path("asks.py").write_text(Path("task.py").read_text() + ASKING)
    torch.manual_seed(0)
    model = load_task("asks.py", {"asks": asks}).task.model().to(dtype)  # type: ignore[attr-defined]
    torch.save(model.state_dict(), "asks.pt")
    return ["--task", "asks.py", "--task-args", json.dumps({"asks": asks})]


def whole_way(surgeon: Surgeon, options: list[str], onnx: bool = True) -> dict[str, object]:
    """Relax, train, measure, strip, export and verify; return the certificate."""
    surgeon("relax", "asks.pt", *options)
    surgeon("finetune", "asks-relaxed", "--epochs", "1", "--lr", "1e-2")
    surgeon("measure", "asks-run", *QUICK)
    surgeon("strip", "asks-run", *QUICK)
    if onnx:
        surgeon("export", "asks-run", "-o", "asks-export", "--onnx", *QUICK)
    surgeon("verify", "asks-clean", "--against", "asks.pt", *options)
    certificate: dict[str, object] = json.loads(Path("asks-clean/certificate.json").read_text())
    before, after = torch.load("asks.pt", weights_only=True), load_file("asks-clean/model.safetensors")
    assert {key: value.dtype for key, value in after.items()} == {key: value.dtype for key, value in before.items()}
    assert any(not torch.equal(after[key], before[key]) for key in before)
    return certificate


@pytest.mark.parametrize("wrappers", ["", "_orig_mod.module."])
def test_tensors_of_every_kind_are_bit_equal_after_the_whole_way(work: Path, wrappers: str) -> None:
    Path("holding.py").write_text(Path("task.py").read_text() + HOLDING)
    options = OpenOptions(task="holding.py")
    before = load_task("holding.py").task.model().state_dict()  # type: ignore[attr-defined]
    torch.save({wrappers + key: value for key, value in before.items()}, "net.pt")
    relax_checkpoint("net.pt", "relaxed", options=options)
    strip_folder("relaxed", "clean", StripSettings(measure=MeasureSettings(1, 1)), options=options)
    verification = verify_clean("clean", "net.pt", options, "O3")
    assert verification.holds, verification.differences
    after = load_file("clean/model.safetensors")
    assert after.keys() == before.keys()
    assert [key for key, value in before.items() if not same_bytes(value, after[key])] == []


@pytest.mark.filterwarnings("ignore")  # of torch, that some of these are experimental or deprecated
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(2).to_sparse(), "is of the layout sparse_coo"),
        (lambda: torch.eye(2).to_sparse_csr(), "is of the layout sparse_csr"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is nested"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "is quantized"),
        (lambda: torch.ones(3, device="meta"), "is on the meta device, without values"),
        (lambda: torch.ones(3, dtype=torch.complex32), "is of the dtype complex32"),
        (lambda: torch.ones(3, dtype=torch.complex128), "is of the dtype complex128"),
        (lambda: torch.nn.LazyLinear(3).weight, "names torch.nn.parameter.UninitializedParameter"),
    ],
    ids=["coo", "csr", "nested", "quantized", "meta", "complex32", "complex128", "lazy"],
)
def test_tensors_that_could_not_be_written_are_refused_by_name_when_they_are_read(
    tmp_path: Path, make: Callable[[], torch.Tensor], words: str
) -> None:
    torch.save({"weight": torch.ones(2), "odd": make()}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "net.pt")
    assert words in str(caught.value)
    assert "'odd'" in str(caught.value) or isinstance(caught.value, TrustError)


@pytest.mark.parametrize("asks", ["float", "table", pytest.param("softmax", marks=pytest.mark.slow)])
def test_a_network_that_asks_for_float32_is_judged_in_float64(surgeon: Surgeon, asks: str) -> None:
    certificate = whole_way(surgeon, asking(asks), onnx=asks == "softmax")
    assert read_relaxed("asks-relaxed").config.float64 == {"how": "answered", "why": ""}
    assert certificate["equivariance"]["stripped"]["float64"]["identity"]["maximum"] < 1e-12  # type: ignore[index]
    assert {site.evidence for site in open_path("asks-run").relaxation.plan.sites} != {"annotation"}  # type: ignore[union-attr]


def test_a_network_that_insists_on_float32_is_judged_in_float32_and_that_is_said(surgeon: Surgeon) -> None:
    certificate = whole_way(surgeon, asking("insists"))
    stored = read_relaxed("asks-relaxed").config.float64
    assert stored is not None
    assert stored["how"] is None
    assert "TypeError: float32 only" in str(stored["why"])
    assert set(certificate["equivariance"]["stripped"]) == {"float32"}  # type: ignore[index]
    assert "TypeError: float32 only" in Path("asks-clean/CERTIFICATE.md").read_text()


def test_constants_that_models_share_meet_weights_in_eval_mode_alone(surgeon: Surgeon) -> None:
    """Such a network is made in float64 without a complaint, as some layers of escnn are; a copy of it is cast."""
    Path("expanding.py").write_text(Path("task.py").read_text() + EXPANDING)
    workspace = open_path("net.pt", OpenOptions(task="expanding.py"))
    twin = workspace.double(workspace.model).eval()
    assert {tensor.dtype for tensor in (*twin.parameters(), *twin.buffers())} == {torch.float64}
    assert workspace.model.eval().table.numbers.dtype == torch.float32


@pytest.mark.parametrize("asks", ["float", "table", "insists"])
def test_a_network_in_float32_that_is_not_equivariant_is_refused(surgeon: Surgeon, asks: str) -> None:
    refused = surgeon("relax", "asks.pt", *asking(f"{asks}, breaks"), code=1)
    assert "under 'identity' (its connected component) its outputs deviate" in " ".join(refused.err.split())
    assert ("float32, median of elements" if asks == "insists" else "float64, largest") in refused.err
    assert not Path("asks-relaxed").exists()


@pytest.mark.slow
def test_a_float64_checkpoint_goes_the_whole_way(surgeon: Surgeon) -> None:
    whole_way(surgeon, asking("", torch.float64))


@pytest.mark.slow
def test_a_bfloat16_checkpoint_goes_as_far_as_onnx_runtime_does(surgeon: Surgeon) -> None:
    whole_way(surgeon, asking("", torch.bfloat16), onnx=False)
    told = surgeon("export", "asks-run", "-o", "asks-onnx", "--onnx", *QUICK, code=2).err
    assert "got bfloat16: relax and train a float32 copy of the checkpoint; nothing was written" in told
    assert not Path("asks-onnx").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_checkpoints_of_other_dtypes_are_trained_on_batches_in_float32(surgeon: Surgeon, dtype: torch.dtype) -> None:
    surgeon("relax", "asks.pt", *asking("", dtype))
    surgeon("finetune", "asks-relaxed", "--epochs", "1", "--lr", "1e-2")
    assert {value.dtype for value in load_file("asks-run/relaxation.safetensors").values()} == {dtype}


def test_a_float16_checkpoint_is_refused_before_anything_is_written(surgeon: Surgeon) -> None:
    told = surgeon("relax", "asks.pt", *asking("", torch.float16), code=2).err
    assert "got float16, whose gradients and penalties leave its range" in told
    assert not Path("asks-relaxed").exists()


def test_batches_that_the_model_cannot_be_trained_on_are_refused_before_anything_is_written(surgeon: Surgeon) -> None:
    options = asking("")
    wide = "\n_drawn = TinyTask.batches\nTinyTask.batches = lambda self, *given: ("
    wide += "{key: value.double() for key, value in batch.items()} for batch in _drawn(self, *given))\n"
    Path("asks.py").write_text(Path("asks.py").read_text() + wide)
    told = surgeon("relax", "asks.pt", *options, code=2).err
    assert "expected a float32 model that trains on the task's batches in float64" in told
    assert not Path("asks-relaxed").exists()
