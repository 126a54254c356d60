"""Every command that writes, with what it finds, what it writes, and who reads that afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from tests.campaigns.work import QUICK


@dataclass(frozen=True)
class Command:
    """A command, and what it writes.

    Attributes:
        given: its words.
        needs: what of the furnished folder it finds.
        target: what it writes.
        share: weight in the campaign.
        old: whether another folder of the user's stands there, which it is told to replace.
        readers: commands that are then given the target.
        goes_on: whether what is left half-way is a run or a comparison, which the same command goes on with.
        workers: whether faults strike in the processes that it starts, and not in its own.
        hub: what it finds on the loopback Hub: an "empty" one, one with a "run", or "" for none.
        fetched: what brings to the target what it wrote on the Hub.
    """

    given: tuple[str, ...]
    needs: tuple[str, ...]
    target: str
    share: int
    old: bool = False
    readers: tuple[tuple[str, ...], ...] = ()
    goes_on: bool = False
    workers: bool = False
    hub: str = ""
    fetched: tuple[str, ...] = ()


TRAIN = ("--epochs", "1")
OPENED = (("inspect",), ("measure", *QUICK), ("strip", "-o", "read", *QUICK))
VERIFIED = (("verify",), ("report", "-o", "read.html"))
REPORTED = (("report", "-o", "read.html"),)
RELAXED, RUN, INTO, OLD = ("net-relaxed",), ("net-run",), ("-o", "new"), ("-o", "old", "--force")
REPO = "alice/net"
PULL = ("pull", f"hf://{REPO}")
TRAINING = ("finetune", "net-relaxed", *TRAIN, "-o")
COMPARING = ("--compare", "plain,drop", "--seeds", "1")
STRIP, EXPORT = ("strip", "net-run", *QUICK), ("export", "net-run", *QUICK)
COMMANDS = {
    "relax": Command(("relax", "net.pt", *INTO), (), "new", 6, readers=OPENED),
    "relax --force": Command(("relax", "net.pt", *OLD), (), "old", 6, True, OPENED),
    "finetune": Command((*TRAINING, "new"), RELAXED, "new", 6, False, OPENED, True),
    "resume": Command((*TRAINING, "half"), (*RELAXED, "half"), "half", 6, False, OPENED, True),
    "strip": Command((*STRIP, *INTO), RUN, "new", 5, readers=VERIFIED),
    "strip --force": Command((*STRIP, *OLD), RUN, "old", 5, True, VERIFIED),
    "export --container": Command((*EXPORT, "--container", *INTO), RUN, "new", 4, readers=VERIFIED),
    "export --pt2": Command((*EXPORT, "--pt2", *INTO), RUN, "new", 2, readers=VERIFIED),
    "export --onnx": Command((*EXPORT, "--onnx", *INTO), RUN, "new", 1, readers=VERIFIED),
    "compare": Command((*TRAINING, "new.json", *COMPARING), RELAXED, "new.json", 4, False, REPORTED, True),
    "compare --jobs 2": Command(
        *((*TRAINING, "new.json", *COMPARING, "--jobs", "2"), RELAXED, "new.json", 2, False, REPORTED, True, True)
    ),
    "compare again": Command(
        (*TRAINING, "begun.json", *COMPARING), (*RELAXED, "begun", "begun.runs"), "begun.json", 3, False, REPORTED, True
    ),
    "push": Command(("push", "net-run", REPO), RUN, "new", 4, hub="empty", fetched=(*PULL, *INTO)),
    "pull": Command((*PULL, *INTO), (), "new", 5, readers=(("inspect",),), hub="run"),
    "pull --force": Command((*PULL, *OLD), (), "old", 5, True, (("inspect",),), hub="run"),
}
FOREIGN = (
    *("notes.txt", "net-relaxed/notes.txt", "net-run/notes.txt", "half/notes.txt", "begun/notes.txt"),
    *("begun.runs/notes.txt", "old/sub/precious.txt"),
)
"""Files of the user's in every folder that a command reads, writes or replaces."""
