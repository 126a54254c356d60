"""Labelled frames of extended-XYZ files, as the tasks of all potentials read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import TaskError
from surgeon.support.imports import close_names, one_line

DEFAULT_KEYS = {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"}
ISOLATED = "IsolatedAtom"


@dataclass(frozen=True)
class LabelledFrames:
    """What a file holds.

    Attributes:
        frames: ASE's atoms, without isolated ones.
        values: of each frame, label to value or None.
        labels: which of energy, forces and stress some frame has.
        isolated: energies of isolated atoms in eV, by atomic number.
    """

    frames: Sequence[Any]
    values: Sequence[Mapping[str, Any]]
    labels: tuple[str, ...]
    isolated: Mapping[int, float]

    def interaction_energy(self, index: int) -> float | None:
        """Return the energy of a frame without those of its isolated atoms, in eV; None if it is not labelled."""
        energy, numbers = self.values[index]["energy"], self.frames[index].numbers
        return None if energy is None else float(energy) - sum(self.isolated[int(number)] for number in numbers)


def read_labelled(
    path: Path, keys: Mapping[str, str | None], elements: Iterable[int], isolated: Mapping[int, float]
) -> LabelledFrames:
    """Read an extended-XYZ file for a model.

    Args:
        path: the file.
        keys: label to its name in the file, or None for the usual ones.
        elements: atomic numbers that the model knows.
        isolated: energies of isolated atoms by atomic number, if the file has no frames of type IsolatedAtom.

    Raises:
        TaskError: if it cannot be read, has no labels, or has elements that the model does not know.
    """
    frames, energies = without_isolated(read_frames(path), keys)
    energies = energies or dict(isolated)
    require_known(path, frames, elements, "the model")
    require_known(path, frames, energies, "the set of isolated atoms")
    values = [{label: label_of(frame, label, keys) for label in DEFAULT_KEYS} for frame in frames]
    labels = tuple(label for label in DEFAULT_KEYS if any(value[label] is not None for value in values))
    if "energy" not in labels and "forces" not in labels:
        raise no_labels(path, frames)
    return LabelledFrames(frames, values, labels, energies)


def require_labels_of_all(path: Path, read: LabelledFrames) -> None:
    """Check that all frames have each label that some have, for a library whose losses know of no missing one.

    Raises:
        TaskError: saying how many lack it.
    """
    for label in read.labels:
        missing = sum(value[label] is None for value in read.values)
        if missing:
            raise TaskError(
                f"expected {label} of all {len(read.frames)} frames of {str(path)!r}, "
                f"{missing} lack it: leave these frames out"
            )


def read_frames(path: Path) -> list[Any]:
    """Read a file with ASE.

    Raises:
        TaskError: if it is missing or cannot be read.
    """
    import ase.io

    try:
        frames: list[Any] = ase.io.read(path, index=":")
    except FileNotFoundError as error:
        names = sorted(other.name for other in path.parent.glob("*"))
        raise TaskError(
            f"there is no data file {str(path)!r}: its folder holds {close_names(path.name, names)}"
        ) from error
    except Exception as error:
        raise TaskError(
            f"could not read {str(path)!r} as extended XYZ ({one_line(error)}): correct or write it again"
        ) from error
    return frames


def label_of(frame: Any, label: str, keys: Mapping[str, str | None]) -> Any:
    """Return a label of a frame: under the given name, or under the usual one, or as a result of ASE's reader."""
    results = {} if frame.calc is None else frame.calc.results
    name = keys.get(label)
    places = [frame.info, frame.arrays]
    if name is not None:
        return next((place[name] for place in (*places, results) if name in place), None)
    return next((place[DEFAULT_KEYS[label]] for place in places if DEFAULT_KEYS[label] in place), results.get(label))


def without_isolated(frames: Sequence[Any], keys: Mapping[str, str | None]) -> tuple[list[Any], dict[int, float]]:
    """Return the frames that are no isolated atoms, and the energies of those by atomic number, in eV."""
    atoms = [frame for frame in frames if len(frame) == 1 and frame.info.get("config_type") == ISOLATED]
    found = {int(frame.numbers[0]): label_of(frame, "energy", keys) for frame in atoms}
    energies = {number: float(value) for number, value in found.items() if value is not None}
    return [frame for frame in frames if frame.info.get("config_type") != ISOLATED], energies


def require_known(path: Path, frames: Sequence[Any], known: Iterable[int], what: str) -> None:
    """Check that all atoms of a file are of known elements.

    Raises:
        TaskError: naming the elements that ``what`` lacks.
    """
    numbers = set(known)
    unknown = sorted({int(number) for frame in frames for number in frame.numbers} - numbers)
    if unknown:
        from ase.data import chemical_symbols

        names, had = (", ".join(chemical_symbols[n] for n in group) for group in (unknown, sorted(numbers)))
        raise TaskError(
            f"{str(path)!r} has atoms of {names}, which {what} lacks (it has {had}): leave these frames out"
        )


def no_labels(path: Path, frames: Sequence[Any]) -> TaskError:
    """Return the error for a file without energies and forces, which lists what it has."""
    names = sorted({*frames[0].info, *frames[0].arrays} - {"numbers", "positions"}) if frames else []
    return TaskError(
        f"expected frames with energies or forces under {DEFAULT_KEYS['energy']} and {DEFAULT_KEYS['forces']}, or "
        f"as ASE writes them, but {str(path)!r} has {', '.join(names) or 'none'}: name them as energy_key and "
        "forces_key in --task-args"
    )
