"""What torch's ONNX exporter computes anew for every node although it is known, and is left out while a graph is made.

These are details of torch that may change: where one is not found, the exporter does as it does by itself. Whatever it
writes is compared with the model by its values.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

_PROMOTION = "torch.onnx._internal.fx.passes.type_promotion"


@contextlib.contextmanager
def known_once() -> Iterator[None]:
    """While this is open, types are promoted by the values that tracing left, and a schema is read once for its op."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(_PROMOTION, "_TypePromotionInterpreter", "run_node", _promoting))
        stack.enter_context(_replaced("onnx_ir.schemas", "OpSignature", "from_op_schema", _remembering))
        yield


@contextlib.contextmanager
def _replaced(module: str, name: str, method: str, by: Callable[[Any, Any], Any]) -> Iterator[None]:
    """Put another method in the place of a class's own, if there is such a class."""
    try:
        holder = importlib.import_module(module)
        owner, own = getattr(holder, name), vars(getattr(holder, name))[method]
        other = by(holder, own)
    except (ImportError, AttributeError, KeyError):
        yield
        return
    setattr(owner, method, other)
    try:
        yield
    finally:
        setattr(owner, method, own)


def _promoting(module: Any, own: Callable[..., Any]) -> Callable[..., Any]:
    """Return what promotes the arguments of a node, and runs it again only if that changes them."""
    rule_of = module.get_type_promotion_rule
    if not hasattr(module._TypePromotionInterpreter, "_maybe_promote_node"):
        return own

    def run_node(self: Any, node: Any) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return own(self, node)
        with self._set_current_node(node):
            rule = rule_of(node, self.type_promotion_table)
            if rule:
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    return run_node


def _remembering(_: Any, own: Any) -> Any:
    """Return what reads a schema only once for each op."""
    found: dict[tuple[str, str, int], Any] = {}

    def from_op_schema(cls: Any, schema: Any) -> Any:
        key = (schema.domain, schema.name, schema.since_version)
        if key not in found:
            found[key] = own.__func__(cls, schema)
        return found[key]

    return classmethod(from_op_schema)
