"""Labelled frames of extended-XYZ and other files of ASE, as the tasks of all potentials read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgeon.errors import TaskError
from surgeon.support.imports import close_names, one_line
from surgeon_adapters.atoms.frame_checks import Found, label_remarks, require_usable

DEFAULT_KEYS = {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"}
ISOLATED, FREE = "IsolatedAtom", "free_energy"
SHOWN = 12
"""Elements listed in a message."""


@dataclass(frozen=True)
class LabelledFrames:
    """What a file holds.

    Attributes:
        frames: ASE's atoms, without isolated ones.
        values: of each frame, label to value or None.
        labels: which of energy, forces and stress some frame has.
        isolated: energies of the file's own isolated atoms in eV, by atomic number; empty if it has none.
        reference: energies per atom that the labels lose, by atomic number.
        remarks: what the user should know of the labels, in sentences.
    """

    frames: Sequence[Any]
    values: Sequence[Mapping[str, Any]]
    labels: tuple[str, ...]
    isolated: Mapping[int, float]
    reference: Mapping[int, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def numbers(self) -> list[list[int]]:
        """Atomic numbers of each frame."""
        return [frame.numbers.tolist() for frame in self.frames]

    def interaction_energy(self, index: int) -> float | None:
        """Return the energy of a frame without those of its atoms, in eV; None if it is not labelled."""
        energy, numbers = self.values[index]["energy"], self.frames[index].numbers
        return None if energy is None else float(energy) - sum(self.reference[int(number)] for number in numbers)


def read_labelled(path: Path, keys: Mapping[str, str | None], elements: Iterable[int]) -> LabelledFrames:
    """Read a file for a model: extended XYZ, or any other that ASE reads (``.traj``, ``.db``).

    Args:
        keys: label to its name in the file, or None for the usual ones.
        elements: atomic numbers that the model knows.

    Raises:
        TaskError: if it cannot be read, has no labels, or unusable ones, or has elements that the model does not know.
    """
    every = read_frames(path)
    require_known_elements(path, every, elements)
    places = [places_of(frame) for frame in every]
    found = [{label: label_in(own, label, keys.get(label)) for label in DEFAULT_KEYS} for own in places]
    require_usable(path, every, found)
    kept = [index for index, frame in enumerate(every) if frame.info.get("config_type") != ISOLATED]
    frames = [every[index] for index in kept]
    values = [{label: each and each[1] for label, each in found[index].items()} for index in kept]
    labels = tuple(label for label in DEFAULT_KEYS if any(value[label] is not None for value in values))
    if "energy" not in labels and "forces" not in labels:
        raise no_labels(path, frames)
    if "energy" not in labels and any(places[index][-1].get(FREE) is not None for index in kept):
        raise TaskError(
            f"expected energies in {str(path)!r} under {DEFAULT_KEYS['energy']} or energy, got {FREE} only: if that is "
            f'the energy whose derivatives the forces are, say so as --task-args \'{{"energy_key": "{FREE}"}}\''
        )
    named = [dict(pair for place in places[index] for pair in place.items()) for index in kept]
    remarks = label_remarks(path, named, [found[index] for index in kept])
    return LabelledFrames(frames, values, labels, isolated_energies(every, found), remarks=remarks)


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
    import ase.db
    import ase.io

    try:
        if path.suffix == ".db" and path.is_file():  # whose names of the user's own the usual reader leaves out
            with ase.db.connect(path) as database:
                return [row.toatoms(add_additional_information=True) for row in database.select()]
        frames: list[Any] = ase.io.read(path, index=":")
    except FileNotFoundError as error:
        names = sorted(other.name for other in path.parent.glob("*"))
        raise TaskError(
            f"there is no data file {str(path)!r}: its folder holds {close_names(path.name, names)}"
        ) from error
    except Exception as error:
        raise TaskError(
            f"could not read {str(path)!r} as extended XYZ or another format of ASE ({one_line(error)}): correct or "
            "write it again"
        ) from error
    return frames


def places_of(frame: Any) -> list[Mapping[str, Any]]:
    """Return where a frame may have labels, in the order in which they count; the results of ASE's reader last.

    A row of a database of ASE keeps names of the user's own apart.
    """
    row = [frame.info.get(part) for part in ("key_value_pairs", "data")]
    results = {} if frame.calc is None else frame.calc.results
    return [frame.info, frame.arrays, *(part for part in row if isinstance(part, Mapping)), results]


def label_in(places: Sequence[Mapping[str, Any]], label: str, name: str | None) -> tuple[str, Any] | None:
    """Return the name and the value of a label: under the given name, or the usual one, or as a result of ASE's."""
    chosen = DEFAULT_KEYS[label] if name is None else name
    value = next((place[chosen] for place in (places[:-1] if name is None else places) if chosen in place), None)
    if value is None and name is None:
        chosen, value = label, places[-1].get(label)
    return None if value is None else (chosen, value)


def isolated_energies(frames: Sequence[Any], found: Sequence[Found]) -> dict[int, float]:
    """Return the energies of the isolated atoms of a file by atomic number, in eV."""
    atoms = {
        int(frame.numbers[0]): labels["energy"]
        for frame, labels in zip(frames, found, strict=True)
        if len(frame) == 1 and frame.info.get("config_type") == ISOLATED
    }
    return {number: float(each[1]) for number, each in atoms.items() if each is not None}


def require_known_elements(path: Path, frames: Sequence[Any], known: Iterable[int]) -> None:
    """Check that all atoms of a file are of elements that the model knows, but for isolated ones.

    Raises:
        TaskError: naming those that it lacks, and the first frame with one.
    """
    numbers = set(known)
    first: dict[int, int] = {}
    for index, frame in enumerate(frames):
        if frame.info.get("config_type") != ISOLATED:
            for number in {*frame.numbers.tolist()} - numbers:
                first.setdefault(number, index)
    if first:
        from ase.data import chemical_symbols

        names, had = (", ".join(chemical_symbols[n] for n in sorted(group)) for group in (first, numbers))
        raise TaskError(
            f"{str(path)!r} has atoms of {names}, which the model lacks "
            f"(it has {had if len(numbers) <= SHOWN else f'{len(numbers)} others'}), first in frame "
            f"{min(first.values())}, counted from 0: leave these frames out, or take a model that knows them"
        )


def no_labels(path: Path, frames: Sequence[Any]) -> TaskError:
    """Return the error for a file without energies and forces, which lists what it has."""
    names = sorted({*frames[0].info, *frames[0].arrays} - {"numbers", "positions"}) if frames else []
    return TaskError(
        f"expected frames with energies or forces under {DEFAULT_KEYS['energy']} and {DEFAULT_KEYS['forces']}, or "
        f"as ASE writes them, but {str(path)!r} has {', '.join(names) or 'none'}: name them as energy_key and "
        "forces_key in --task-args"
    )
