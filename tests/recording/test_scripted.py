"""Recordings of TorchScript do not depend on how often it has run, in this process or in another."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from surgeon.proof.certify import certify
from surgeon.recording.compare import graph_hash
from surgeon.recording.record import record
from surgeon.support.attributes import attributes_of
from tests.processes import forked_code


class Inner(nn.Module):
    """What the profiling executor fuses, differentiates and specialises after a few runs."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.eye(3)), factor

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        z = (y.sin() * self.factor + 1).cos()
        if bool(z.sum() > 0):
            z = z * 2
        return (z + y).tanh() * z.sigmoid()


class Forces(nn.Module):
    """The gradient of a scripted energy."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.inner = torch.jit.script(Inner(factor))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.inner(x).sum(), x, create_graph=True)[0]


def run(model: nn.Module) -> Tensor:
    result: Tensor = model(torch.linspace(-1, 1, 12).reshape(4, 3))
    return result


def digest() -> str:
    """Certify a fresh model against itself and return the hash of its graph."""
    certificate = certify(net := Forces(), net, run)
    assert certificate.grade == "same graph", certificate.differences
    (only,) = set(certificate.details["graph_sha256"])
    return str(only)


def test_every_run_is_recorded_alike() -> None:
    net = Forces()
    hashes = set()
    for _ in range(4):
        hashes.add(graph_hash(record(net, forward=run).graph))
        run(net)
    assert len(hashes) == 1
    assert certify(copy.deepcopy(net), net, run).grade == "same graph"


def test_a_fresh_process_records_the_same() -> None:
    done = forked_code(Path.cwd(), "from tests.recording.test_scripted import digest; print(digest())")
    assert done.stdout.split() == [digest()], done.stderr


def test_attributes_and_code_of_scripted_modules_are_compared() -> None:
    before, after = Forces(), Forces(3.0)
    assert certify(before, Forces(), run).grade == "same graph"
    certificate = certify(before, after)
    assert certificate.differences == ("attribute inner.factor: expected 2.0, got 3.0",)
    assert "sin" in attributes_of(before)["inner.code"]


def test_loaded_and_traced_modules_are_read(tmp_path: Path) -> None:
    traced = torch.jit.trace(nn.Linear(3, 3), torch.randn(2, 3))
    torch.jit.save(traced, tmp_path / "traced.pt")
    for net in (traced, torch.jit.load(tmp_path / "traced.pt")):
        assert certify(net, net, run).grade == "same graph"


@torch.jit.script
def scripted(x: Tensor, factor: float = 2.0) -> Tensor:
    y = (x.sin() * factor + 1).cos()
    return y.tanh() * y


class Calls(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.autograd.grad(scripted(x.requires_grad_()).sum(), x)[0]


def test_scripted_functions_are_recorded_as_they_are_written() -> None:
    net, hashes, call = Calls(), set(), torch.jit.ScriptFunction.__call__
    for _ in range(4):
        hashes.add(graph_hash(record(net, forward=run).graph))
        run(net)
    assert len(hashes) == 1
    assert torch.jit.ScriptFunction.__call__ is call
