"""Plain data that the rest of the engine passes around: sites, plans, certificates, and the task protocol.

Everything here converts to JSON and back, so that a person can read, edit and compare it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from surgeon.algebra.equivariance import ErrorSummary
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.named import named_group
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import representation_from
from surgeon.algebra.representations.core import Representation
from surgeon.errors import PlanError
from surgeon.support.plain import Measured, read_plain
from surgeon.support.trees import Place

Source = Literal["annotation", "measurement", "both"]
StripMode = Literal["drop", "fold"]
Split = Literal["train", "validation", "test"]

PLAN_FORMAT_VERSION = 2
SHOWN = 8


@dataclass(frozen=True)
class Convolution:
    """How a convolution moves its kernel; one entry per axis of the grid.

    Attributes:
        stride: steps of the output.
        padding: points added on both sides.
        dilation: spacing of the kernel's points.
        mode: what is added: "zeros", "circular", "reflect" or "replicate".
        frame: signed permutation matrix from the group's coordinates to the grid's axes.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    mode: str
    frame: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, repr=False)
class Site:
    """One place where a branch can be attached: an argument of an op that is linear and equivariant in it.

    Attributes:
        name: qualified name of the op's module; the empty string is the model itself.
        argument: name of the forward parameter that the branch reads; for an op on raw parameters of a module that is
            not linear as a whole, the name of the parameter.
        kind: what the op is, in words ("linear", "tensor product", "convolution").
        adapter: name under which the proposing adapter is registered; empty if the site was found by measurement alone.
        rho_in: representation of the input's feature axes; for a convolution that of the values at one point.
        rho_out: representation of the output's feature axes.
        shape: ``(d_out, d_in)`` of the branch's W, or ``(d_out, d_in, *kernel)``.
        path_in: where the features are inside the argument, if that is a dict, a tuple or an object.
        path_out: the same for the output.
        axes_in: axes of the input (negative positions) that W acts on, flattened in this order; the others are rows.
        axes_out: the same for the output; its rows are in the same order.
        convolution: how the kernel moves; None for a map that acts on each row by itself.
        rank: W = B A with this many rows of A; None for a dense W.
        blocks: pairs (l_in, l_out) to which W is restricted; None for all of W.
        node: the op and its operand in the traced forward of its module; None if the op is the module.
        parameters: names, relative to the module, of the parameters of an op inside a forward; else empty.
        fold: what an adapter needs to fold W into the op's own weights, or the name of the matrix that a measured op
            multiplies channels with; None if the site cannot be folded.
        fold_note: why the site cannot be folded, or what part of the intertwiners its weights cannot produce.
        fold_while: what has to stay as it was on the sample batch, or else the fold is wrong; empty if nothing has to.
        source: where the representations come from: "annotation", "measurement", or "both" if these agree.
        verified: True if the representations were confirmed on the op's real inputs.
        residual: largest relative deviation from equivariance or linearity seen when verifying.
        calls: how often the module ran in the recorded forward; None without a recording.
    """

    name: str
    argument: str
    kind: str
    adapter: str
    rho_in: Representation
    rho_out: Representation
    shape: tuple[int, ...]
    path_in: Place = ()
    path_out: Place = ()
    axes_in: tuple[int, ...] = (-1,)
    axes_out: tuple[int, ...] = (-1,)
    convolution: Convolution | None = None
    rank: int | None = None
    blocks: tuple[tuple[int, int], ...] | None = None
    node: str | None = None
    parameters: tuple[str, ...] = ()
    fold: Mapping[str, Any] | None = field(default=None, hash=False)
    fold_note: str = ""
    fold_while: str = ""
    source: Source = "annotation"
    verified: bool = False
    residual: float | None = None
    calls: int | None = None

    @property
    def key(self) -> str:
        """``module.argument[.path]``: unique within a plan."""
        return f"{self.name}.{self.slot}" if self.name else self.slot

    @property
    def slot(self) -> str:
        """``argument[.path]``: where the branch is kept under its op."""
        parts = (self.argument, *self.path_in)
        return ".".join(str(part).replace(".", "_") or "_" for part in parts)

    @property
    def extra_parameters(self) -> int:
        """Number of trained entries of W, or of its factors; entries outside of the chosen blocks are counted, too."""
        if self.rank is not None:
            return self.rank * (self.rho_out.dimension + math.prod(self.shape[1:]))
        return math.prod(self.shape)

    def __repr__(self) -> str:
        ends = " -> ".join(textwrap.shorten(str(rho), 60, placeholder="...") for rho in (self.rho_in, self.rho_out))
        shape = " x ".join(map(str, self.shape))
        return f"Site({self.key}: {self.kind}, {ends}, W {shape}, {self.evidence})"

    @property
    def evidence(self) -> str:
        """In words, how far the site's representations can be trusted."""
        if not self.verified:
            return "annotation only, not verified"
        words = {"annotation": "annotated", "measurement": "measured", "both": "annotated and measured"}
        return f"{words[self.source]}, verified to {self.residual:.0e}"


Coverage = Literal[
    "site",
    "invariant",
    "not linear",
    "not equivariant",
    "supplied",
    "bypassed",
    "no effect",
    "unused",
    "frozen",
    "excluded",
    "unexplained",
]
"""What becomes of a parameter: it belongs to a site; it maps invariants to invariants; it does not act as a linear map
(a bias, a scale, an embedding, weights inside a non-linear op); it acts as one that does not commute with the group; it
makes weights that other ops are given; its ops run where a branch cannot act; nothing it does reaches the output; no op
uses it; it is not trained; the user left its op out; or none of these."""


@dataclass(frozen=True)
class Skipped:
    """A module that owns trainable parameters and gets no branch, with the reason in words and its class."""

    name: str
    reason: str
    coverage: Coverage = "unexplained"


@dataclass(frozen=True)
class AuditEntry:
    """What the audit says of one parameter.

    Attributes:
        moves: whether it acts on features, or makes some, that the group changes; None if that was not measured.
    """

    parameter: str
    size: int
    coverage: Coverage
    reason: str
    moves: bool | None = None


@dataclass(frozen=True, repr=False)
class Plan:
    """What will be done to a model: the group, the sites, and what is left alone and why; ``print`` tells it briefly.

    Attributes:
        group: the group's name.
        sites: where branches go.
        skipped: modules that own trainable parameters and get no branch.
        notes: what the user should know.
        audit: one entry per parameter of the model; empty without a recorded run.
    """

    group: str
    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    audit: tuple[AuditEntry, ...] = ()
    format_version: int = PLAN_FORMAT_VERSION

    def __post_init__(self) -> None:
        named = named_group(self.group)
        object.__setattr__(self, "group", self.group if named is None else named.name)
        for site in self.sites:
            for rho in (site.rho_in, site.rho_out):
                if rho.group_name != self.group:
                    raise PlanError(
                        f"expected representations of {self.group}, the plan's group, got {rho} of {rho.group_name} at "
                        f"{site.key!r}: find the sites under one group"
                    )

    @property
    def group_object(self) -> Group:
        """The group that ``group`` names; the user's own where the plan was made with one."""
        return self.sites[0].rho_in.group if self.sites else parse_group(self.group)

    @property
    def forms(self) -> str:
        """In words, how many W are dense, of each rank, and restricted to blocks: "12 sites dense, 5 of rank 16"."""
        counts = Counter((site.blocks is not None, site.rank or 0) for site in self.sites)
        told = [
            f"{count} {'in blocks' if blocks else f'of rank {rank}' if rank else 'dense'}"
            for (blocks, rank), count in sorted(counts.items())
        ]
        number, _, words = (told or ["0 dense"])[0].partition(" ")
        return ", ".join([f"{number} site{'' if number == '1' else 's'} {words}", *told[1:]])

    def __repr__(self) -> str:
        return f"Plan({self.group}, {len(self.sites)} sites, {len(self.skipped)} modules left alone)"

    def summary(self) -> str:
        """Return a screen: the group, sites by kind, what they add, the first ones, coverage by class, first notes."""
        kinds, new = Counter(site.kind for site in self.sites), sum(site.extra_parameters for site in self.sites)
        told = [f"{count} {kind}" for kind, count in kinds.most_common()] or ["nothing to relax"]
        sizes: Counter[str] = Counter()
        for entry in self.audit:
            sizes[entry.coverage] += entry.size
        shares = [f"{100 * size / max(sizes.total(), 1):.1f} % {name}" for name, size in sizes.most_common()]
        lines = [
            f"{len(self.sites)} sites under {self.group}, {', '.join(told)}, that add {new:,} parameters: {self.forms}",
            f"of all parameters: {', '.join(shares)}" if shares else "no model was run: nothing is verified",
        ]
        for what, found in {"sites": self.sites, "notes": self.notes}.items():
            lines += [f"- {textwrap.shorten(str(each), 200, placeholder='...')}" for each in found[:SHOWN]]
            lines += [f"- and {len(found) - SHOWN} more {what}"] if len(found) > SHOWN else []
        return "\n".join(lines)

    __str__ = summary

    def to_data(self) -> dict[str, Any]:
        """Return the plan as JSON-compatible data."""
        data = dataclasses.asdict(self)
        for site, entry in zip(self.sites, data["sites"], strict=True):
            entry |= {"rho_in": site.rho_in.named_data(), "rho_out": site.rho_out.named_data()}
        return data

    def to_json(self) -> str:
        """Return the plan as indented JSON."""
        return json.dumps(self.to_data(), indent=2)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from :meth:`to_data`.

        A group that is code (``module:function``) is not imported before it is used.

        Raises:
            PlanError: if a field is missing, unknown or unusable, or the format version newer.
        """
        what = "a plan as Plan.to_data writes it"
        return read_plain(data, cls, what, PlanError, newest=PLAN_FORMAT_VERSION, hook=representations_of(data))


def representations_of(plan: Any) -> Callable[[type, Any], Representation]:
    """Return what reads the representations in the data of a plan: they are of its group."""
    group = str(plan.get("group")) if isinstance(plan, Mapping) else ""
    return lambda _, data: representation_from(group, data)


@runtime_checkable
class Task(Protocol):
    """What a user supplies: data, a loss, and how the group acts on both ends of the model.

    Only ``batches`` and ``loss`` are required. The optional members, looked up by name:

    * ``model() -> Module``: builds the architecture.
    * ``load_model(path) -> Module``: opens a checkpoint file with the library's own loader, whose weights count.
    * ``for_model(model) -> Task``: for one model; ``adjustments``, ``adjustable``, ``remarks``: opening/adjusting.py.
    * ``sample() -> batch``: a small one on which ops are looked for; default the first batch of the validation split.
    * ``perturbed(batch, noise) -> batch``: moves inputs by ``noise(tensor)``, and ``relabelled(batch, outputs) ->
      batch``: takes outputs for labels; for replay, see training/replay.py.
    * ``forward(model, batch) -> outputs``: default ``model(batch)``.
    * ``metrics(outputs, batch) -> dict[str, tuple[float, float]]``: name to (sum, count).
    * ``pairs(outputs, batch)``: name to (computed, label), tensors of one shape; a sample of them is recorded.
    * ``preferred``: settings by name that a training without branches begins with: an optimiser and its rate.
    * ``primary_metric: str`` and ``primary_direction: "min" | "max"``.
    * ``act(g, batch) -> batch`` and ``act_output(g, outputs) -> outputs``; g is a group element in the defining
      representation, float64, shape (k, k).
    * ``input_names``, ``output_names``: of the tensors of batches and outputs, for exported files.
    * ``units``: name of a metric, an input or an output to its unit.
    * ``dynamic_axes``: name of an input to further axes that have no fixed size in exported files.

    Nothing is modified in place.
    """

    def batches(self, split: Split, seed: int) -> Iterable[Any]:
        """Yield fresh batches of a split; the order may depend on ``seed``, at which global generators begin, too."""
        ...

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """Return the scalar mean loss of a batch."""
        ...


@dataclass(frozen=True)
class SiteRecord:
    """What became of one branch: sizes are Frobenius norms, ``lost`` is that of the change of the op's linear map."""

    name: str
    argument: str
    norm: Measured
    folded: Measured
    lost: Measured
    note: str = ""


EXACT_WHILE = "exact while"
"""What the note of a fold says that takes some of its op's arguments for constant."""

GRAPH_CHECK, FUNCTION_CHECK = "recorded graph", "same function as clean evaluation"
EQUIVARIANCE_CHECK = "as equivariant as the original"

Grade = Literal["same function", "same graph", "same form"]


@dataclass(frozen=True)
class Certificate:
    """Proof, recomputable from two checkpoints and the model, that the architecture is unchanged.

    Attributes:
        checks: name of a comparison to its verdict.
        differences: one sentence for each difference found.
        buffers_written: buffers that the model's own training forward writes, to their largest change.
        sites: what was dropped or folded, per site.
        equivariance: model ("original", "relaxed", "stripped") to dtype to component to error summary.
        metrics: model to metric name to value.
        projection_error: mean relative change of the outputs by the strip; None if it was not measured.
        details: versions, hashes, seeds, counts.
    """

    checks: Mapping[str, bool]
    differences: tuple[str, ...] = ()
    buffers_written: Mapping[str, float] = field(default_factory=dict)
    strip_mode: StripMode = "drop"
    sites: tuple[SiteRecord, ...] = ()
    equivariance: Mapping[str, Mapping[str, Mapping[str, ErrorSummary]]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    projection_error: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Certificate({self.grade!r}, {sum(self.checks.values())} of {len(self.checks)} checks hold)"

    @property
    def passed(self) -> bool:
        """Whether every check holds; what that is worth, ``grade`` says."""
        return bool(self.checks) and all(self.checks.values())

    @property
    def grade(self) -> Grade | None:
        """How much was shown, None if a check fails.

        "same form": keys, shapes, dtypes, classes, attributes and buffers are the original's, but no forward was run.
        "same graph": so is the recorded graph, with its constants. "same function": and on the batches that were run
        the result computes what the trained model computed in clean evaluation.
        """
        return grade_of(self.checks)

    def to_data(self) -> dict[str, Any]:
        """Return the certificate as JSON-compatible data."""
        return {"passed": self.passed, "grade": self.grade, **dataclasses.asdict(self)}


def grade_of(checks: Mapping[str, bool]) -> Grade | None:
    """Return the grade that follows from the checks of a certificate; None if there are none, or one fails."""
    if not (checks and all(checks.values())):
        return None
    if GRAPH_CHECK not in checks:
        return "same form"
    return "same function" if FUNCTION_CHECK in checks else "same graph"


CHILD = "_relaxation"
"""Name of the child module that holds the branches of an op."""
