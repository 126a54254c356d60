"""Potentials with frozen parts, and in bfloat16, from their file to their file."""

from __future__ import annotations

import re
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")
pytest.importorskip("typer", reason="the command line is not installed: make test-mace")

from surgeon.errors import TaskError  # noqa: E402
from surgeon_adapters.mace.task import MaceTask  # noqa: E402
from surgeon_cli.main import main  # noqa: E402
from tests.families.mace_small import crystal, reopened, saved, small  # noqa: E402 (it needs mace)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

FROZEN = ("node_embedding.", "interactions.0.conv_tp_weights.", "products.0.linear.")


def copy_of_small(folder: Path) -> Any:
    """A potential that may be changed."""
    return reopened(saved(folder / "copy.model", small()))


def from_file_to_file(folder: Path, module: torch.nn.Module, data: Path) -> Any:
    """Relax, fine-tune for a step and export a potential; return the module in the new file."""
    saved(folder / "base.model", module)
    task = ("--task", f"mace:{data}", "--task-args", '{"batch_size": 3, "fraction": 0.4}')
    kept = ("--reference", "keep", "--strip-mode", "fold")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (
            ("relax", "base.model", "--trust-pickle", *task, *kept, "-o", "relaxed"),
            ("finetune", "relaxed", "--epochs", "1", "--lr", "3e-2", "-o", "run"),
            ("export", "run", "--trust-pickle", "--container", "-o", "clean"),
        ):
            with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit) as caught:
                main(list(arguments))
            assert caught.value.code == 0, f"{arguments}: {out.getvalue()}"
    return reopened(folder / "clean" / "base.model")


def test_frozen_parts_stay_as_they_are(tmp_path: Path) -> None:
    module = copy_of_small(tmp_path)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    after = dict(from_file_to_file(tmp_path, module, crystal(tmp_path)).named_parameters())
    assert list(after) == list(before)
    assert any(name.startswith(FROZEN) for name in after)
    for name, value in after.items():
        assert value.requires_grad is not name.startswith(FROZEN), name
        assert torch.equal(value, before[name]) is name.startswith(FROZEN), name


def test_half_precision_goes_from_file_to_file_where_there_are_no_stresses(tmp_path: Path) -> None:
    module, data = copy_of_small(tmp_path).bfloat16(), crystal(tmp_path)
    with pytest.raises(TaskError, match="without stresses for a MACE potential in bfloat16"):
        MaceTask(data, fraction=0.4).for_model(module)
    MaceTask(data, fraction=0.4).for_model(small())
    data.write_text(re.sub(r' stress="[^"]*"', "", data.read_text()))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    after = from_file_to_file(tmp_path, module, data).state_dict()
    assert list(after) == list(before)
    assert {name: value.dtype for name, value in after.items()} == {k: value.dtype for k, value in before.items()}
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
