"""Torch's compiler is imported by the first who compiles, and leaves alone what it has to even so."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from surgeon.support.compiler import DispatchMode, compiler_left_out, not_compiled

IN_A_NEW_PROCESS = """
import sys, torch
from surgeon.recording.record import record
from surgeon.support.compiler import compiler_left_out
from surgeon.support.copies import copied
from surgeon.support.e3nn_compat import import_e3nn

own = torch.compiler.disable
with compiler_left_out():
    o3 = import_e3nn()

    @torch.compiler.disable
    def apart(x, factor=2):
        return factor * x if not torch.compiler.is_compiling() else 0 * x

layer = o3.Linear("2x0e+1x1o", "1x0e+2x1o")
copied(layer)
assert o3.wigner_D(1, *torch.zeros(3, 1)).shape == (1, 3, 3)
assert len(record(layer, torch.randn(2, 5)).graph.nodes) > 2
print(torch.compiler.disable is own, "torch._dynamo" in sys.modules, apart(torch.ones(1), factor=3).item())
graphs = []

def seen(module, inputs):
    graphs.append([node.target for node in module.graph.nodes if node.op == "call_function"])
    return module.forward

whole = torch.compile(lambda x: apart(x.sin()).cos(), backend=seen)
x = torch.ones(2)
print(torch.equal(whole(x), (2 * x.sin()).cos()), ["mul" in str(graph) for graph in graphs])
"""


@pytest.mark.e3nn
def test_e3nn_is_built_and_recorded_without_the_compiler_which_leaves_alone_what_was_decorated_then() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True, check=False)
    assert done.stdout == "True False 3.0\nTrue [False, False]\n", done.stderr


def test_other_uses_of_the_decorator_are_torchs_own() -> None:
    with compiler_left_out():
        layer = torch.compiler.disable(torch.nn.Linear(2, 2))
        later = torch.compiler.disable(recursive=False)
    assert isinstance(layer, torch._dynamo.OptimizedModule)
    assert later(len)([1]) == 1


def test_a_mode_sees_every_op_before_and_after_the_compiler_is_imported() -> None:
    class Counter(DispatchMode):
        count = 0

        def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> object:
            self.count += 1
            return func(*args, **(kwargs or {}))  # type: ignore[operator]

    with Counter() as counter:
        torch.ones(2) + 1
    assert counter.count == 2


def test_a_function_keeps_its_name_and_its_results() -> None:
    def double(x: Tensor) -> Tensor:
        """Twice as much."""
        return 2 * x

    kept = not_compiled(double)
    assert (kept.__name__, kept.__doc__) == ("double", "Twice as much.")
    assert kept(torch.ones(1)).item() == 2
