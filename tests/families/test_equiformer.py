"""Equiformer: the published keys, recognition from shapes, symmetry, forces, and the contract of its adapter."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.equivariance import Symmetry, relative_difference
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import CheckpointError, ModelNotFoundError
from surgeon.export.capture import captured, open_axes
from surgeon.files.reading import open_checkpoint
from surgeon.opening.models import find_model
from surgeon.opening.open import open_path
from surgeon.testing.contract import AdapterContract
from surgeon.testing.soundness import Model
from surgeon_adapters.zoo.equiformer import build
from surgeon_adapters.zoo.equiformer.adapter import adapter
from surgeon_adapters.zoo.equiformer.config import EquiformerConfig, from_data, published, published_names
from surgeon_adapters.zoo.equiformer.edges import neighbours, softmax_over_edges, sum_to_molecules, sum_to_nodes
from surgeon_adapters.zoo.equiformer.recognition import candidates
from tests.families.equiformer_keys import PUBLISHED, Published
from tests.families.equiformer_models import E3, L1, L2, L3, molecules, network, write_md17

pytestmark = pytest.mark.e3nn

ROUNDING = 1e-10
"""Relative errors in float64; the networks have a few layers."""

BROKEN = 1e-4


def call(module: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    energy, forces = module(**given)
    return {"energy": energy, "forces": forces}


def act(g: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    moved = given["pos"] @ g[:3, :3].T.to(given["pos"])
    return {**given, "pos": moved + g[:3, 3] if len(g) == 4 else moved}


def act_output(g: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"energy": outputs["energy"], "forces": outputs["forces"] @ g[:3, :3].T.to(outputs["forces"])}


@functools.cache
def shared(name: str) -> nn.Module:
    """A network that no test changes."""
    return network({"L1": L1, "L2": L2, "L3": L3, "E3": E3}[name])


def of(module: nn.Module) -> Model:
    return Model(module, (molecules(),), Symmetry(parse_group("SO3"), act, act_output, call))


def sample(settings: dict[str, Any]) -> Model:
    return of(network(settings))


def error(model: Model, group: str) -> float:
    """Relative error under random elements of every component."""
    chosen, generator = parse_group(group), torch.Generator().manual_seed(3)
    parts = [chosen.sample(2, generator, part) for part in range(len(chosen.component_names))]
    return model.error(torch.cat(parts))


class TestContract(AdapterContract):
    adapter = "surgeon_adapters.zoo.equiformer.adapter:adapter"
    libraries = ("e3nn", "scipy")
    annotates = False  # its layers are e3nn's

    def sample(self) -> Model:
        return sample(L1)

    def data(self) -> Path:
        return self.file

    @pytest.fixture(autouse=True)
    def written(self, tmp_path: Path) -> None:
        self.file = write_md17(tmp_path / "ethanol.npz")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), list(zip(PUBLISHED, (2, 1), strict=True)))
def test_keys_shapes_and_order_are_the_published_ones(name: str, layers: int) -> None:
    # the blocks before the last one are alike
    golden = dataclasses.replace(PUBLISHED[name], layers=layers).shapes()
    own = build(name, {"layers": layers}).state_dict()
    assert [(key, tuple(value.shape)) for key, value in own.items()] == list(golden.items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_are_recognised_by_shapes(name: str) -> None:
    tensors = {key: torch.empty(shape, device="meta") for key, shape in PUBLISHED[name].shapes().items()}
    tensors["rbf.means"] = torch.linspace(math.exp(-5.0), 1, 32)
    assert candidates(tensors) == [published(name)]


@pytest.mark.parametrize(
    "settings",
    [
        {**L2, "nonlinear_message": False, "basis": "gaussian", "attention_dropout": 0.2},
        {**L1, "feature": L1["embedding"], "attention_head": True, "cutoff": 4.0},
        {**L3, "basis": "bessel", "atom_types": 20},
    ],
    ids=["l2 linear gaussian", "attention head", "l3 bessel"],
)
def test_settings_are_read_off_keys_and_shapes(settings: dict[str, Any]) -> None:
    model = build(settings=settings)
    again = adapter.rebuild(model.state_dict())
    assert again is not None
    again.load_state_dict(model.state_dict())
    assert again.config == model.config == from_data(settings)


@pytest.mark.parametrize(("name", "group"), [("L1", "SE3"), ("L2", "SE3"), ("L3", "SE3"), ("E3", "E3")])
def test_energies_are_invariant_and_forces_turn_along(name: str, group: str) -> None:
    model = of(shared(name))
    outputs = call(model.module, model.inputs[0])
    assert outputs["forces"].abs().max() > 1e-3
    assert error(model, group) < ROUNDING


def test_without_odd_irreps_a_reflection_is_no_symmetry() -> None:
    assert error(of(shared("L2")), "O3") > BROKEN


@pytest.mark.parametrize("pattern", ["*.ffn.*", "*"])
def test_branches_break_the_symmetry_that_the_network_has(pattern: str) -> None:
    model = sample(L1)
    plan = surgeon.find(model.module, "SO3", *model.inputs, forward=call)
    plan = surgeon.select(plan, include=[pattern])
    assert all(site.verified for site in plan.sites)
    assert {site.fold_note for site in plan.sites if ".dtp." not in site.name} == {""}
    relaxation = surgeon.relax(model.module, plan, dense=True, init_scale=1.0)
    assert error(model, "SO3") < ROUNDING
    relaxation.set_theta(1.0)
    assert error(model, "SO3") > BROKEN


@pytest.mark.parametrize("basis", ["exp", "gaussian", "bessel"])
def test_forces_are_the_negative_slope_of_the_energy(basis: str) -> None:
    model, given = shared("L1") if basis == "exp" else network({**L1, "basis": basis}), molecules()
    direction = torch.randn(given["pos"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5
    ahead, behind = (
        model(**{**given, "pos": given["pos"] + sign * step * direction})[0].detach().sum() for sign in (1, -1)
    )
    forces = model(**given)[1].detach()
    assert relative_difference((behind - ahead) / (2 * step), (forces * direction).sum()) < 1e-6


def test_positions_stay_as_they_were_and_without_gradients_nothing_is_kept() -> None:
    model, given = shared("L1"), molecules()
    with torch.no_grad():
        energy, forces = model(**given)
    assert not any(tensor.requires_grad for tensor in (given["pos"], energy, forces))
    assert model(**given)[1].requires_grad


def test_molecules_do_not_see_each_other() -> None:
    model, both = shared("L1"), molecules(counts=(5, 4))
    first = {key: value[:5] for key, value in both.items()}
    energy, forces = model(**both)
    alone = model(**first)
    assert torch.allclose(energy[:1], alone[0], rtol=1e-12)
    assert torch.allclose(forces[:5], alone[1], rtol=1e-10, atol=1e-14)


def test_neighbours_are_within_the_cutoff_and_never_themselves() -> None:
    positions = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [0, 0, 0]])
    source, target = neighbours(positions, torch.tensor([0, 0, 0, 1]), 2.5)
    assert set(zip(source.tolist(), target.tolist(), strict=True)) == {(0, 1), (1, 0), (1, 2), (2, 1)}


class Springs(nn.Module):
    """Energies of molecules, each pair of atoms within a cutoff held by a spring."""

    def forward(self, *tensors: Tensor) -> Tensor:
        positions, batch = tensors
        source, target = neighbours(positions, batch, 2.5)
        squares = (positions[source] - positions[target]).square()
        stretched = torch.tensordot(squares, torch.ones(3, 1), dims=1)  # asks whether there is one edge only
        return sum_to_molecules(sum_to_nodes(stretched, target, positions.shape[0]), batch)


def clouds(*sizes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(sum(sizes), 3), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def test_an_export_leaves_the_numbers_of_edges_and_molecules_open() -> None:
    springs, shapes = Springs(), (open_axes([0]), open_axes([0]))
    exported = captured(springs, tuple(clouds(3, 2)), shapes, ["surgeon_adapters"]).module()
    for given in (clouds(3, 4), clouds(2, 6, 3), clouds(8)):
        assert torch.allclose(exported(*given), springs(*given))


def test_softmax_over_edges_is_that_of_each_target() -> None:
    x = torch.randn(5, 2, dtype=torch.float64)
    target = torch.tensor([2, 0, 2, 2, 0])
    found = softmax_over_edges(x, target, 4)
    for node in (0, 2):
        assert torch.allclose(found[target == node], x[target == node].softmax(dim=0), rtol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    model, given = network({**L1, "attention_dropout": 0.5}), molecules()
    assert torch.equal(model(**given)[0], model(**given)[0])
    model.train()
    assert not torch.equal(model(**given)[0], model(**given)[0])


# What is not recognised


def test_odd_irreps_of_other_widths_need_a_statement(tmp_path: Path) -> None:
    model = shared("E3")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "net.pth")
    with pytest.raises(
        CheckpointError, match="no settings that this package knows.*net.pth.model.json|CKPT.model.json"
    ):
        open_path(tmp_path / "net.pth")
    statement = {"factory": "surgeon_adapters.zoo.equiformer:build", "args": {"settings": E3}}
    (tmp_path / "net.pth.model.json").write_text(json.dumps(statement))
    assert open_path(tmp_path / "net.pth").model.config == shared("E3").config  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("blocks.0.norm_1.mean_shift", "normalisation over a graph"),
        ("blocks.0.ga.proj_drop.mul.output_mask", "dropout of features"),
        ("force_embed.tp.weight", "noise prediction"),
    ],
)
def test_other_variants_are_named(key: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key}.*{words}.*--model"):
        adapter.rebuild({**shared("L1").state_dict(), key: torch.zeros(1)})


def test_irreps_that_shapes_leave_open_need_a_statement() -> None:
    shapes = Published((4, 3, 2, 1), (2, 1, 1, 1), (6, 3, 2, 1), layers=2).shapes()
    with pytest.raises(CheckpointError, match=r"several irreps of its .* open.*CKPT\.model\.json"):
        candidates({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})


def test_a_missing_key_is_named() -> None:
    state = shared("L1").state_dict()
    del state["edge_deg_embed.rad.net.6.weight"], state["blocks.0.ga.proj.tp.weight"]
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ga\.proj\.tp\.weight.*missing"):
        adapter.rebuild(state)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 3}, "among embedding.*'width'"),
        ({"basis": "fourier"}, "setting basis.*'fourier'"),
        ({"cutoff": "5"}, "setting cutoff"),
        ({"layers": -1}, "setting layers"),
        ({"embedding": "nonsense"}, "fit together"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        build(settings=settings)


def test_unknown_networks_are_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="nonlinear_exp_l3_md17.*'l9'"):
        build("l9")
    assert set(PUBLISHED) <= set(published_names())
    assert published("graph_attention_transformer_nonlinear_exp_l2_md17") == EquiformerConfig()


def test_foreign_checkpoints_are_left_to_others(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")
    with pytest.raises(ModelNotFoundError):
        find_model(open_checkpoint(tmp_path / "net.pt"), adapters=[adapter])
