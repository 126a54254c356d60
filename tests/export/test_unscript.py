"""TorchScript inside models: eager equivalents with equal keys and equal bits, or a sentence."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import CheckFailedError
from surgeon.export import unscript
from surgeon.export.onnx_file import export_onnx
from surgeon.export.stripped import Stripped
from surgeon.export.torchscript import Unscripted
from surgeon.export.unscript import find_scripted, unscripted
from tests.export.gated import Gated, GatedTask
from tests.export.scripted import Around, Flow, Forked, again

pytestmark = [
    pytest.mark.e3nn,
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def flow() -> Flow:
    module = Flow()
    module.norm.running_mean = torch.tensor([0.3, -0.2])
    return module.eval()


WAYS: dict[str, Callable[[], Any]] = {
    "script": lambda: torch.jit.script(flow()),
    "trace": lambda: torch.jit.trace(flow(), torch.ones(5, 2)),
    "load": lambda: again(torch.jit.script(flow())),
}


def run(model: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return [model(torch.randn(size, 2, generator=generator)) for size in (2, 4, 9)]


@pytest.mark.parametrize("way", WAYS)
def test_every_op_of_a_scripted_module_gives_the_same_bits(way: str) -> None:
    scripted = WAYS[way]()
    eager = Unscripted(scripted, "inner").eval()
    assert list(eager.state_dict()) == list(scripted.state_dict())
    for size in (2, 3, 4, 9):
        x = torch.randn(size, 2)
        assert all(map(torch.equal, eager(x), scripted(x)))
    if way != "trace":
        assert torch.equal(eager(x, twice=False, scale=3.0)[0], scripted(x, 3.0, False)[0])
        with pytest.raises(TypeError, match="inner takes the arguments x, scale, twice"):
            eager(x, other=1)
    copy.deepcopy(eager).double()(x.double())


def test_a_copy_is_changed_and_the_model_is_not() -> None:
    model = Around(torch.jit.script(flow())).eval()
    assert list(find_scripted(model)) == ["inner"]
    (eager,) = unscripted([model], run)
    assert list(find_scripted(model)) == ["inner"]
    assert not find_scripted(eager)
    assert eager.inner is eager.again
    assert list(eager.state_dict()) == list(model.state_dict())
    assert all(map(torch.equal, run(eager), run(model)))


def test_a_model_that_is_scripted_as_a_whole_and_one_that_is_not_at_all() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Tanh()).eval())
    (eager,) = unscripted([model], run)
    assert not isinstance(eager, torch.jit.ScriptModule)
    assert all(map(torch.equal, run(eager), run(model)))
    plain = nn.Linear(2, 2)
    assert unscripted([plain], run) == [plain]


def test_what_cannot_leave_torchscript_is_named() -> None:
    model = Around(torch.jit.script(Forked()))
    with pytest.raises(CheckFailedError, match=r"inner is a TorchScript module \(Forked\) with .* prim::fork, which"):
        unscripted([model], run)


@pytest.mark.parametrize(("change", "words"), [("outputs", "other outputs"), ("keys", "other keys")])
def test_a_replacement_that_differs_is_noticed(change: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Unscripted):
        def __init__(self, scripted: Any, name: str) -> None:
            super().__init__(scripted, name)
            if change == "keys":
                self.register_buffer("more", torch.zeros(1))

        def forward(self, *arguments: Any, **named: Any) -> Any:
            found = super().forward(*arguments, **named)
            return tuple(t * (1 + 1e-6) for t in found) if change == "outputs" else found

    monkeypatch.setattr(unscript, "Unscripted", Other)
    with pytest.raises(CheckFailedError, match=words):
        unscripted([Around(torch.jit.script(flow())).eval()], run)


@pytest.fixture
def scripting() -> Iterator[None]:
    """Build e3nn's layers in TorchScript, whatever the version's default is."""
    import e3nn

    before = e3nn.get_optimization_defaults()
    name, value = ("jit_mode", "script") if "jit_mode" in before else ("jit_script_fx", True)
    e3nn.set_optimization_defaults(**{name: value})
    yield
    e3nn.set_optimization_defaults(**{name: before[name]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.usefixtures("scripting")
def test_layers_of_e3nn(dtype: torch.dtype, pickled: bool) -> None:
    model = Gated(harmonics=not pickled).to(dtype).eval()  # e3nn 0.6 cannot save scripted harmonics
    if pickled:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        model = torch.load(buffer, weights_only=False)
    assert "first._compiled_main" in find_scripted(model)
    batches = [(torch.randn(size, 8, dtype=dtype), torch.randn(size, 3, dtype=dtype)) for size in (1, 2, 7)]

    def outputs(given: nn.Module) -> list[Tensor]:
        return [given(*batch).detach() for batch in batches]

    (eager,) = unscripted([model], outputs)
    assert not find_scripted(eager)
    assert all(map(torch.equal, outputs(eager), outputs(model)))
    assert not find_scripted(copy.deepcopy(eager.first))


@pytest.mark.slow
@pytest.mark.usefixtures("scripting")
def test_scripted_layers_of_e3nn_are_exported(tmp_path: Path) -> None:
    model = Gated(harmonics=False).eval()  # e3nn 0.6 cannot copy scripted harmonics
    twin = copy.deepcopy(model).double()
    record = export_onnx(tmp_path / "model.onnx", Stripped(model, copy.deepcopy(model), twin, GatedTask()))
    assert record["deviation"] <= 1
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    x, v = torch.randn(20, 8), torch.randn(20, 3)
    (found,) = session.run(None, {"x": x.numpy(), "v": v.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x, v).detach(), rtol=1e-4, atol=1e-5)
