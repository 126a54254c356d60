"""``make test-e3nn-suite``: e3nn's own tests, with every layer that they build relaxed at θ = 0 and stripped again.

A layer gets dense branches with random W as soon as it is built, so that a W that acts, however little, breaks what
e3nn asserts of it: normalisation, equivariance, values. It is stripped when its test ends, or before it is handed to
TorchScript or torch.compile, which take a clean layer only, or the weights of one; its state dict has to be what it was
but for the branches.
torch.compile stops at the graph (backend "eager"): what C++ is made of a clean layer is not in question here.

What fails is run once more with e3nn alone: only a test that passes there counts against the branches.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import e3nn
import pytest
import torch
from e3nn import o3
from torch import nn

import surgeon
from surgeon.errors import NothingToRelaxError
from surgeon.plan import CHILD

LAYERS = (o3.Linear, o3.TensorProduct)
TAKING = (
    *((torch.jit, "script"), (torch.jit, "trace"), (torch.jit, "trace_module"), (torch, "compile")),
    (nn.Module, "load_state_dict"),
)
"""What is handed a module only after it was stripped."""


class Layers:
    """The layers that were built: how many could be relaxed, and those that still are."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._relaxed: list[nn.Module] = []

    def built(self, layer: nn.Module) -> None:
        """Relax a new layer at θ = 0, if it has weights of its own that more than invariants meet."""
        self.counts["built"] += 1
        try:
            plan = surgeon.find(layer, "O3")
        except NothingToRelaxError:
            return
        surgeon.relax(layer, plan, dense=True, init_scale=1.0).set_theta(0.0)
        self.counts["relaxed"] += 1
        self._relaxed.append(layer)  # held, so that it is stripped though its test has let it go

    def strip(self, model: Any) -> None:
        """Strip every relaxed layer in a module; a copy of one is one."""
        for layer in list(model.modules()) if isinstance(model, nn.Module) else ():
            if CHILD in layer._modules:
                self._strip(layer)

    def strip_all(self) -> None:
        """Strip what still is relaxed."""
        for layer in self._relaxed:
            self.strip(layer)
        self._relaxed.clear()

    def _strip(self, layer: nn.Module) -> None:
        own = {name: value.clone() for name, value in layer.state_dict().items() if CHILD not in name.split(".")}
        surgeon.strip(layer)
        self.counts["stripped"] += 1
        left = layer.state_dict()
        assert list(left) == list(own), "stripping changes the keys"
        assert all(torch.equal(left[name], value) for name, value in own.items()), "stripping changes weights"
        assert not layer._forward_hooks, "stripping leaves a hook behind"


@contextmanager
def every_layer_relaxed() -> Iterator[Layers]:
    """While the context is open, each layer that e3nn builds is relaxed; all are stripped when it is left."""
    layers, patch, compiler = Layers(), pytest.MonkeyPatch(), torch.compile

    def building(init: Callable[..., None]) -> Callable[..., None]:
        def built(layer: nn.Module, *args: Any, **kwargs: Any) -> None:
            init(layer, *args, **kwargs)
            layers.built(layer)

        return built

    def taking(take: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                layers.strip(value)
            return take(*args, **{**kwargs, **({"backend": "eager"} if take is compiler else {})})

        return taken

    for layer in LAYERS:
        patch.setattr(layer, "__init__", building(layer.__init__))
    for module, name in TAKING:
        patch.setattr(module, name, taking(getattr(module, name)))
    try:
        yield layers
        layers.strip_all()
    finally:
        patch.undo()


class Results:
    """Which tests have failed, and how many passed."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a test's name if it, or what it needs, failed."""
        self.passed += report.passed and report.when == "call"
        if report.failed:
            self.failed[report.nodeid] = None


class Plugin(Results):
    """Strips after each test."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = layers

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Strip what a test, or its fixtures, have built; it fails if that leaves anything."""
        yield
        self.layers.strip_all()


def complaint(folder: Path | None) -> str:
    """Return what is wrong with a folder of sources; empty if it can be tested."""
    wanted = f"the folder of e3nn's sources, version {e3nn.__version__} as installed: make test-e3nn-suite E3NN=folder"
    if folder is None:
        return f"expected {wanted}; got none"
    for needed in ("pyproject.toml", "tests/conftest.py", "e3nn/__init__.py"):
        if not (folder / needed).is_file():
            return f"expected {wanted}; {folder} has no {needed}"
    found = re.search(r"__version__ = \"(.+)\"", (folder / "e3nn" / "__init__.py").read_text())
    version = found[1] if found else "unknown"
    return "" if version == e3nn.__version__ else f"expected {wanted}; the sources in {folder} are of version {version}"


def main() -> int:
    """Run e3nn's tests; arguments that are not known go to pytest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=lambda given: Path(given).resolve() if given else None)
    options, further = parser.parse_known_args()
    if complaint(options.folder):
        print(complaint(options.folder), file=sys.stderr)
        return 2
    folder = options.folder
    given = ["-c", str(folder / "pyproject.toml"), "--rootdir", str(folder), "-p", "no:cacheprovider", "-q", "-rs"]
    tests = [] if any(".py" in each for each in further) else [str(folder / "tests")]
    with every_layer_relaxed() as layers:
        plugin = Plugin(layers)
        code = pytest.main([*given, *tests, *further], plugins=[plugin])
    told = ", ".join(f"{count} {what}" for what, count in layers.counts.items())
    print(f"e3nn {e3nn.__version__}, torch {torch.__version__}; layers: {told or 'none'}")
    return verdict(int(code), plugin, lambda: failing_alone(folder, given, plugin.failed))


def failing_alone(folder: Path, given: Sequence[str], failed: Collection[str]) -> Collection[str]:
    """Run tests with e3nn as it is; return those that fail."""
    print(f"running the {len(failed)} that failed with e3nn alone")
    alone = Results()
    pytest.main([*given, *(str(folder / name) for name in failed)], plugins=[alone])
    return alone.failed


def verdict(code: int, results: Results, alone: Callable[[], Collection[str]]) -> int:
    """Say which tests fail with e3nn alone, too, and return the exit status: 0 if no other fails."""
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return code
    theirs = alone() if results.failed else ()
    ours = [name for name in results.failed if name not in theirs]
    for name in results.failed:
        print(f"{'fails with branches only' if name in ours else 'fails with e3nn alone, too'}: {name}")
    failing = (
        f"{len(results.failed)} fail with branches, {len(results.failed) - len(ours)} of these with e3nn alone, too"
    )
    print(f"{results.passed} passed, {failing}")
    return code if ours else 0


if __name__ == "__main__":
    sys.exit(main())
