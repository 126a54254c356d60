"""What is installed, and what does not fit together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packaging.requirements import Requirement

FOR_US = "dev"
"""The extra that contributors need, which is not looked at."""


@dataclass(frozen=True)
class Package:
    """A package that we need, always or for something.

    Attributes:
        name: of the distribution.
        needed: the versions that will do, ``>=2.6``.
        installed: the version that is there; None without one.
        extras: what it is for; none if it is always needed.
    """

    name: str
    needed: str
    installed: str | None
    extras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Installation:
    """What is installed.

    Attributes:
        packages: those that we need.
        problems: one sentence for each, with what to do about it.
        devices: what torch can compute on.
    """

    packages: tuple[Package, ...] = ()
    problems: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)


def look_at_installation(distribution: str = "equisurgeon") -> Installation:
    """Compare the installed packages with what a distribution declares, and with what they need of each other.

    Nothing is imported but torch. Extras of which no package is installed are nobody's concern; an extra that is there
    in part only, or in versions that exclude each other, is a problem.
    """
    packages = needed_packages(distribution)
    problems = [*_unmet(packages), *_conflicts(package.name for package in packages if package.installed)]
    return Installation(packages, tuple(dict.fromkeys(problems)), tuple(_devices()))


def needed_packages(distribution: str) -> tuple[Package, ...]:
    """Return the packages that a distribution declares, those of its extras after those that it always needs."""
    from importlib.metadata import metadata

    names = metadata(distribution).get_all("Provides-Extra") or []
    found: dict[tuple[str, str], list[str]] = {}
    for extra in ("", *(name for name in names if name != FOR_US)):
        for needed in _requirements(distribution, extra):
            found.setdefault((needed.name, str(needed.specifier)), []).extend([extra] if extra else [])
    return tuple(Package(name, spec, version_of(name), tuple(extras)) for (name, spec), extras in found.items())


def _requirements(distribution: str, extra: str = "") -> Iterator[Requirement]:
    """Yield what a distribution needs on this machine: always, or with one extra only."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    for line in requires(distribution) or ():
        needed = Requirement(line)
        always = needed.marker is None or needed.marker.evaluate({"extra": ""})
        if always if not extra else not always and needed.marker and needed.marker.evaluate({"extra": extra}):
            yield needed


def version_of(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _unmet(packages: Sequence[Package]) -> Iterator[str]:
    from packaging.specifiers import SpecifierSet

    # a package that several extras name says of none of them that it is wanted
    started = {package.extras for package in packages if package.installed and len(package.extras) == 1}
    for package in packages:
        wanted = f"{package.name}{package.needed}"
        use = f"[{', '.join(package.extras)}]" if package.extras else "everything"
        if package.installed is None:
            if not package.extras or any((extra,) in started for extra in package.extras):
                yield f"{package.name} is missing, which {use} needs: pip install '{wanted}'"
        elif not SpecifierSet(package.needed).contains(package.installed, prereleases=True):
            yield f"{package.name} is {package.installed}, but {use} needs {package.needed}: pip install '{wanted}'"


def _conflicts(names: Iterable[str]) -> Iterator[str]:
    """Yield what installed packages need of others that are installed in other versions, or not at all."""
    for name in names:
        for needed in _requirements(name):
            there, wanted = version_of(needed.name), f"{needed.name}{needed.specifier}"
            if there is None:
                yield f"{name} {version_of(name)} needs {wanted}, which is missing: pip install '{wanted}'"
            elif not needed.specifier.contains(there, prereleases=True):
                yield (
                    f"{name} {version_of(name)} needs {wanted}, but {there} is installed: pip install '{wanted}', or "
                    f"use {name} in an environment of its own"
                )


def _devices() -> Iterator[str]:
    import torch

    yield f"CPU: {os.cpu_count()} cores, threads of torch: {torch.get_num_threads()}"
    for number in range(torch.cuda.device_count()):
        yield f"GPU {number}: {torch.cuda.get_device_name(number)}"
