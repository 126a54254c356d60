"""The whole product on real physics: from a pretrained SEGNN to clean weights, by the commands a user would type.

A network that predicts the motion of charged particles was pretrained at one interaction strength; few trajectories of
another strength are given. Run `make demo` (about five minutes on two cores), or `make demo-short` for a smoke test.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("demo-output")
CHECKPOINT = Path("examples/nbody/segnn_nbody.safetensors")
SWEEP = Path("examples/nbody/sweep.json")
FILES = {
    "clean/model.safetensors": "clean weights of the original architecture",
    "clean/certificate.json": "what was compared and measured",
    "run/": "the fine-tuning: best weights with branches, records, resumable state",
    "compare.json": "the comparison of the arms, every run",
    "demo.png": "a picture of it all",
}

STRICT_LOAD = """
import sys
sys.modules["surgeon"] = None  # as if equisurgeon were not installed
sys.path.insert(0, "examples/nbody")
from safetensors.torch import load_file
from segnn import SEGNN, SEGNNConfig
print(SEGNN(SEGNNConfig()).load_state_dict(load_file("demo-output/clean/model.safetensors"), strict=True))
"""


def show(title: str) -> None:
    """Print a heading."""
    print(f"\n=== {title}", flush=True)


def surgeon(*words: str) -> None:
    """Print a command as a user would type it, run it, and stop the demo if it fails."""
    print(f"\n$ surgeon {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "surgeon_cli.main", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the demo stopped: the command above ended with exit code {done.returncode}")


def main() -> None:
    """Run all steps and say how long they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one seed, few steps, small test set: a smoke test")
    short = parser.parse_args().short
    epochs, every, seeds = ("4", "2", "1") if short else ("60", "5", "3")
    started = time.perf_counter()
    shutil.rmtree(ROOT / OUT, ignore_errors=True)
    (ROOT / OUT).mkdir()
    relaxed, run, clean = (str(OUT / name) for name in ("relaxed", "run", "clean"))
    budget = ("--epochs", epochs, "--evaluate-every", every)

    show("1. What is in the checkpoint, and what can be relaxed?")
    task = ("--task", "examples/nbody/task.py", "--task-args", '{"test_samples": 300}') if short else ()
    surgeon("relax", str(CHECKPOINT), "--group", "O3", "-o", relaxed, *task)
    show("2. Fine-tune on 200 trajectories of a stronger interaction, theta 0 -> 1 -> 0")
    surgeon("finetune", relaxed, "-o", run, "--lr", "2e-3", *budget)
    show("3. Strip the branches, prove that the architecture is the original's, write clean weights")
    surgeon("strip", run, "-o", clean)
    show("4. Load the clean weights where equisurgeon is not installed")
    subprocess.run([sys.executable, "-c", STRICT_LOAD], cwd=ROOT, check=True)
    show("5. Did it help? All arms with equal budgets; learning rates from the committed sweep")
    comparison = ("--compare", "plain,drop,fold,overparam", "--seeds", seeds, "--lr-record", str(SWEEP))
    surgeon("finetune", relaxed, "-o", str(OUT / "compare.json"), *comparison, *budget)
    subprocess.run([sys.executable, "examples/plot_demo.py", str(OUT), str(OUT / "demo.png")], cwd=ROOT, check=True)
    minutes = (time.perf_counter() - started) / 60
    print(f"\nDone in {minutes:.1f} minutes. Everything is in {OUT}/:")
    for name, what in FILES.items():
        print(f"  {name:26} {what}")


if __name__ == "__main__":
    main()
