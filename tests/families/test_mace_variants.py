"""Every kind of MACE potential from its file to its file, and what MACE's calculator and LAMMPS script make of it.

Two classes, layers with and without TorchScript, both dtypes, one head and either of two; energies, forces, stresses.
The shipped potential, scaled and scripted, goes the same way in test_mace_workflow.py.
"""

from __future__ import annotations

import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.parse import parse_group
from surgeon.opening.open import open_path
from surgeon_adapters.atoms.potential import Frames
from surgeon_adapters.atoms.task import FrameBatches
from surgeon_adapters.mace.data import head_of
from surgeon_adapters.mace.models import import_mace
from surgeon_adapters.mace.task import MaceTask

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")
pytest.importorskip("typer", reason="the command line is not installed: make test-mace")

from tests.families.frames import frames_of
from tests.families.mace_small import HEADS, crystal, reopened, saved, scripted, small

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
"""Share of the largest entry."""


@dataclass(frozen=True)
class Variant:
    kind: str
    scripted: bool
    dtype: str
    head: str | None = None

    @property
    def name(self) -> str:
        layers = "scripted" if self.scripted else "eager"
        return "-".join(part for part in (self.kind, layers, self.dtype, self.head) if part)

    def module(self) -> nn.Module:
        base = small(1 if self.head is None else 2, self.kind)
        copy = scripted(base) if self.scripted else reopened(saved(Path("plain.model"), base))
        return copy.to(getattr(torch, self.dtype))


VARIANTS = [
    Variant("MACE", True, "float64"),
    Variant("MACE", False, "float32", HEADS[1]),
    Variant("ScaleShiftMACE", False, "float64", HEADS[0]),
]


@dataclass(frozen=True)
class Trained:
    """A potential and what three commands made of it."""

    variant: Variant
    folder: Path
    original: Path
    container: Path
    weights: Path
    data: Path

    def frames(self, model: nn.Module) -> Frames:
        """Return all frames, in order."""
        return frames_of(self.data, head_of(model, self.variant.head))

    def predictions(self) -> dict[str, Tensor]:
        """Return total energies, forces and stresses of the weights without pickle, in float64."""
        model = open_path(self.weights).model.eval()
        task = MaceTask(self.data, head=self.variant.head).for_model(model)
        head, frames = head_of(model, self.variant.head), self.frames(model)
        found = task.forward(model, next(iter(FrameBatches(frames, range(len(frames)), len(frames)))))
        found = {key: value.detach().double() for key, value in found.items()}
        return {**found, "energy": found["energy"] + sum(head.isolated[number] for number in (8, 1, 1))}


def command(*arguments: str) -> None:
    from surgeon_cli.main import main

    with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 0, f"{arguments}: {out.getvalue()}"


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: variant.name)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, variant = tmp_path_factory.mktemp("variant"), request.param
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        data = crystal(folder, isolated=True)
        saved(Path("base.model"), variant.module())
        arguments = '{"batch_size": 3, "fraction": 0.2' + (f', "head": "{variant.head}"' if variant.head else "") + "}"
        task = ("--task", f"mace:{data}", "--task-args", arguments)
        kept = ("--reference", "keep", "--strip-mode", "fold")
        command("relax", "base.model", "--trust-pickle", *task, "-o", "relaxed", *kept)
        # neither the relaxed folder nor the run needs the pickle any more
        command("finetune", "relaxed", "--epochs", "2", "--lr", "3e-3", "-o", "run")
        command("export", "run", "--trust-pickle", "--container", "-o", "clean")
    clean = folder / "clean"
    return Trained(variant, folder, folder / "base.model", clean / "base.model", clean / "model.safetensors", data)


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return relative_difference(found.double(), expected.double())


def test_the_calculator_predicts_the_same_energies_forces_and_stresses(trained: Trained) -> None:
    import ase.io

    calculators, dtype = import_mace("calculators"), trained.variant.dtype
    made = [
        calculators.MACECalculator(str(path), device="cpu", default_dtype=dtype, head=trained.variant.head or HEADS[0])
        for path in (trained.container, trained.original)
    ]
    results: list[dict[str, Tensor]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for calculator in made:
            found = []
            for frame in ase.io.read(trained.data, ":")[3:]:
                frame.calc = calculator
                values = (frame.get_potential_energy(), frame.get_forces(), frame.get_stress(voigt=False))
                found.append([torch.as_tensor(value, dtype=torch.float64) for value in values])
            energies, forces, stresses = zip(*found, strict=True)
            results.append(
                {"energy": torch.stack(energies), "forces": torch.cat(forces), "stress": torch.stack(stresses)}
            )
    own = trained.predictions()
    for key, value in own.items():
        assert deviation(results[0][key], value) < TOLERANCE[dtype]
    # the negative twin: the original's forces and stresses are others
    assert relative_difference(results[1]["forces"], own["forces"]) > 10 * TOLERANCE["float32"]
    assert relative_difference(results[1]["stress"], own["stress"]) > 10 * TOLERANCE["float32"]


def test_the_script_for_lammps_takes_it_and_predicts_the_same(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, variant = import_mace("cli.create_lammps_model"), trained.variant
    head = ["--head", variant.head] if variant.head else []
    monkeypatch.setattr(
        "sys.argv", ["mace_create_lammps_model", str(trained.container), "--dtype", variant.dtype, *head]
    )
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as the script sets it for itself
    script.main()
    module: Any = torch.jit.load(f"{trained.container}-lammps.pt")
    model = open_path(trained.weights).model
    frames, own = trained.frames(model), trained.predictions()
    keys = ("positions", "node_attrs", "edge_index", "shifts", "unit_shifts", "cell", "batch", "ptr")
    volume = 4.0**3
    for index in range(len(frames)):
        batch = frames.batch([index])
        found = module({key: batch[key] for key in keys}, torch.ones(3, dtype=frames.dtype), True)
        assert deviation(found["total_energy_local"], own["energy"][index : index + 1]) < TOLERANCE[variant.dtype]
        assert deviation(found["forces"], own["forces"][3 * index : 3 * index + 3]) < TOLERANCE[variant.dtype]
        # LAMMPS gets virials, ASE and the task stresses
        assert deviation(-found["virials"][0] / volume, own["stress"][index]) < TOLERANCE[variant.dtype]


def test_stresses_are_the_change_of_the_energy_with_strain(trained: Trained) -> None:
    """Against central differences of the energy per volume: of a stretch and of a shear."""
    model, step, volume = open_path(trained.weights).model.double().eval(), 1e-4, 4.0**3
    task, frames = MaceTask(trained.data, head=trained.variant.head).for_model(model), trained.frames(model)
    batch = next(iter(FrameBatches(frames, [0], 1)))

    def energy(strain: Tensor) -> Tensor:
        moved = {
            key: batch[key] @ (torch.eye(3, dtype=torch.float64) + strain) for key in ("positions", "shifts", "cell")
        }
        return task.forward(model, {**batch, **moved})["energy"][0].detach()

    for row, column in ((0, 0), (0, 1)):
        strain = torch.zeros(3, 3, dtype=torch.float64)
        strain[row, column] += step / 2
        strain[column, row] += step / 2
        difference = (energy(strain) - energy(-strain)) / (2 * step * volume)
        stress = task.forward(model, batch)["stress"][0, row, column].detach()
        assert abs(stress - difference) < 1e-5 * abs(stress)


def test_the_weights_without_pickle_keep_class_heads_and_symmetry(trained: Trained) -> None:
    model: Any = open_path(trained.weights).model
    assert type(model).__name__ == trained.variant.kind
    assert list(model.heads) == (HEADS if trained.variant.head else HEADS[:1])
    assert {p.dtype for p in model.parameters()} == {getattr(torch, trained.variant.dtype)}
    model = model.double().eval()
    task = MaceTask(trained.data, head=trained.variant.head).for_model(model)
    batch = next(iter(task.batches("train", 0)))
    g = parse_group("O3").sample(1, torch.Generator().manual_seed(0), 1)[0]
    base = {key: value.detach() for key, value in task.forward(model, batch).items()}
    moved = {key: value.detach() for key, value in task.forward(model, task.act(g, batch)).items()}
    assert relative_difference(moved, task.act_output(g, base)) < 1e-7  # constants of a float32 checkpoint
    assert relative_difference(moved, base) > 1e-3


def test_training_one_head_keeps_what_belongs_to_the_other_alone(trained: Trained) -> None:
    """Readouts, isolated atoms, scale and shift of the other head stay bit for bit; what it predicts does not."""
    if trained.variant.head is None:
        pytest.skip("it has one head")
    own = HEADS.index(trained.variant.head)
    before, after = (reopened(path) for path in (trained.original, trained.container))
    kept = [key for key in before.state_dict() if key.startswith(("atomic_energies_fn", "scale_shift"))]
    assert len(kept) == (1 if trained.variant.kind == "MACE" else 3)
    assert all(torch.equal(before.state_dict()[key], after.state_dict()[key]) for key in kept)
    for readout in ("readouts.0.linear.weight", "readouts.1.linear_1.weight", "readouts.1.linear_2.weight"):
        old, new = (part_of_head(model.state_dict()[readout], readout, 1 - own) for model in (before, after))
        assert torch.equal(old, new), readout
        old, new = (part_of_head(model.state_dict()[readout], readout, own) for model in (before, after))
        assert not torch.equal(old, new), readout
    other = MaceTask(trained.data, head=HEADS[1 - own]).for_model(before)
    batch = next(iter(other.batches("test", 0)))
    forces = [other.forward(model.eval(), batch)["forces"].detach() for model in (before, after)]
    assert relative_difference(*forces) > 10 * TOLERANCE["float32"]


def part_of_head(weight: Tensor, name: str, head: int) -> Tensor:
    """The entries that only one head's energy depends on: 4 hidden channels per head."""
    units = slice(4 * head, 4 * head + 4)
    if name.endswith("linear_1.weight"):
        return weight.reshape(4, 8)[:, units]
    if name.endswith("linear_2.weight"):
        return weight.reshape(8, 2)[units, head]
    return weight.reshape(4, 2)[:, head]
