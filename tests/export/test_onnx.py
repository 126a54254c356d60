"""ONNX that is checked before it is written: names, sizes, equality of graphs, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.insert import relax
from surgeon.editing.strip import strip
from surgeon.errors import CheckFailedError, PrecisionError, TaskError, UsageError
from surgeon.export.checks import check_onnx
from surgeon.export.convert import to_onnx
from surgeon.export.onnx_file import export_onnx
from surgeon.export.sample import sample_of
from surgeon.export.signature import compare_signatures, signature, signature_hash
from surgeon.export.stripped import Stripped
from surgeon.finding.find import find
from tests.commands import QUICK, Surgeon
from tests.tiny import Net, TinyTask

TASK = TinyTask()
SAMPLE = sample_of(TASK, torch.float32)


def rows(model: nn.Module) -> Any:
    converted = to_onnx(model, TASK, SAMPLE)
    converted.graph.outputs[0].name = "output"
    return signature(converted, model.state_dict())


def beside(model: nn.Module, original: nn.Module | None = None, group: str | None = None) -> Stripped:
    """Return a model beside another one, or a copy of itself."""
    named = None if group is None else parse_group(group)
    double = copy.deepcopy(model).double()
    return Stripped(model, copy.deepcopy(model) if original is None else original, double, TASK, named)


def test_bfloat16_is_refused_before_anything_is_converted(tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="got bfloat16: relax and train a float32 copy"):
        export_onnx(tmp_path / "model.onnx", beside(Net().bfloat16()))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def exported(net: Net, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file, beside an original whose weights are equal, and ones: what an optimiser would merge or drop."""
    path, special = tmp_path_factory.mktemp("onnx") / "model.onnx", copy.deepcopy(net)
    with torch.no_grad():
        for parameter in special.parameters():
            parameter.fill_(1.0)
    return path, export_onnx(path, beside(net, special, group="O3"))


def test_the_file_computes_what_the_model_does_at_any_size(net: Net, exported: tuple[Path, dict[str, Any]]) -> None:
    path, record = exported
    session = onnxruntime.InferenceSession(str(path))
    assert [item.name for item in session.get_inputs()] == ["scalars", "vectors"] == record["inputs"]
    for length in (1, 2, 40):
        scalars, vectors = torch.randn(length, 2), torch.randn(length, 2, 3)
        (found,) = session.run(None, {"scalars": scalars.numpy(), "vectors": vectors.numpy()})
        np.testing.assert_allclose(found, net(scalars, vectors).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert set(record["equivariance"]) == set(parse_group("O3").component_names)
    json.dumps(record)


def test_weights_keep_their_names_and_bytes_and_no_path_is_told(
    net: Net, exported: tuple[Path, dict[str, Any]]
) -> None:
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(exported[0]).graph.initializer}
    for name, value in net.named_parameters():
        assert value.detach().numpy().tobytes() == stored[name].tobytes()
    assert str(Path(__file__).parents[2]).encode() not in exported[0].read_bytes()


@pytest.mark.slow
def test_a_branch_is_refused_even_at_theta_zero_and_stripping_gives_the_graph_back(
    net: Net, exported: tuple[Path, dict[str, Any]]
) -> None:
    """Graphs depend on the architecture; that they do not depend on weights is part of what was exported."""
    model = copy.deepcopy(net)
    batch = next(iter(TASK.batches("train", 0)))
    relaxation = relax(model, find(model, "O3", batch["scalars"], batch["vectors"]), dense=True)
    with pytest.raises(CheckFailedError, match="strip it first"):
        to_onnx(model, TASK, SAMPLE)
    strip(relaxation, "drop")
    given_back = rows(model)
    assert signature_hash(given_back) == exported[1]["graph_sha256"]
    model.broken = True
    other = rows(model)
    assert compare_signatures(given_back, other)
    assert signature_hash(other) != exported[1]["graph_sha256"]


class Shifted(Net):
    """Adds a number that is kept in no state dict: as a buffer, and as one of the constants of its forward."""

    def __init__(self, buffer: float, constant: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(buffer), persistent=False)
        self.constant = constant

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        return super().forward(scalars, vectors) + self.shift + torch.tensor([self.constant])


@pytest.mark.parametrize(
    ("original", "said"),
    [
        (Net(hidden=3), "node "),
        (Shifted(0.5, 1.0), "the buffer shift has other values"),
        (Shifted(0.25, 2.0), "_constant_2, which .* reads, has other values"),
    ],
)
def test_another_original_is_noticed(original: nn.Module, said: str, tmp_path: Path) -> None:
    model = Shifted(0.25, 1.0) if isinstance(original, Shifted) else Net()
    with pytest.raises(CheckFailedError, match=f"the model does not compute as the original: {said}"):
        export_onnx(tmp_path / "model.onnx", beside(model, original))


@pytest.mark.slow
def test_a_model_that_is_not_equivariant_is_found_in_onnx_runtime(tmp_path: Path) -> None:
    broken = Net(broken=True)
    with pytest.raises(CheckFailedError, match="under identity"):
        export_onnx(tmp_path / "model.onnx", beside(broken, group="O3"))


def test_a_changed_weight_in_the_file_is_found(exported: tuple[Path, dict[str, Any]], net: Net, tmp_path: Path) -> None:
    damaged = onnx.load(exported[0])
    weight = next(tensor for tensor in damaged.graph.initializer if tensor.name == "second.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(damaged, tmp_path / "damaged.onnx")
    report = check_onnx(tmp_path / "damaged.onnx", beside(net), SAMPLE)
    assert report.deviation > 1
    assert "deviates" in report.differences[0]
    assert check_onnx(exported[0], beside(net), SAMPLE).differences == ()


class Narrow(TinyTask):
    """Batches of length one."""

    def batches(self, split: str, seed: int) -> Any:
        for batch in super().batches(split, seed):
            yield {name: value[:1] for name, value in batch.items()}


def test_what_cannot_be_exported_is_said(net: Net) -> None:
    with pytest.raises(UsageError, match="opset from"):
        to_onnx(net, TASK, SAMPLE, opset=7)
    with pytest.raises(TaskError, match="different sizes"):
        sample_of(Narrow(), torch.float32)

    class Stuck(Net):
        def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
            return super().forward(scalars, vectors) * (2.0 if scalars.sum() > 0 else 1.0)

    with pytest.raises(CheckFailedError, match="cannot be exported"):
        to_onnx(Stuck(), TASK, SAMPLE)


@pytest.mark.slow
def test_the_command_writes_a_checked_file_or_nothing(surgeon: Surgeon, work: Path) -> None:
    surgeon.once("relax", "net.pt", "--group", "O3", "--task", "task.py", "-o", "relaxed")
    export = ("export", "relaxed", "--onnx", "--metrics", "none", *QUICK)
    assert "opset" in surgeon(*export, "-o", "wrong", "--opset", "3", code=2).err
    assert "got 'stress'" in surgeon(*export, "-o", "wrong", "--outputs", "stress", code=2).err
    assert "no derivative" in surgeon(*export, "-o", "wrong", "--energy-only", code=2).err
    assert not (work / "wrong").exists()
    told = surgeon(*export, "-o", "clean", "--outputs", "output").out
    assert "model.onnx: input vectors, float32 (scalars_0, 2, 3), transforms as 1x1o\n" in told
    assert "model.onnx: output output, float32 (scalars_0, 3), transforms as 1x1o\n" in told
    details = json.loads((work / "clean/certificate.json").read_text())["details"]
    assert details["onnx"]["deviation"] <= 1
    onnxruntime.InferenceSession(str(work / "clean/model.onnx"))
