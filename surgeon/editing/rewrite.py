"""Put branches on raw-parameter ops: into the graph of a GraphModule, or into a traced forward of any other module."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from surgeon.editing.branch import Branch, Branches, branches_child
from surgeon.errors import PlanError
from surgeon.finding.own_forward import NotTraceableError, trace_own_forward
from surgeon.finding.raw_ops import refuse_other_forwards, split_place, trace_forward
from surgeon.finding.watched_ops import is_watched, run_changed
from surgeon.plan import CHILD
from surgeon.support.compiler import not_compiled


class BranchedForward:
    """The forward of one module with branches in it: an attribute of the module that hides its class's forward.

    Attributes:
        places: ``node:operand`` to the slot of the branch that it feeds.
    """

    def __init__(self, owner: nn.Module, places: Mapping[str, str]) -> None:
        self.owner = owner
        self.places = dict(places)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the class's forward, which is what callers look at."""
        return inspect.signature(type(self.owner).forward.__get__(self.owner))


class WatchedForward(BranchedForward):
    """The class's forward, with branches where it runs into their ops; nothing is traced or compiled."""

    @not_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        child = branches_child(self.owner)
        assert child is not None
        changes = {place: (child.get_submodule(slot),) for place, slot in self.places.items()}
        return run_changed(self.owner, changes, args, kwargs)


class RewrittenForward(BranchedForward):
    """A traced forward with branches in it.

    Pickles carry no compiled code: after loading, the forward is traced again when it is first called.
    """

    def __init__(self, owner: nn.Module, places: Mapping[str, str]) -> None:
        super().__init__(owner, places)
        self._function: Any = None

    def build(self) -> None:
        """Trace and compile."""
        graph = trace_own_forward(self.owner)
        insert_branches(graph, self.places)
        code = graph.python_code("self")
        namespace = dict(code.globals)
        exec(compile(code.src, f"<rewritten forward of {type(self.owner).__name__}>", "exec"), namespace)
        self._function = namespace["forward"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the rewritten forward."""
        if self._function is None:
            self.build()
        return self._function(self.owner, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> RewrittenForward:
        twin = memo[id(self)] = RewrittenForward(self.owner, self.places)
        twin.owner = copy.deepcopy(self.owner, memo)
        twin._function = self._function  # takes the owner as its argument
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_function": None}


def insert_branches(graph: fx.Graph, places: Mapping[str, str]) -> None:
    """Let every named op's result pass through its branches, in place.

    Raises:
        PlanError: if the graph has no such op.
    """
    by_name = {node.name: node for node in graph.nodes}
    for place, slot in places.items():
        name, operand = split_place(place)
        if name not in by_name or operand >= len(by_name[name].all_input_nodes):
            raise PlanError(
                f"expected an op {place!r} in the traced forward, but it has {', '.join(by_name)}: the plan was "
                "made for another model"
            )
        node = by_name[name]
        last = node
        while (after := _branch_after(last)) is not None:  # several branches on one op follow each other
            last = after
        with graph.inserting_after(last):
            added = graph.call_module(f"{CHILD}.{slot}", (node.all_input_nodes[operand], last))
        last.replace_all_uses_with(added, delete_user_cb=lambda user, added=added: user is not added)


def _is_branch(node: fx.Node) -> bool:
    return node.op == "call_module" and CHILD in str(node.target).split(".")


def _branch_after(node: fx.Node) -> fx.Node | None:
    """Return the branch that adds to a node's result; one that only reads it as features does not count."""
    return next((user for user in node.users if _is_branch(user) and user.args[1] is node), None)


def check_places(owner: nn.Module, places: Mapping[str, str]) -> None:
    """Check that branches can be put on raw ops of a module, without changing it.

    Args:
        places: ``node:operand`` to slot.

    Raises:
        PlanError: if the forward cannot be traced, or has no such op.
    """
    try:
        if _watched(places):
            refuse_other_forwards(owner)
            require_parameters(owner, places)
        else:
            insert_branches(trace_forward(owner), places)
    except NotTraceableError as error:
        raise PlanError(f"expected a forward that can be traced or followed, but {error}: exclude this site") from error


def _watched(places: Mapping[str, str]) -> bool:
    return any(is_watched(place) for place in places)


def require_parameters(owner: nn.Module, places: Mapping[str, str]) -> None:
    """Check that a module has the parameters by which a plan names ops that its forward runs into.

    Raises:
        PlanError: if it has not.
    """
    names = dict(owner.named_parameters(remove_duplicate=False))
    for place in places:
        if not is_watched(place) or place.partition("@")[0] not in names:
            raise PlanError(
                f"expected an op {place!r} on one of the parameters {', '.join(names)}, but it is none: the plan was "
                "made for another model"
            )


def install(owner: nn.Module, branches: Mapping[str, tuple[str, Branch]]) -> None:
    """Put branches on raw ops of a module, in place; undone by :func:`uninstall`.

    Args:
        branches: ``node:operand`` to slot and branch.

    Raises:
        PlanError: if the forward cannot be traced, or has no such op; the module is unchanged then.
    """
    places = {place: slot for place, (slot, _) in branches.items()}
    check_places(owner, places)
    child = branches_child(owner)
    if child is None:
        child = Branches()
        owner.add_module(CHILD, child)
    for slot, branch in branches.values():
        child.add(slot, branch, None)
    child.train(owner.training)
    if isinstance(owner, fx.GraphModule):
        insert_branches(owner.graph, places)
        owner.recompile()
    else:
        forward = WatchedForward(owner, places) if _watched(places) else RewrittenForward(owner, places)
        if isinstance(forward, RewrittenForward):
            forward.build()
        owner.__dict__["forward"] = forward


def uninstall(owner: nn.Module) -> None:
    """Take the branches out of a module's forward again, in place; nothing of them is left."""
    if isinstance(owner, fx.GraphModule):
        inserted = [node for node in owner.graph.nodes if _is_branch(node)]
        for node in reversed(inserted):
            node.replace_all_uses_with(node.args[1])
            owner.graph.erase_node(node)
        if inserted:
            owner.recompile()
    elif isinstance(owner.__dict__.get("forward"), BranchedForward):
        del owner.__dict__["forward"]
