"""The whole product on real physics: from pretrained networks to clean weights, by the commands a user would type.

A network that predicts the motion of charged particles was pretrained at one interaction strength; few trajectories of
another strength are given. First comes the path that one takes with a network of one's own. Then, on all cores, a
potential of molecules is fine-tuned by Adam and by an optimiser that sees its equivariant weights as matrices, and the
particles' network with and without relaxation. Run `make demo`, or `make demo-short` for a smoke test.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon_cli.demonstration import Clock, command, relax_and_train, require, strip_and_verify

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("demo-output")
NBODY = "examples/nbody"
SWEEP = "examples/nbody/sweep.json"
ARMS = "plain,drop"
POTENTIAL = "examples/potential/potential.safetensors"
POTENTIAL_SWEEP = "examples/potential/sweep.json"
OPTIMISERS = "plain@adamw+beta2=0.95,plain@soap"
BEST = "plain@soap"
FILES = {
    "clean/model.safetensors": "clean weights of the original architecture",
    "clean/certificate.json": "what was compared and measured",
    "clean-onnx/model.onnx": "the same network for where torch is not installed",
    "run/": "the fine-tuning: best weights with branches, records, resumable state",
    "compare.json": "the comparison with and without branches, every run",
    "optimisers.json": "the comparison of optimisers; their best weights are in optimisers/",
    "potential-onnx/": "the better potential, clean: safetensors, certificate, and ONNX with energies and forces",
    "demo.png": "a picture of it all",
}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes have it, too

STRICT_LOAD = """
import sys
sys.modules["surgeon"] = None  # as if equisurgeon were not installed
sys.path.insert(0, "examples/nbody")
from safetensors.torch import load_file
from segnn import SEGNN, SEGNNConfig
print(SEGNN(SEGNNConfig()).load_state_dict(load_file("demo-output/clean/model.safetensors"), strict=True))
"""


def run(words: list[str]) -> None:
    """Run a program, and stop the demo if it fails."""
    require(subprocess.run(words, check=False).returncode)


@contextmanager
def beside(*words: str) -> Iterator[None]:
    """Run `surgeon` in a process of its own while something else goes on, and print at the end what it said."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command(*words), stdout=pipe, stderr=subprocess.STDOUT, text=True)
    try:
        yield
        print("\nthe export, which has run beside:", flush=True)
        print(process.communicate()[0], end="", flush=True)
    finally:
        process.kill()
    require(process.wait())


def without_torch(*words: str) -> None:
    """Run a script that imports numpy and ONNX Runtime alone."""
    print(f"\n$ python {shlex.join(words)}", flush=True)
    run([sys.executable, *words])


def path_to_clean_weights(clock: Clock, epochs: list[str], samples: int) -> tuple[float, float]:
    """From the checkpoint to clean weights and ONNX, checked; return what the fine-tuning and a new process took."""
    relax_and_train(clock, NBODY, str(OUT), samples, epochs)
    training, onnx = clock.last, str(OUT / "clean-onnx")
    with clock.stage("3. Strip the branches, prove it, load the weights without equisurgeon; ONNX on another core"):
        few = ("--metrics", "none", "--elements", "1", "--batches", "1")  # strip measures the same weights thoroughly
        with beside("export", str(OUT / "run"), "-o", onnx, "--onnx", *few):
            strip_and_verify(NBODY, str(OUT), samples)
            print("\nwhere equisurgeon is not installed, load_state_dict(strict=True) says:", flush=True)
            began = time.perf_counter()
            run([sys.executable, "-c", STRICT_LOAD])
            starting = time.perf_counter() - began
        without_torch("examples/nbody/run_onnx.py", f"{onnx}/model.onnx", str(samples))
    return training, starting


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compare(what: list[str], out: str, arms: str, seeds: int, each: float, starting: float) -> None:
    """Run a comparison, as many runs at a time as there are cores, at learning rates of a committed sweep."""
    runs = seeds * len(arms.split(","))
    jobs = min(cores(), runs)
    told = f"{runs} runs on all {cores()} cores, {jobs} at a time"
    whole = 2 * starting + -(-runs // jobs) * each
    print(
        f"{told}: about {whole:.0f} s, {each:.0f} s each by what step 2 took, and twice {starting:.0f} s until the "
        "command and then its processes have started, as one of step 3 did",
        flush=True,
    )
    run(command("finetune", *what, "-o", str(OUT / out), "--compare", arms, "--seeds", str(seeds), "--jobs", str(jobs)))


def comparisons(
    clock: Clock, every: list[str], epochs: tuple[int, int], seeds: int, epoch: float, starting: float
) -> None:
    """Compare optimisers on a potential, and fine-tuning with and without branches on the particles.

    Args:
        clock: measures the stages.
        every: options of all runs.
        epochs: of either comparison.
        seeds: of either comparison.
        epoch: seconds for one of step 2; one of the potential's takes about two thirds of it.
        starting: seconds until a process has imported torch.
    """
    with clock.stage(
        "4. Another optimiser: a potential on 100 frames of ethanol, by Adam and by one that sees matrices"
    ):
        what = [POTENTIAL, "--task", "examples/potential/task.py", "--lr-record", POTENTIAL_SWEEP]
        what += ["--epochs", str(epochs[0]), *every]
        compare(what, "optimisers.json", OPTIMISERS, seeds, epochs[0] * epoch * 2 / 3, starting)
    with clock.stage(
        "5. Did relaxing help the particles? And the better potential, proved and exported with its forces"
    ):
        kept, onnx = sorted((OUT / "optimisers" / BEST).iterdir())[0], str(OUT / "potential-onnx")
        with beside("export", str(kept), "-o", onnx, "--onnx"):
            what = [str(OUT / "relaxed"), "--lr-record", SWEEP, "--epochs", str(epochs[1]), *every]
            compare(what, "compare.json", ARMS, seeds, epochs[1] * epoch, starting)
            print(f"\n{seeds} seeds show no difference smaller than their scatter; README.md has eight arms.")
        without_torch("examples/potential/run_onnx.py", f"{onnx}/model.onnx")
        run([sys.executable, "examples/plot_demo.py", str(OUT), str(OUT / "demo.png")])


def main() -> None:
    """Run all stages and say how long they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one seed, few steps: a smoke test")
    short = parser.parse_args().short
    epochs, compared, seeds, samples = (4, (1, 4), 1, 300) if short else (30, (25, 12), 2, 1000)
    every = ["--evaluate-every", "2" if short else "5"]
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    clock = Clock()
    training, starting = path_to_clean_weights(clock, ["--epochs", str(epochs), *every], samples)
    comparisons(clock, every, compared, seeds, training / epochs, starting)
    print(f"\nDone. Everything is in {OUT}/:")
    for name, what in FILES.items():
        print(f"  {name:26} {what}")


if __name__ == "__main__":
    main()
