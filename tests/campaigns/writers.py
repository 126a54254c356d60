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
        goes_on: whether what is left half-way is a run or a comparison, which the same command goes on with.
        workers: whether faults strike in the processes that it starts, and not in its own.
        processes: how many processes of one group run it; faults strike in one of them.
        hub: what it finds on the loopback Hub: an "empty" one, one with what is "pushed", or "" for none.
        fetched: what brings to the target what it wrote on the Hub.
        rival: further words with which another process writes other content to the same place.
    """

    given: tuple[str, ...]
    needs: tuple[str, ...]
    target: str
    share: int
    old: bool = False
    goes_on: bool = False
    workers: bool = False
    processes: int = 1
    hub: str = ""
    fetched: tuple[str, ...] = ()
    rival: tuple[str, ...] = ()


TRAIN = ("--epochs", "1")
RELAXED, RUN, INTO, OLD = ("net-relaxed",), ("net-run",), ("-o", "new"), ("-o", "old", "--force")
REPO, BASE = "alice/net", "alice/base"
PULL = ("pull", f"hf://{REPO}")
TRAINING = ("finetune", "net-relaxed", *TRAIN, "-o")
TWO = ("finetune", "net-relaxed", "--epochs", "2", "--task-args", '{"batches": 4}', "--task", "task.py", "-o")
COMPARING = ("--compare", "plain,drop", "--seeds", "1")
STRIP, EXPORT = ("strip", "net-run", *QUICK), ("export", "net-run", *QUICK)
VERIFY = ("verify", "net-clean", "--against", "net.pt")
FOLD, FASTER, METRICS = ("--strip-mode", "fold"), ("--lr", "2e-2"), ("--metrics", "none")
HUB = ("relax", f"hf://{BASE}", "--task", "task.py")
COMMANDS = {
    "relax": Command(("relax", "net.pt", *INTO), (), "new", 8, rival=FOLD),
    "relax --force": Command(("relax", "net.pt", *OLD), (), "old", 8, True, rival=FOLD),
    "finetune": Command((*TRAINING, "new"), RELAXED, "new", 4, goes_on=True, rival=FASTER),
    "resume": Command((*TRAINING, "half"), (*RELAXED, "half"), "half", 4, goes_on=True),
    "finetune, two processes": Command((*TWO, "new"), RELAXED, "new", 3, goes_on=True, processes=2),
    "strip": Command((*STRIP, *INTO), RUN, "new", 7, rival=METRICS),
    "strip --force": Command((*STRIP, *OLD), RUN, "old", 7, True, rival=METRICS),
    "export --container": Command((*EXPORT, "--container", *INTO), RUN, "new", 4),
    "export --pt2": Command((*EXPORT, "--pt2", *INTO), RUN, "new", 1),
    "export --onnx": Command((*EXPORT, "--onnx", *INTO), RUN, "new", 1),
    "compare": Command((*TRAINING, "new.json", *COMPARING), RELAXED, "new.json", 3, goes_on=True),
    "compare --jobs 2": Command(
        (*TRAINING, "new.json", *COMPARING, "--jobs", "2"), RELAXED, "new.json", 1, goes_on=True, workers=True
    ),
    "compare again": Command(
        (*TRAINING, "begun.json", *COMPARING), (*RELAXED, "begun", "begun.runs"), "begun.json", 2, goes_on=True
    ),
    "verify --against": Command(VERIFY, ("net-clean",), "new", 4),
    "push": Command(("push", "net-run", REPO), RUN, "new", 6, hub="empty", fetched=(*PULL, *INTO)),
    "pull": Command((*PULL, *INTO), (), "new", 8, hub="pushed"),
    "pull --force": Command((*PULL, *OLD), (), "old", 8, True, hub="pushed"),
    "relax hf://": Command((*HUB, *INTO), (), "new", 6, hub="pushed"),
}
READERS = (
    ("inspect",),
    ("measure", *QUICK),
    ("strip", "-o", "read", *QUICK),
    ("verify",),
    ("report", "-o", "read.html"),
)
"""What is given the target as a fault has left it."""
FOREIGN = (
    *("notes.txt", "net-relaxed/notes.txt", "net-run/notes.txt", "half/notes.txt", "begun/notes.txt"),
    *("begun.runs/notes.txt", "net-clean/notes.txt", "old/sub/precious.txt"),
)
"""Files of the user's in every folder that a command reads, writes or replaces."""
