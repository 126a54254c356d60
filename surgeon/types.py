"""Plain data that the rest of the engine passes around: sites, plans, certificates, and the task protocol.

Everything here converts to JSON and back, so that a person can read, edit and compare it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from surgeon.errors import PlanError

StripMode = Literal["drop", "fold"]
Split = Literal["train", "validation", "test"]

PLAN_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Site:
    """One place where a branch can be attached: an argument of an op that is linear and equivariant in it.

    Attributes:
        name: qualified name of the op's module; the empty string is the model itself.
        argument: name of the forward parameter that the branch reads.
        kind: what the op is, in words ("linear", "tensor product").
        adapter: name under which the proposing adapter is registered.
        rho_in: input representation as data, see ``surgeon.representations.Representation.to_data``.
        rho_out: output representation as data.
        shape: ``(d_out, d_in)`` of the branch's W.
        fold: what an adapter needs to fold W into the op's own weights; None if the site cannot be folded.
        fold_note: why the site cannot be folded, or what part of the intertwiners its weights cannot produce.
        verified: True if the representations were confirmed on the op's real inputs.
        residual: largest relative deviation from equivariance or linearity seen when verifying.
        calls: how often the module ran in the recorded forward; None without a recording.
    """

    name: str
    argument: str
    kind: str
    adapter: str
    rho_in: Mapping[str, Any]
    rho_out: Mapping[str, Any]
    shape: tuple[int, int]
    fold: Mapping[str, Any] | None = None
    fold_note: str = ""
    verified: bool = False
    residual: float | None = None
    calls: int | None = None

    @property
    def key(self) -> str:
        """``module.argument``: unique within a plan."""
        return f"{self.name}.{self.argument}" if self.name else self.argument

    @property
    def extra_parameters(self) -> int:
        """Number of entries of a dense W."""
        return self.shape[0] * self.shape[1]

    @property
    def evidence(self) -> str:
        """In words, how far the site's representations can be trusted."""
        if not self.verified:
            return "annotation only, not verified"
        return f"verified, residual {self.residual:.0e}"


@dataclass(frozen=True)
class Skipped:
    """A module that owns trainable parameters and gets no branch, with the reason in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What will be done to a model: the group, the sites, and what is left alone and why."""

    group: str
    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    format_version: int = PLAN_FORMAT_VERSION

    def to_data(self) -> dict[str, Any]:
        """Return the plan as JSON-compatible data."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the plan as indented JSON."""
        return json.dumps(self.to_data(), indent=2)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from :meth:`to_data`.

        Raises:
            PlanError: if a field is missing, unknown, or of a newer format version.
        """
        try:
            version = int(data["format_version"])
            if version > PLAN_FORMAT_VERSION:
                raise PlanError(
                    f"expected a plan of format version {PLAN_FORMAT_VERSION} or older, got version {version}: "
                    "update equisurgeon to read it"
                )
            sites = tuple(Site(**{**site, "shape": tuple(site["shape"])}) for site in data["sites"])
            skipped = tuple(Skipped(**entry) for entry in data.get("skipped", ()))
            return cls(str(data["group"]), sites, skipped, tuple(data.get("notes", ())), version)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"expected a plan as Plan.to_data writes it, got data with a bad field: {error}") from error


@runtime_checkable
class Task(Protocol):
    """What a user supplies: data, a loss, and how the group acts on both ends of the model.

    Only ``batches`` and ``loss`` are required. The optional members, looked up by name:

    * ``model() -> Module``: builds the architecture.
    * ``forward(model, batch) -> outputs``: default ``model(batch)``.
    * ``metrics(outputs, batch) -> dict[str, tuple[float, float]]``: name to (sum, count).
    * ``primary_metric: str`` and ``primary_direction: "min" | "max"``.
    * ``act(g, batch) -> batch`` and ``act_output(g, outputs) -> outputs``; g is a group element in the defining
      representation, float64, shape (k, k).
    * ``input_names``, ``output_names``, ``units``.

    Nothing is modified in place.
    """

    def batches(self, split: Split, seed: int) -> Iterable[Any]:
        """Yield fresh batches of a split; the order may depend on ``seed``."""
        ...

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """Return the scalar mean loss of a batch."""
        ...


@dataclass(frozen=True)
class ErrorSummary:
    """Distribution of relative errors over samples and group elements; dimensionless."""

    mean: float
    median: float
    maximum: float
    count: int


@dataclass(frozen=True)
class SiteRecord:
    """What became of one branch: sizes are Frobenius norms, ``lost`` is the norm of what was discarded."""

    name: str
    argument: str
    norm: float
    folded: float
    lost: float
    note: str = ""


@dataclass(frozen=True)
class Certificate:
    """Proof, recomputable from two checkpoints and the model, that the architecture is unchanged.

    Attributes:
        identical: True if every entry of ``checks`` is.
        checks: name of a comparison to its verdict.
        differences: one sentence for each difference found.
        buffers_written: buffers that the model's own training forward writes, to their largest change.
        sites: what was dropped or folded, per site.
        equivariance: model ("original", "relaxed", "stripped") to dtype to component to error summary.
        metrics: model to metric name to value.
        projection_error: mean relative change of the outputs by the strip; None if it was not measured.
        details: versions, hashes, seeds, counts.
    """

    identical: bool
    checks: Mapping[str, bool]
    differences: tuple[str, ...] = ()
    buffers_written: Mapping[str, float] = field(default_factory=dict)
    strip_mode: StripMode = "drop"
    sites: tuple[SiteRecord, ...] = ()
    equivariance: Mapping[str, Mapping[str, Mapping[str, ErrorSummary]]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    projection_error: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """Return the certificate as JSON-compatible data."""
        return dataclasses.asdict(self)


def named_module(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule with this qualified name; the empty string is the model itself.

    Raises:
        PlanError: if the model has no such submodule.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise PlanError(
            f"expected a submodule {name!r} in {type(model).__name__}, but there is none: "
            "the plan was made for another model, make a new one with `surgeon inspect`"
        ) from error
