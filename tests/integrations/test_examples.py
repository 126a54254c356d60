"""The examples run as they stand, learn something, and give the original's keys back."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import surgeon
from surgeon.editing.branch import branches_of
from surgeon.integrations.settings import base_class, require_library
from tests.integrations.loops import batches, largest_difference, network, plain_loop
from tests.processes import forked_code
from tests.tutorials import BLOCK, ROOT, aligned, steps

FOLDER = Path(__file__).parents[2] / "examples" / "integrations"
NEEDS = {
    "plain_loop": "e3nn",
    "accelerate_loop": "accelerate",
    "lightning_callback": "lightning",
    "transformers_trainer": "transformers",
}
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in ("lightning", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def test_every_example_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == NEEDS.keys()


@pytest.mark.parametrize("name", NEEDS)
def test_example(name: str, tmp_path: Path) -> None:
    if find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed: make test-integrations")
    run = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = forked_code(tmp_path, run, str(FOLDER / f"{name}.py"))
    assert done.returncode == 0, done.stderr
    if name == "lightning_callback":
        (block,) = BLOCK.finditer((ROOT / "docs/tutorials/training_loops.md").read_text("utf-8"))
        ((_, shown),) = steps(block["text"])
        assert aligned(shown, done.stdout) is not None
    numbers = re.search(r"clean error (\S+) before, (\S+) after", done.stdout)
    assert numbers, done.stdout
    assert float(numbers[2]) < 0.2 * float(numbers[1])
    said = re.findall(r"(?:original's|too): (\w+)", done.stdout)
    assert said
    assert set(said) == {"True"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("document", ["README.md", "docs/training.md"])
def test_the_lines_of_the_documents_run(document: str) -> None:
    text = (FOLDER.parents[1] / document).read_text("utf-8")
    block = next(
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "surgeon.strip(model)" in block
    )
    data, model = batches(6), network()
    keys, thetas = list(model.state_dict()), []

    def task_loss(net: Any, batch: Any) -> torch.Tensor:
        thetas.append([float(branch.theta[0]) for branch in branches_of(model).values()])
        loss: torch.Tensor = net(*batch).square().mean()
        return loss

    names: dict[str, Any] = {
        "surgeon": surgeon,
        "model": model,
        "sample_inputs": data[0][:2],
        "batches": [batch[:2] for batch in data],
        "held_out": data[0][:2],
        "steps": len(data),
        "task_loss": task_loss,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3),
    }
    exec(block.replace("import surgeon\n", ""), names)  # noqa: S102
    assert list(model.state_dict()) == keys
    assert [len(theta) for theta in thetas[: len(data)]] == [2] * len(data)
    assert thetas[0] == [0, 0] != thetas[3]
    assert names["loss"].requires_grad


def test_the_loop_by_hand_relaxes() -> None:
    """What the integrations are compared with does something by itself."""
    found = plain_loop(network(), batches(12))
    assert largest_difference(found, plain_loop(network(), batches(12), weight=0.0)) > 1e-6
    assert largest_difference(found, plain_loop(network(), batches(12), factor=1.0)) > 1e-6


def test_without_the_libraries_importing_works_and_using_says_so() -> None:
    code = f"""
{HIDE}
from importlib import import_module
from surgeon.errors import UsageError

import_module("surgeon.integrations")
lightning, transformers = (import_module(f"surgeon.integrations.{{name}}") for name in ("lightning", "transformers"))
for use in (lambda: lightning.RelaxationCallback("O3"), lambda: transformers.RelaxedTrainer(relaxation=None)):
    try:
        use()
    except UsageError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    told = "expected {0} to be installed, but it is not: pip install 'equisurgeon[{0}]'\n"
    assert done.stdout == told.format("lightning") + told.format("transformers"), done.stderr


def test_a_library_that_is_broken_is_not_taken_for_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_library.py").write_text("import a_part_that_is_missing", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_part_that_is_missing"):
        base_class("broken_library", "Class")
    require_library(base_class("collections", "OrderedDict"), "collections")
    assert base_class("no_such_library", "Class") is object
