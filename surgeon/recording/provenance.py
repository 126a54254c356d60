"""Which parameters a recorded run used, and through whose hands."""

from __future__ import annotations

from surgeon.recording.record import Recording


def used_parameters(recording: Recording) -> dict[str, set[str]]:
    """Return, for each parameter that flowed into an op, the qualified names of the modules that ran the op.

    Ops of a backward pass inside the forward (forces as derivatives) use every weight once more and do not count.
    """
    users: dict[str, set[str]] = {}
    for node in recording.graph.nodes:
        if node.op != "call_function" or node.meta["backward"]:
            continue
        for argument in node.meta["sources"]:
            for parameter in argument.meta["parameters"]:
                users.setdefault(parameter, set()).add(node.meta["owner"])
    return users


def bypassed_parameters(recording: Recording) -> dict[str, set[str]]:
    """Return the modules whose own parameters are used by ops that run outside them, with the modules that run these.

    A caller that reads ``child.weight`` and multiplies by itself never runs the child's forward, so a branch attached
    there would not act. A parameter that two modules share counts for the first name only.
    """
    found: dict[str, set[str]] = {}
    for parameter, users in used_parameters(recording).items():
        owner = parameter.rpartition(".")[0]
        outside = {user for user in users if owner and not runs_inside(recording, user, owner)}
        if outside:
            found[owner] = outside
    return found


def runs_inside(recording: Recording, user: str, owner: str) -> bool:
    """Tell whether a module is ``owner`` or inside it, under any of its names."""
    names = recording.aliases.get(user, (user,))
    return not owner or any(name == owner or name.startswith(f"{owner}.") for name in names)
