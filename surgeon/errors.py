"""Exceptions: each message says what was expected, what came, where, and what to do, in one sentence.

Every class also subclasses the built-in exception that plain Python code would catch.
"""

from __future__ import annotations

from typing import Any

LONGEST, ADVICE = 650, 240
"""Characters of a message, and of its end that is always shown: what to do stands there."""
LONGEST_WORD = 200
"""Characters of a word that is shown whole; paths are shorter."""


class SurgeonError(Exception):
    """Base of all errors that a user can act on; the command line prints the message and exits with ``exit_code``.

    A message can quote names and values from files: what is said is one printable line, and of a long one its begin and
    its end, where the advice is.
    """

    exit_code = 2
    code = "S000"
    """What the command line prints after the message, for docs/troubleshooting.md."""

    def __str__(self) -> str:
        return sentence(super().__str__())


class UsageError(SurgeonError, ValueError):
    """An argument, flag or setting is missing or unusable."""

    code = "S101"


class ShapeError(SurgeonError, ValueError):
    """A tensor does not have the dimension that its representation requires."""

    code = "S102"


class GroupError(SurgeonError, ValueError):
    """A group is unknown, ill-defined, or has no such representation."""

    code = "S103"


class PlanError(SurgeonError, ValueError):
    """A plan is malformed, does not fit the model, or contains nothing to do."""

    code = "S301"


class PrecisionError(SurgeonError, RuntimeError):
    """A network does not run in the dtype that a measurement needs."""

    code = "S206"


class NothingToRelaxError(PlanError):
    """No op of a model takes a branch; ``plan``, without sites, is a `Plan` that says of every parameter why."""

    code = "S302"

    def __init__(self, message: str, plan: Any) -> None:
        super().__init__(message)
        self.plan = plan


class SurgeryError(SurgeonError, RuntimeError):
    """An insertion or a strip could not be carried out; the model is as it was before."""

    code = "S303"


class CheckpointError(SurgeonError, ValueError):
    """A checkpoint cannot be read, is damaged, or does not fit the model."""

    code = "S201"


class TrustError(CheckpointError):
    """Opening the file would execute code that the user has not allowed."""

    code = "S202"


class HubError(SurgeonError, OSError):
    """The Hub cannot be reached, has no such thing, refuses, or sent something else than it announced."""

    code = "S203"


class ModelNotFoundError(SurgeonError, LookupError):
    """No rule says how to build the model of a checkpoint."""

    code = "S204"


class TaskError(SurgeonError, ValueError):
    """A task file is missing, does not define what is needed, or returned something unusable."""

    code = "S205"


class WriteError(SurgeonError, OSError):
    """An output could not be written; nothing half-written is left and nothing existing was touched."""

    code = "S105"


class ExistsError(SurgeonError, FileExistsError):
    """An output exists already and overwriting was not asked for."""

    code = "S104"


class TrainingError(SurgeonError, RuntimeError):
    """Training cannot go on; the last good state was kept."""

    code = "S401"


class InterruptedTrainingError(TrainingError):
    """The user has interrupted a training, which can go on."""

    code = "S402"


class CheckFailedError(SurgeonError, AssertionError):
    """A check ran and its verdict is no: a symmetry, a certificate or an identity does not hold."""

    exit_code = 1
    code = "S501"


class NotASymmetryError(CheckFailedError):
    """A model's output does not transform as the group acts.

    ``plan``, a `Plan` without sites, says what was found; ``complaint``, a `Complaint`, what was measured.
    """

    code = "S502"

    def __init__(self, message: str, plan: Any, complaint: Any) -> None:
        super().__init__(message)
        self.plan, self.complaint = plan, complaint


def printable(text: str) -> str:
    """Return a text without anything that moves a cursor, colours a screen, or turns the direction of what follows.

    Control characters, those that show nothing, and halves of surrogate pairs become escapes; line ends stay.

    Example:
        >>> print(printable("weight\x1b[2J"))
        weight\\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def sentence(text: str) -> str:
    """Return a text as one printable line; of a long one, and of long words in it, begin and end."""
    words = printable(" ".join(text.splitlines())).split(" ")
    return _shortened(" ".join(_shortened(word, LONGEST_WORD, LONGEST_WORD // 4) for word in words), LONGEST, ADVICE)


def _shortened(text: str, longest: int, end: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - end - 3]} … {text[-end:]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
