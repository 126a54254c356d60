"""The relaxed folder: base weights that anyone can load, branches in a second file, and everything as plain data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor, nn

from surgeon.algebra.penalty_settings import PenaltyForm
from surgeon.algebra.schedule import Schedule
from surgeon.editing.adjust import Adjustments
from surgeon.errors import CheckpointError, UsageError
from surgeon.files.address import check_name, check_repo, is_commit
from surgeon.files.atomic import atomic_folder
from surgeon.files.card import model_card
from surgeon.files.content import write_json, write_text
from surgeon.files.ordinary import bytes_of
from surgeon.files.reading import keys_hash, open_checkpoint
from surgeon.files.seals import check_seal, finish_update, seal_folder
from surgeon.files.tensors import forms, write_tensors
from surgeon.plan import CHILD, PLAN_FORMAT_VERSION, Plan, StripMode, representations_of
from surgeon.support.plain import check_version, parse_json, read_plain

FORMAT_VERSION = 1

CONFIG_FILE = "surgeon_config.json"
BASE_FILE = "model.safetensors"
BRANCH_FILE = "relaxation.safetensors"
STATE_FOLDER = "training_state"
RECORDS = ("records.jsonl", "steps.jsonl", "branches.jsonl", "figures.json")
STATE = (f"{STATE_FOLDER}/state.json", f"{STATE_FOLDER}/state.safetensors")
RELAXED = (CONFIG_FILE, BASE_FILE, BRANCH_FILE, *RECORDS)

Penalty = TypedDict("Penalty", {"lambda": float, "form": PenaltyForm, "scale": str | None})


class Base(TypedDict):
    """The checkpoint that was relaxed."""

    repo: str | None
    file: str
    entry: str | None
    revision: str | None
    sha256: str
    keys_hash: str
    container: str
    pickle: bool


class ModelSource(TypedDict):
    """What builds the network."""

    factory: str
    args: Mapping[str, Any]


class TaskSource(TypedDict):
    """Where the task is."""

    path: str
    sha256: str | None
    args: Mapping[str, Any]


class Float64(TypedDict):
    """Whether the network runs in float64."""

    how: str | None
    why: str


class RecordedGraph(TypedDict):
    """What was recorded of the original."""

    sha256: str
    batch: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class RelaxedConfig:
    """What ``surgeon_config.json`` holds.

    Attributes:
        plan: the group, the sites and what was left alone.
        strip_mode: how the branches will be removed.
        schedule: theta over time.
        penalty: ``lambda``, ``form`` and ``scale`` of the regulariser.
        theta: (perpendicular, parallel) of the first branch, dimensionless.
        thetas: the same of every branch by key, if they are not all equal; else None.
        base: ``repo`` and ``revision`` (a commit) if it is on the Hub, else None; ``file``, ``entry`` (of a nested
            dict, or None), ``sha256`` and ``keys_hash`` of the checkpoint that was relaxed; the ``container`` as which
            results can be written again, and whether opening it runs ``pickle``.
        model: ``factory`` and ``args``, or None if the file itself or an adapter says how to build the model.
        task: ``path``, ``sha256`` and ``args``, or None.
        float64: ``how`` the network runs in float64 ("plain"; "answered" if its requests for float32 have to be
            answered with float64; None if it does not) and ``why`` not; None if nobody has tried, for want of a task.
        graph: ``sha256`` of the original's recorded graph, that of the ``batch`` it was recorded on, and ``versions``;
            None without a task.
        arm: how it was trained, see ``surgeon.training.arms``; None before.
        adjustments: what the task has changed in the original before training; None if nothing.
        format_version: of the folder.
    """

    plan: Plan
    strip_mode: StripMode
    schedule: Schedule
    penalty: Penalty
    theta: tuple[float, float]
    step: int
    base: Base
    model: ModelSource | None = None
    task: TaskSource | None = None
    thetas: Mapping[str, tuple[float, float]] | None = None
    float64: Float64 | None = None
    graph: RecordedGraph | None = None
    arm: str | None = None
    adjustments: Adjustments | None = None
    format_version: int = FORMAT_VERSION

    def to_data(self) -> dict[str, Any]:
        """Return the configuration as JSON-compatible data."""
        return {**dataclasses.asdict(self), "plan": self.plan.to_data()}

    @classmethod
    def from_data(cls, data: Any, where: str = CONFIG_FILE) -> RelaxedConfig:
        """Rebuild a configuration from :meth:`to_data`.

        Args:
            data: as read from JSON.
            where: what the message calls the source.

        Raises:
            CheckpointError: if the version is newer, or a field is missing, unknown or unusable.
        """
        what = f"a configuration as `surgeon relax` writes it in {where}"
        plan = data.get("plan") if isinstance(data, Mapping) else None
        check_version(plan, PLAN_FORMAT_VERSION, f"a plan in {where}", CheckpointError)
        hook = representations_of(plan)
        config = read_plain(data, cls, what, CheckpointError, newest=FORMAT_VERSION, hook=hook)
        _check_base_address(config.base, where)
        return config


def _check_base_address(base: Base, where: str) -> None:
    """Refuse a base on the Hub that is not pinned, or that is not a file in a repository."""
    if base["repo"] is None:
        return
    try:
        check_repo(base["repo"])
        check_name(base["file"], where)
    except UsageError as error:
        raise CheckpointError(f"the base in {where} is unusable: {error}") from error
    if not is_commit(base["revision"]):
        raise CheckpointError(
            f"expected a commit of 40 hex digits as revision of the base in {where}, got {base['revision']!r}: "
            "relax the base again"
        )


@dataclass(frozen=True)
class RelaxedFiles:
    """The content of a relaxed folder, validated.

    Attributes:
        config: as in ``surgeon_config.json``.
        base: name to tensor, exactly the base's keys.
        branches: name to tensor, one group per site.
        base_metadata: strings in the header of ``model.safetensors``.
    """

    config: RelaxedConfig
    base: Mapping[str, Tensor] = field(repr=False)
    branches: Mapping[str, Tensor] = field(repr=False)
    base_metadata: Mapping[str, str]
    folder: Path


def split_state(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict into the base's tensors and the branches'.

    A key belongs to a branch if and only if one of its dotted components is ``_relaxation``.

    Raises:
        CheckpointError: if a value is not a tensor, which safetensors cannot hold.
    """
    base: dict[str, Tensor] = {}
    branches: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"expected tensors only, but the state {key} is of type {type(value).__name__}: "
                "safetensors cannot hold it, remove the module's extra state"
            )
        (branches if CHILD in key.split(".") else base)[key] = value
    return base, branches


def _site_of(key: str) -> tuple[str, str]:
    """Return module and slot of a branch key ``<module>._relaxation.<slot>.weight``; a slot can have dots."""
    parts = key.split(".")
    place = parts.index(CHILD)
    return ".".join(parts[:place]), ".".join(parts[place + 1 : -1])


def _check_branches(branches: Mapping[str, Tensor], plan: Plan, where: str) -> None:
    sites = {(site.name, site.slot): site.key for site in plan.sites}
    _check_names(plan, where)
    for key in branches:
        if CHILD not in key.split(".") or _site_of(key) not in sites:
            raise CheckpointError(
                f"the branch {key} in {where} belongs to no site of its plan, which has "
                f"{', '.join(list(sites.values())[:10]) or 'none'}: plan and branches come from different runs"
            )
    present = {_site_of(key) for key in branches}
    absent = [name for site, name in sites.items() if site not in present]
    if absent:
        raise CheckpointError(
            f"expected a branch for each of the {len(sites)} sites in {where}, but {len(absent)} have none, "
            f"first {absent[0]}: plan and branches come from different runs"
        )


def _check_names(plan: Plan, where: str) -> None:
    """Refuse names that no module and no argument has: they become attributes and, inside forwards, source text."""
    for site in plan.sites:
        for name in (site.name, site.slot, *site.parameters):
            parts = name.split(".") if name else []
            if not all(part.isprintable() and part.strip() for part in parts) or set(name) & set("\"'\\"):
                raise CheckpointError(
                    f"expected names of modules and arguments in {where}, got {name[:80]!r}: it is not used, make "
                    "another plan"
                )


def _check_sizes(branches: Mapping[str, Tensor], plan: Plan, where: str) -> None:
    """Compare the plan's shapes with the tensors that are there, before branches of these shapes are allocated."""
    stored: dict[tuple[str, str], int] = {}
    for key, tensor in forms(branches).items():
        place = _site_of(key)
        stored[place] = stored.get(place, 0) + tensor.numel()
    for site in plan.sites:
        if stored[site.name, site.slot] != site.extra_parameters:
            raise CheckpointError(
                f"expected as many parameters of the branch {site.key} in {where} as its plan says, got "
                f"{stored[site.name, site.slot]:,}: the folder was made with another plan"
            )


def _first_names(branches: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Leave out the further names of branches in shared modules; a branch goes by the name in the plan."""
    sites = {(site.name, site.slot) for site in plan.sites}
    planned = {key: value for key, value in branches.items() if _site_of(key) in sites}
    addresses = {value.data_ptr() for value in planned.values() if value.numel()}
    unknown = {key: value for key, value in branches.items() if key not in planned}
    return planned | {key: value for key, value in unknown.items() if value.data_ptr() not in addresses}


def write_relaxed(
    folder: str | Path,
    model: nn.Module,
    config: RelaxedConfig,
    base_metadata: Mapping[str, str],
    force: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a relaxed folder completely or not at all.

    Args:
        model: with its branches inserted.
        config: what goes into ``surgeon_config.json``.
        base_metadata: strings for the header of ``model.safetensors``, as the base had them.
        state: what is written, if that is another state dict than the model's own.

    Raises:
        CheckpointError: if the model's keys, shapes or dtypes are not the base's, or a branch is not in the plan.
        ExistsError: if the folder holds something and ``force`` is False.
        WriteError: if the system refuses.
    """
    with atomic_folder(folder, force=force) as temporary:
        base, branches = split_state(model.state_dict() if state is None else state)
        branches = _first_names(branches, config.plan)
        _check_base(base, config, type(model).__name__)
        _check_branches(branches, config.plan, type(model).__name__)
        write_json(temporary / CONFIG_FILE, config.to_data())
        write_tensors(temporary / BASE_FILE, base, base_metadata)
        write_tensors(temporary / BRANCH_FILE, branches, {"format": "pt"})
        write_text(temporary / "README.md", model_card(config.plan, config.base, config.theta))
        seal_folder(temporary)


def _check_base(base: Mapping[str, Tensor], config: RelaxedConfig, where: str) -> None:
    found, expected = keys_hash(base), config.base["keys_hash"]
    if found != expected:
        raise CheckpointError(
            f"expected the keys, shapes and dtypes of {config.base['file']} (hash {str(expected)[:12]}), "
            f"got {len(base)} others in {where} (hash {found[:12]}): this is not the model that was relaxed"
        )


def is_relaxed_folder(path: str | Path) -> bool:
    """Tell whether a path is a folder that holds a relaxed model."""
    return (Path(path) / CONFIG_FILE).is_file()


def read_relaxed(folder: str | Path, sealed: bool = True) -> RelaxedFiles:
    """Read and validate a relaxed folder; a save that was complete but not in its place yet is put there first.

    Args:
        sealed: whether its files have to be those of its seal; those from the Hub were compared with the hashes there.

    Raises:
        CheckpointError: if a file is missing or damaged, or the files do not belong together.
        WriteError: if such a save cannot be put in its place.
    """
    folder = Path(folder)
    finish_update(folder)
    present = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    absent = [name for name in (CONFIG_FILE, BASE_FILE, BRANCH_FILE) if name not in present]
    if absent:
        raise CheckpointError(
            f"expected a relaxed folder, but {str(folder)!r} lacks {', '.join(absent)}: "
            f"it holds {', '.join(present[:10]) or 'nothing'}"
        )
    data, config_sha256 = _read_json(folder / CONFIG_FILE)
    config = RelaxedConfig.from_data(data, str(folder / CONFIG_FILE))
    base = open_checkpoint(folder / BASE_FILE)
    tensors = base.in_file  # a prefix is the model's own here
    branches = open_checkpoint(folder / BRANCH_FILE, may_be_empty=not config.plan.sites)
    branch_tensors = branches.in_file
    _check_base(tensors, config, str(folder / BASE_FILE))
    _check_branches(branch_tensors, config.plan, str(folder / BRANCH_FILE))
    _check_sizes(branch_tensors, config.plan, str(folder / BRANCH_FILE))
    if sealed:
        read = {CONFIG_FILE: lambda: config_sha256, BASE_FILE: base.hashed, BRANCH_FILE: branches.hashed}
        check_seal(folder, tuple(read), read)
    return RelaxedFiles(config, tensors, branch_tensors, base.metadata, folder)


def _read_json(path: Path) -> tuple[Any, str]:
    """Return what a file says, and its SHA-256."""
    try:
        content = bytes_of(path)
        data = parse_json(content)
        return data, hashlib.sha256(content).hexdigest()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not read {str(path)!r} as JSON ({error}): write the folder again") from error


def find_only_folder(cwd: str | Path) -> Path:
    """Return the only relaxed folder in ``cwd``.

    Raises:
        UsageError: if there is none, or there are several (they are listed).
    """
    cwd = Path(cwd)
    found = sorted(path for path in cwd.iterdir() if path.is_dir() and is_relaxed_folder(path))
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise UsageError(
            f"expected a relaxed folder in {str(cwd)!r}, found none: name one, or make one with `surgeon relax`"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"expected one relaxed folder in {str(cwd)!r}, found {len(found)} ({names}): name one of them")
    return found[0]
