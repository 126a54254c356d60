"""Why torch's exporter failed, in one sentence: which operation, in which module, at which line of whose code."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from surgeon.support.imports import one_line

_LONGEST = 300
_FIXED = re.compile(r"\['tensors'\]\['([^']+)'\]\.(?:size\(\)|shape)\[(\d+)\]")
_MISSING_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
_ONE_SIZE = re.compile(r"not in VR\[(\d+), \1\]")
_LINE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def reason(error: BaseException, model: nn.Module) -> str:
    """Return why a model cannot be exported, in words.

    Args:
        error: what torch's exporter raised.
        model: the model as it was exported.
    """
    chain = list(_causes(error))
    text = "\n".join(str(each) for each in chain)
    innermost = chain[-1]
    operator = _MISSING_OPERATOR.search(text)
    if operator is not None:
        return f"the operator {operator[1].replace('.', '::')}{_place_of_node(chain)} has no counterpart in ONNX"
    place = _place(chain, model)
    kind = type(innermost).__name__
    if kind.startswith("GuardOnDataDependent"):
        return f"what it computes depends on values that are only known when it runs{place}: choose with torch.where"
    if kind == "UnsupportedOperatorException":
        name = str(innermost).split()[0].rpartition(".")[0].replace(".", "::")
        return f"the operator {name}{place} cannot be traced: register a fake implementation of it"
    axis = _FIXED.search(text)
    if axis is not None:
        return (
            f"the forward gives axis {axis[2]} of {axis[1]} the fixed size of the example: compute with sizes as they "
            "come, without turning them into plain numbers"
        )
    size = _ONE_SIZE.search(str(innermost))
    if size is not None:
        return f"it works for no other size than {size[1]}{place}"
    return f"{one_line(innermost)[:_LONGEST]}{place}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Follow an error to what it was raised from."""
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__


def _frames(chain: list[BaseException]) -> Iterator[tuple[FrameType, int]]:
    """Return all frames that the errors passed through, innermost last, with their lines."""
    for error in chain:
        trace = error.__traceback__
        while trace is not None:
            yield trace.tb_frame, trace.tb_lineno
            trace = trace.tb_next


def _place(chain: list[BaseException], model: nn.Module) -> str:
    """Return the innermost module that was running, and the innermost line that is neither torch's nor ours."""
    names = {id(module): name for name, module in model.named_modules()}
    owner, line = "", ""
    for frame, number in _frames(chain):
        module = frame.f_locals.get("self")
        if id(module) in names and isinstance(module, nn.Module):
            owner = names[id(module)]
        if _is_users(frame.f_code.co_filename):
            line = _line(frame.f_code.co_filename, number, frame.f_code.co_name)
    return _in_words(owner, line)


def _place_of_node(chain: list[BaseException]) -> str:
    """Return the place that torch noted at the node which it could not translate."""
    node: torch.fx.Node | None = None
    for frame, _ in _frames(chain):
        found = frame.f_locals.get("node")
        node = found if isinstance(found, torch.fx.Node) else node
    if node is None:
        return ""
    stack: list[Any] = list(node.meta.get("nn_module_stack", {}).values())
    owner = str(stack[-1][0]) if stack else ""
    lines = [match for match in _LINE.findall(node.meta.get("stack_trace") or "") if _is_users(match[0])]
    line = _line(lines[-1][0], int(lines[-1][1]), lines[-1][2]) if lines else ""
    return _in_words(owner.removeprefix("model").removeprefix("."), line)


def _is_users(file: str) -> bool:
    own, torch_folder = Path(__file__).parents[1], Path(torch.__file__).parent
    library = Path(sysconfig.get_paths()["stdlib"])
    path = Path(file)
    if "site-packages" not in path.parts and path.is_relative_to(library):
        return False
    return path.is_absolute() and not path.is_relative_to(own) and not path.is_relative_to(torch_folder)


def _line(file: str, number: int, function: str) -> str:
    return f"line {number} of {file}, in {function}"


def _in_words(owner: str, line: str) -> str:
    module = f" in the module {owner}" if owner else ""
    return f"{module} ({line})" if line else module
