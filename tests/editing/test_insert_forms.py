"""Branches inside dicts, tuples and objects, on other axes than the last, and as convolution kernels."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.representations.build import representation_from
from surgeon.algebra.schedule import Schedule
from surgeon.editing.branch import branches_of
from surgeon.editing.relaxation import Relaxation
from surgeon.errors import CheckpointError, PlanError, ShapeError, SurgeryError
from surgeon.files.reading import keys_hash
from surgeon.files.relaxed import RelaxedConfig, read_relaxed, write_relaxed
from surgeon.finding.forms import rows_of
from surgeon.opening.loading import load_into
from surgeon.plan import CHILD, Convolution, Plan, Site
from surgeon.support import trees

SQUARE = ((1, 0), (0, 1))


class ByDegree(nn.Module):
    """Takes and returns a dict of features by degree: (rows, components, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({"0": torch.randn(4, 4), "1": torch.randn(2, 4)})

    def forward(self, features: dict[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        mixed = {degree: scale * x @ self.weights[degree].T for degree, x in features.items()}
        return {"1": mixed["1"], "0": mixed["0"]}


class Pairs(nn.Module):
    """Takes and returns tuples: scalars (rows, 4) and vectors (rows, 5, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars, self.vectors = nn.Linear(4, 4), nn.Parameter(torch.randn(2, 5))

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        scalars, vectors = pair
        return self.scalars(scalars), torch.einsum("oc,ncv->nov", self.vectors, vectors)


class Sorting(nn.Module):
    """Reads the second of a list and returns its result under a key."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, parts: list[Tensor]) -> dict[str, Any]:
        return {"rest": parts[0], "result": (parts[1] @ self.weight.T, None)}


class Field(NamedTuple):
    tensor: Tensor
    kind: str


@dataclasses.dataclass(frozen=True)
class Frozen:
    tensor: Tensor
    kind: str


class Plain:
    def __init__(self, tensor: Tensor, kind: str) -> None:
        self.tensor, self.kind = tensor, kind


class OnObjects(nn.Module):
    """Takes and returns objects that hold a tensor."""

    def __init__(self, make: Callable[[Tensor, str], Any]) -> None:
        super().__init__()
        self.make, self.weight = make, nn.Parameter(torch.randn(4, 6))

    def forward(self, field: Any) -> Any:
        return self.make(field.tensor @ self.weight.T, field.kind)


class Net(nn.Module):
    """One op under the name ``op``."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.op = op

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.op(*args, **kwargs)


def vectors(channels: int) -> dict[str, Any]:
    """Component first: the copies of one component are neighbours."""
    return {"axes": "v c", "sizes": {"c": channels}}


def site(argument: str, rho_in: Any, rho_out: Any, shape: tuple[int, ...], **more: Any) -> Site:
    group = more.pop("group", "O3")
    rho_in, rho_out = (representation_from(group, rho) for rho in (rho_in, rho_out))
    return Site("op", argument, "linear", "", rho_in, rho_out, shape, **more)


def by_degree() -> list[Site]:
    both = {"axes_in": (-2, -1), "axes_out": (-2, -1)}
    return [
        site("features", {"trivial": 4}, {"trivial": 4}, (4, 4), path_in=("0",), path_out=("0",), **both),
        site("features", vectors(4), vectors(2), (6, 12), path_in=("1",), path_out=("1",), **both),
    ]


def in_pairs() -> list[Site]:
    swapped = {"axes_in": (-1, -2), "axes_out": (-1, -2)}
    return [site("pair", vectors(5), vectors(2), (6, 15), path_in=(1,), path_out=(1,), **swapped)]


def on_objects(key: str | int = "tensor") -> list[Site]:
    more: dict[str, Any] = {"path_in": (key,), "path_out": (key,)}
    return [site("field", vectors(2), {"trivial": 4}, (4, 6), **more)]


def moves(kernel: tuple[int, int], mode: str = "zeros") -> Convolution:
    return Convolution(kernel, (2, 1), (1, 2), (1, 2), mode, SQUARE)


def convolution(mode: str) -> nn.Module:
    return nn.Conv2d(4, 8, (3, 3), (2, 1), (1, 2), (1, 2), padding_mode=mode)


def on_grid(mode: str) -> list[Site]:
    rho_in, rho_out = {"regular": 1, "layout": "mul_ir"}, {"regular": 2, "layout": "mul_ir"}
    return [site("input", rho_in, rho_out, (8, 4, 3, 3), convolution=moves((3, 3), mode), group="C4")]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape)


CASES: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], list[Site]], Callable[[], Any]]] = {
    "dict": ("O3", ByDegree, by_degree, lambda: {"0": random(7, 1, 4), "1": random(7, 3, 4)}),
    "tuple, vectors only": (
        "O3",
        Pairs,
        in_pairs,
        lambda: (random(7, 4), random(7, 5, 3)),
    ),
    "channel axis": (
        "SO3",
        lambda: nn.Linear(4, 5, bias=False),
        lambda: [site("input", vectors(4), vectors(5), (15, 12), axes_in=(-2, -1), axes_out=(-2, -1), group="SO3")],
        lambda: random(7, 3, 4),
    ),
    "named tuple": ("O3", lambda: OnObjects(Field), lambda: on_objects(0), lambda: Field(random(5, 6), "v")),
    "frozen dataclass": ("O3", lambda: OnObjects(Frozen), on_objects, lambda: Frozen(random(5, 6), "v")),
    "plain object": ("O3", lambda: OnObjects(Plain), on_objects, lambda: Plain(random(5, 6), "v")),
    "convolution": ("C4", lambda: convolution("zeros"), lambda: on_grid("zeros"), lambda: random(2, 4, 8, 7)),
    "circular convolution": (
        "C4",
        lambda: convolution("circular"),
        lambda: on_grid("circular"),
        lambda: random(2, 4, 8, 7),
    ),
}


EXACT = {"penalty_rows": None, "penalty_every": 1}


def relaxed(name: str, **how: Any) -> tuple[Net, Net, Relaxation, Any]:
    """Return an untouched twin, the relaxed network, its handle and an input."""
    group, make, sites, data = CASES[name]
    net = Net(make())
    twin = copy.deepcopy(net)
    return (
        twin,
        net,
        surgeon.relax(net, Plan(group, tuple(sites())), dense=True, **({"init_scale": 1.0} | EXACT | how)),
        data(),
    )


def total(output: Any) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in trees.tensors_in(output)]).sum()


@pytest.mark.parametrize("name", CASES)
def test_at_theta_zero_nothing_changes_and_at_a_tenth_it_does(name: str) -> None:
    twin, net, relaxation, x = relaxed(name)
    expected, found = twin(x), net(x)
    assert trees.equal(found, expected)
    assert list(trees.tensor_leaves(found)) == list(trees.tensor_leaves(expected))
    relaxation.set_theta(0.1)
    moved = net(x)
    assert type(moved) is type(expected)
    changed = {
        path
        for path, leaf in trees.tensor_leaves(moved).items()
        if not torch.equal(leaf, trees.tensor_at(expected, path))
    }
    assert changed == {site.path_out for site in relaxation.plan.sites}
    with relaxation.clean():
        assert trees.equal(net(x), expected)


@pytest.mark.parametrize("name", CASES)
def test_the_input_is_not_touched(name: str) -> None:
    _, net, relaxation, x = relaxed(name)
    relaxation.set_theta(1.0)
    before, identities = copy.deepcopy(x), [id(tensor) for tensor in trees.tensors_in(x)]
    net(x)
    assert trees.equal(x, before)
    assert [id(tensor) for tensor in trees.tensors_in(x)] == identities


def test_a_branch_in_a_dict_acts_on_its_degree_alone() -> None:
    twin, net, relaxation, x = relaxed("dict")
    relaxation.set_theta(0.5)
    found, expected = net(x), twin(x)
    for degree, o in (("0", 1), ("1", 3)):
        weight = relaxation.branches[f"op.features.{degree}"].weight
        added = 0.5 * (x[degree].flatten(1) @ weight.T).reshape(7, o, -1)
        assert torch.allclose(found[degree], expected[degree] + added, atol=1e-5)
        assert not torch.allclose(found[degree], expected[degree], atol=1e-5)
    by_keyword = net(features=x, scale=1.0)
    assert trees.equal(by_keyword, found)


def test_a_branch_on_two_axes_mixes_components_and_channels() -> None:
    twin, net, relaxation, x = relaxed("tuple, vectors only")
    relaxation.set_theta(0.5)
    weight = relaxation.branches["op.pair.1"].weight.reshape(3, 2, 3, 5)  # component and channel of both sides
    expected = twin(x)[1] + 0.5 * torch.einsum("voic,nci->nov", weight, x[1])
    assert torch.allclose(net(x)[1], expected, atol=1e-5)
    # The op itself commutes with rotations whatever its weights are; a branch that could not break that is no branch.
    g = torch.linalg.qr(torch.randn(3, 3))[0]
    turned = (x[0], x[1] @ g.T)
    assert torch.allclose(twin(turned)[1], twin(x)[1] @ g.T, atol=1e-5)
    assert not torch.allclose(net(turned)[1], net(x)[1] @ g.T, atol=1e-2)


def test_features_come_and_go_at_different_places() -> None:
    net = Net(Sorting())
    place = site("parts", vectors(2), {"trivial": 4}, (4, 6), path_in=(1,), path_out=("result", 0))
    relaxation = surgeon.relax(net, Plan("O3", (place,)), dense=True, init_scale=1.0)
    x = [random(5, 3), random(5, 6)]
    expected = net(x)
    relaxation.set_theta(0.5)
    found, weight = net(x), relaxation.branches["op.parts.1"].weight
    assert torch.allclose(found["result"][0], expected["result"][0] + 0.5 * x[1] @ weight.T)
    assert not torch.allclose(found["result"][0], expected["result"][0])
    assert found["result"][1] is None
    assert found["rest"] is x[0]


@pytest.mark.parametrize("name", ["convolution", "circular convolution"])
def test_a_kernel_adds_its_convolution(name: str) -> None:
    twin, net, relaxation, x = relaxed(name)
    relaxation.set_theta(0.5)
    summed = copy.deepcopy(twin)
    with torch.no_grad():
        summed.op.weight += 0.5 * relaxation.branches["op.input"].weight  # type: ignore[operator]
    assert torch.allclose(net(x), summed(x), atol=1e-5)
    assert not torch.allclose(net(x), twin(x), atol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_branch_and_the_base(name: str) -> None:
    _, net, relaxation, x = relaxed(name)
    total(net(x)).backward()
    assert not any(branch.weight.grad.any() for branch in relaxation.branches.values())  # theta is 0
    relaxation.set_theta(0.1)
    total(net(x)).backward()
    assert all(bool(branch.weight.grad.any()) for branch in relaxation.branches.values())
    assert all(bool(parameter.grad.any()) for parameter in relaxation.base_parameters())


@pytest.mark.parametrize("form", ["gram", "rows"])
@pytest.mark.parametrize("name", CASES)
def test_the_penalty_sees_what_the_branch_receives(name: str, form: Any) -> None:
    _, net, relaxation, x = relaxed(name, penalty_form=form)
    assert float(relaxation.penalty(may_be_empty=True)) == 0.0
    net.train()(x)
    relaxation.penalty()
    terms = relaxation.penalty_terms()
    assert terms.keys() == relaxation.branches.keys()
    for key, place in zip(terms, relaxation.plan.sites, strict=True):
        branch = relaxation.branches[key]
        rows = rows_of(branch.form, trees.tensor_at(x, place.path_in))
        applied = (rows @ branch.matrix.T).square().sum(-1)
        expected = applied.mean().sqrt() if form == "gram" else applied.sqrt().mean()
        assert torch.allclose(terms[key][0], expected, rtol=1e-4)
        # Scalars have no generators but still the element of the other component, under which W commutes.
        scalar = place.rho_in.is_trivial
        assert (float(terms[key][1].detach()) > 1e-2) == (not scalar)
    net(x)
    relaxation.penalty().backward()
    assert all(bool(branch.weight.grad.any()) for branch in relaxation.branches.values())
    with torch.no_grad():
        net(x)
    assert float(relaxation.penalty(may_be_empty=True)) == 0.0


@pytest.mark.parametrize("name", [name for name in CASES if "convolution" not in name])  # those have many rows
def test_both_forms_of_the_penalty_agree_for_one_row_only(name: str) -> None:
    values: dict[int, list[float]] = {1: [], 5: []}
    for form in ("gram", "rows"):
        torch.manual_seed(0)
        _, net, relaxation, x = relaxed(name, penalty_form=form)
        for count, found in values.items():
            net.train()(trees.map_tensors(lambda tensor, count=count: tensor[:count], x))
            found.append(float(relaxation.penalty().detach()))
    assert values[1][0] == pytest.approx(values[1][1], rel=1e-4)
    assert values[5][0] > 1.001 * values[5][1]  # a root mean square is larger than a mean


@pytest.mark.parametrize("name", CASES)
def test_stripping_leaves_every_byte_and_no_hook(name: str) -> None:
    twin, net, relaxation, x = relaxed(name)
    relaxation.set_theta(1.0)
    assert not trees.equal(net(x), twin(x))
    assert any(CHILD in key for key in net.state_dict())
    records = surgeon.strip(net)
    assert [record.name for record in records] == ["op"] * len(relaxation.plan.sites)
    assert list(net.state_dict()) == list(twin.state_dict())
    assert trees.equal(dict(net.state_dict()), dict(twin.state_dict()))
    for module, other in zip(net.modules(), twin.modules(), strict=True):
        assert type(module) is type(other)
        assert not module._forward_hooks
        assert not module._forward_hooks_with_kwargs
        assert module.__dict__.keys() == other.__dict__.keys()
    assert trees.equal(net(x), twin(x))
    assert not branches_of(net)


@pytest.mark.parametrize("name", CASES)
def test_copies_and_pickles_have_branches_of_their_own(name: str) -> None:
    _, net, relaxation, x = relaxed(name)
    relaxation.set_theta(0.5)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert trees.equal(other(x), net(x))
        assert list(branches_of(other)) == list(relaxation.branches)
        with torch.no_grad():
            for branch in branches_of(other).values():
                branch.weight.zero_()
        assert not trees.equal(other(x), net(x))


# Files


def config(plan: Plan, net: nn.Module) -> RelaxedConfig:
    base = {"repo": None, "file": "base.pt", "revision": None, "sha256": "0" * 64, "entry": None}
    return RelaxedConfig(
        plan,
        "drop",
        Schedule(),
        {"lambda": 0.01, "form": "gram", "scale": None},
        (0.0, 0.0),
        0,
        base | {"keys_hash": keys_hash(net.state_dict()), "container": "state_dict", "pickle": False},
    )


@pytest.mark.parametrize("name", CASES)
def test_a_relaxed_folder_names_branches_by_module_argument_and_path(name: str, tmp_path: Path) -> None:
    twin, net, relaxation, x = relaxed(name)
    write_relaxed(tmp_path / "relaxed", net, config(relaxation.plan, twin), {})
    files = read_relaxed(tmp_path / "relaxed")
    expected = [f"op.{CHILD}.{place.slot}.weight" for place in relaxation.plan.sites]
    assert sorted(files.branches) == sorted(expected)
    assert files.base.keys() == twin.state_dict().keys()
    assert files.config.plan == relaxation.plan
    # The folder alone rebuilds the relaxed network.
    other = Net(CASES[name][1]())
    load_into(other, files.base, "the folder")
    again = surgeon.relax(other, files.config.plan, dense=True)
    relaxation.set_theta(0.5)
    again.set_theta(0.5)
    assert not trees.equal(other(x), net(x))
    other.load_state_dict({**files.base, **files.branches}, strict=True)
    assert trees.equal(other(x), net(x))


def test_names_in_the_file_of_a_dict() -> None:
    _, net, _, _ = relaxed("dict")
    keys = [key for key in net.state_dict() if CHILD in key]
    assert keys == ["op._relaxation.features.0.weight", "op._relaxation.features.1.weight"]


def test_a_branch_of_another_path_is_noticed(tmp_path: Path) -> None:
    twin, net, relaxation, _ = relaxed("dict")
    first, second = relaxation.plan.sites
    settings = config(Plan("O3", (first, dataclasses.replace(second, path_in=("2",)))), twin)
    with pytest.raises(CheckpointError, match="plan and branches come from different runs"):
        write_relaxed(tmp_path / "relaxed", net, settings, {})
    assert not (tmp_path / "relaxed").exists()


def test_a_missing_branch_of_an_op_with_several_is_noticed(tmp_path: Path) -> None:
    twin, net, relaxation, _ = relaxed("dict")
    del net.op._relaxation.features._modules["1"]  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="1 have none, first op.features.1"):
        write_relaxed(tmp_path / "relaxed", net, config(relaxation.plan, twin), {})


# What does not fit


def untouched(net: nn.Module) -> bool:
    return not branches_of(net) and not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("dict", {"argument": "x"}, "an argument 'x' of ByDegree.forward, but it has features, scale"),
        ("dict", {"shape": (4, 5)}, "'op.features.0' to have the shape \\(4, 4\\)"),
        ("convolution", {"shape": (8, 4)}, "'op.input' to have the shape \\(8, 4, 3, 3\\)"),
        ("convolution", {"convolution": None}, "'op.input' to have the shape \\(8, 4\\)"),
        ("convolution", {"shape": (8, 4, 3, 5)}, "'op.input' to have the shape \\(8, 4, 3, 3\\)"),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(name: str, changes: dict[str, Any], words: str) -> None:
    group, make, sites, _ = CASES[name]
    net = Net(make())
    first, *others = sites()
    with pytest.raises(PlanError, match=words):
        surgeon.relax(net, Plan(group, (dataclasses.replace(first, **changes), *others)), dense=True)
    assert untouched(net)
    surgeon.relax(net, Plan(group, (first, *others)), dense=True)
    assert not untouched(net)


def test_one_path_twice_is_refused() -> None:
    net = Net(ByDegree())
    first = by_degree()[0]
    other = dataclasses.replace(first, path_in=(0,))  # an index and a key that read alike
    with pytest.raises(PlanError, match="lists 'op.features.0' more than once"):
        surgeon.relax(net, Plan("O3", (first, other)), dense=True)
    assert untouched(net)


def test_data_without_the_path_say_so() -> None:
    _, net, _, x = relaxed("dict")
    assert net(x).keys() == x.keys()
    net.op.forward = lambda features: features  # type: ignore[method-assign, assignment]
    with pytest.raises(ShapeError, match="expected '1' at \\[\\] of dict, which holds '0'"):
        net({"0": x["0"]})
    with pytest.raises(
        ShapeError, match=r"expected an output of dimension 6 on the axes \[-2, -1\], got shape \(7, 3, 4\)"
    ):
        net(x)


def test_a_path_that_cannot_name_a_module_is_rolled_back() -> None:
    net = Net(ByDegree())
    good, bad = by_degree()[0], dataclasses.replace(by_degree()[1], path_in=("type",))
    with pytest.raises(SurgeryError, match="'type' already exists.*as it was"):
        surgeon.relax(net, Plan("O3", (good, bad)), dense=True)
    assert untouched(net)
    assert not any(CHILD in name for name, _ in net.named_modules())
