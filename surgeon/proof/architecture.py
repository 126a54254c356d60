"""Whether two models are one architecture: form, classes, attributes, buffers, and the graph of one recorded run."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.editing.branch import branches_of
from surgeon.files.tensors import finite, same_bytes
from surgeon.plan import GRAPH_CHECK
from surgeon.proof.verdict import ModelVerdict, compared
from surgeon.recording.compare import compare_graphs, constants_of, graph_hash
from surgeon.recording.record import Recording, record
from surgeon.support.attributes import attributes_of, full_name, hooks_of
from surgeon.support.copies import copied, deep_copied, lent_weights, traced_again
from surgeon.support.modes import in_evaluation_mode, set_training
from surgeon.support.versions import versions

_TASK_MODULE = re.compile(r"^surgeon_task_[0-9a-f]+\.")


@dataclass(frozen=True)
class Architecture:
    """Everything of a module that is not the value of a parameter."""

    keys: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    classes: Mapping[str, str]
    trainable: Mapping[str, bool]
    hooks: Mapping[str, str]
    attributes: Mapping[str, str]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Architecture:
        """Read a model; buffers are copied."""
        state = model.state_dict()
        modules = list(model.named_modules())
        return cls(
            keys=tuple(state),
            shapes={key: tuple(value.shape) for key, value in state.items()},
            dtypes={key: str(value.dtype) for key, value in state.items()},
            classes={name: full_name(type(module)) for name, module in modules},
            trainable={name: parameter.requires_grad for name, parameter in model.named_parameters()},
            hooks={name: hooks_of(module) for name, module in modules},
            attributes=attributes_of(model),
            buffers={name: buffer.detach().clone() for name, buffer in model.named_buffers()},
        )


@dataclass(frozen=True)
class Written:
    """What a model's own forward writes; it may differ between two models that are one architecture.

    Attributes:
        buffers: those that a forward in training mode changes, with their values before.
        attributes: names of those that a change of mode, or a forward in either mode, changes.
    """

    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    attributes: frozenset[str] = frozenset()


def written_by_running(model: nn.Module, run: Callable[[nn.Module], Any]) -> Written:
    """Run a copy of ``model`` in training mode, then in eval mode, and return what that changes."""
    probe = copied(model, lent_weights(model))  # a forward hardly ever writes to its weights
    seen, written = [attributes_of(probe)], dict[str, Tensor]()
    with torch.random.fork_rng(devices=[]):
        for training in (True, False):
            set_training(probe, training)
            before = {name: buffer.detach().clone() for name, buffer in probe.named_buffers()}
            run(probe)
            after = dict(probe.named_buffers())
            if training:
                written = {name: value for name, value in before.items() if not same_bytes(value, after[name])}
            seen.append(attributes_of(probe))
    names = {name for each in seen for name in each}
    return Written(written, frozenset(name for name in names if len({each.get(name) for each in seen}) > 1))


def classes_of(model: nn.Module) -> dict[str, str]:
    """Return qualified name to class of every module; a class of the task file is called ``task.<class>``.

    The module name under which a task file is imported depends on where the file lies, and a certificate may travel.
    """
    return {name: _TASK_MODULE.sub("task.", text) for name, text in Architecture.of(model).classes.items()}


CONSTANTS_CHECK = "constants of the graph"
FINITE_CHECK, VARIANCE_CHECK = "finite weights and buffers", "running variances"
FORM_CHECKS = (
    "no branch left",
    "state-dict keys and order",
    "shapes",
    "dtypes",
    "module classes",
    "trainable flags",
    "hooks",
    "attributes",
    FINITE_CHECK,
    VARIANCE_CHECK,
    "buffers",
)
CHECKS = (*FORM_CHECKS, GRAPH_CHECK, CONSTANTS_CHECK)
"""Everything that :func:`compare_models` compares; the last two need a run."""


def compare_models(before: nn.Module, after: nn.Module, run: Callable[[nn.Module], Any] | None = None) -> ModelVerdict:
    """Compare two models check by check, in the order of ``CHECKS``; arguments as for :func:`surgeon.certify`.

    The verdict's ``details`` hold versions, the number of tensors and, with a run, hashes and length of the graphs.
    """
    left, right = Architecture.of(before), Architecture.of(after)
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in before.modules())
    if left.keys != right.keys or (scripted and left.attributes != right.attributes):
        # A copy of e3nn's generated tensor products has more keys, and its TorchScript other words: copy both.
        left, right = (Architecture.of(deep_copied(model)) for model in (before, after))
    allowed = written_by_running(before, run) if run else Written()
    buffers, written = _compare_buffers(left.buffers, right.buffers, allowed.buffers)
    known, floating = _floating(before), _floating(after)
    found = [
        [f"branch at {key}" for key in branches_of(after)],
        _differing_keys(left.keys, right.keys),
        _differing("shape of", left.shapes, right.shapes),
        _differing("dtype of", left.dtypes, right.dtypes),
        _differing("class of", left.classes, right.classes),
        _differing("trainable flag of", left.trainable, right.trainable),
        _differing("hooks of", left.hooks, right.hooks),
        _differing("attribute", *(_without(each.attributes, allowed.attributes) for each in (left, right))),
        newly_non_finite(known, floating),
        impossible_statistics(known, floating),
        buffers,
    ]
    differences = dict(zip(FORM_CHECKS, found, strict=True))
    details: dict[str, Any] = {"versions": versions(before), "tensors": len(left.keys)}
    if allowed.attributes:
        details["attributes_written"] = sorted(allowed.attributes)
    if run:
        differences |= _compare_recordings(before, after, run, details)
    findings = tuple(compared(name, sentences) for name, sentences in differences.items())
    return ModelVerdict(findings, written, details=details)


def _without(values: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in names}


def _compare_buffers(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], allowed: Mapping[str, Tensor]
) -> tuple[list[str], dict[str, float]]:
    """Return what differs, and the largest change of each buffer that training may write."""
    differences = _differing("presence of buffer", dict.fromkeys(left, "yes"), dict.fromkeys(right, "yes"))
    written: dict[str, float] = {}
    for name, value in left.items():
        other = right.get(name)
        if other is None or same_bytes(value, other):
            continue
        if name in allowed and (value.shape, value.dtype) == (other.shape, other.dtype):
            written[name] = float((other.double() - value.double()).abs().max()) if value.numel() else 0.0
        else:
            differences.append(f"buffer {name} changed and the model's training forward does not write it")
    return differences, written


def _compare_recordings(
    before: nn.Module, after: nn.Module, run: Callable[[nn.Module], Any], details: dict[str, Any]
) -> dict[str, list[str]]:
    """Compare one run of both models op by op, and the constants that these ops read.

    If they differ, copies are compared: code that e3nn generates keeps its constants otherwise once it was copied.
    """
    found = _compare_runs(before, after, run, details)
    return _compare_runs(traced_again(before), traced_again(after), run, details) if any(found.values()) else found


def _compare_runs(
    before: nn.Module, after: nn.Module, run: Callable[[nn.Module], Any], details: dict[str, Any]
) -> dict[str, list[str]]:
    left = _recorded(before, run)
    try:
        right = _recorded(after, run)
    except Exception as error:  # a damaged model can fail in any way, and that is the verdict
        return {GRAPH_CHECK: [f"the forward of the result fails ({type(error).__name__}: {error})"]}
    details["graph_sha256"] = [graph_hash(left.graph), graph_hash(right.graph)]
    details["graph_nodes"] = len(left.graph.nodes)
    differences = compare_graphs(left.graph, right.graph)
    if differences:  # then nobody knows which constant is which
        return {GRAPH_CHECK: differences}
    ours, theirs = constants_of(left), constants_of(right)
    changed = [name for name, constant in ours.items() if not same_bytes(constant.tensor, theirs[name].tensor)]
    if changed:  # a task may draw its inputs at random: what a second run of the same model changes is no constant
        again = constants_of(_recorded(before, run))
        changed = [name for name in changed if name in again and same_bytes(ours[name].tensor, again[name].tensor)]
    details["graph_constants"] = len(ours)
    sentences = [f"a constant that {ours[name].read_by} reads has other values" for name in changed]
    return {GRAPH_CHECK: [], CONSTANTS_CHECK: sentences}


def _recorded(model: nn.Module, run: Callable[[nn.Module], Any]) -> Recording:
    with in_evaluation_mode(model):
        return record(model, forward=run)


def _floating(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point() or tensor.is_complex()}


def newly_non_finite(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that hold NaN or infinity in places where the original's did not; one is read at a time."""
    return _newly(before, after, lambda tensor: ~finite(tensor), "holds NaN or infinity")


def impossible_statistics(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Name the running variances that are negative where the original's were not."""
    return _newly(before, after, lambda tensor: tensor < 0, "is a variance and negative", "running_var")


def _newly(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    bad: Callable[[Tensor], Tensor],
    words: str,
    ending: str = "",
) -> list[str]:
    sentences = []
    for name in after:
        if not name.endswith(ending):
            continue
        wrong = bad(after[name])
        if wrong.any() and name in before and before[name].shape == wrong.shape:
            wrong &= ~bad(before[name]).to(wrong.device)
        if wrong.any():
            sentences.append(f"{name} {words}, unlike in the original")
    return sentences


def _differing_keys(left: tuple[str, ...], right: tuple[str, ...]) -> list[str]:
    if left == right:
        return []
    missing, added = [k for k in left if k not in right], [k for k in right if k not in left]
    if not missing and not added:
        return ["the same keys in another order"]
    return [*(f"key {key} is missing" for key in missing), *(f"key {key} was added" for key in added)]


def _differing(what: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*left, *right])
    return [
        f"{what} {name or 'the model'}: expected {_short(left, name)}, got {_short(right, name)}"
        for name in names
        if left.get(name) != right.get(name)
    ]


def _short(values: Mapping[str, Any], name: str) -> str:
    text = str(values.get(name, "nothing"))
    return text if len(text) <= 100 else text[:50] + " ... " + text[-45:]
