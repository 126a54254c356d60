"""What an op's weights can take in is found by running it: least squares with J, in every layout of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.intertwiners import average
from surgeon.algebra.representations.build import axes, irreps, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.editing.branch import branches_of
from surgeon.errors import PlanError
from surgeon.finding.fold import fold_complaint, fold_map_at, with_fold
from surgeon.plan import Convolution, Plan, Site
from surgeon_adapters.e3nn_layers.adapter import adapter
from tests import nets
from tests.nets import o3

pytestmark = pytest.mark.e3nn

GROUP = parse_group("O3")
EXACT = 1e-12


def constant_only() -> Tensor:
    """The constant scalars alone, so that no other path contributes."""
    return torch.cat([torch.tensor([[1.0, 0.7]], dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)], dim=1)


OPS: dict[str, tuple[Any, bool]] = {
    "linear": (lambda: o3.Linear("2x0e+2x1o", "3x0e+2x1o"), False),
    "linear, split blocks": (lambda: o3.Linear("2x0e+2x1o+1x0e", "0e+2x1o+2x0e"), False),
    "linear, with biases": (lambda: o3.Linear("2x0e+1o", "2x0e+1o", biases=True), False),
    "linear, missing paths": (nets.linear_with_missing_paths, False),
    "linear, one pair twice": (lambda: o3.Linear("2x1o", "2x1o", instructions=[(0, 0), (0, 0)]), False),
    "full product": (lambda: o3.FullyConnectedTensorProduct("2x0e+2x1o", nets.ATTRIBUTES, "0e+2x1o"), True),
    **{f"product {mode}": (lambda mode=mode: nets.product(mode), True) for mode in nets.MODES},
}


def annotated(op: nn.Module, calls: list[dict[str, Any]], group: str = "O3") -> Site:
    proposal: Any = adapter.propose(op, parse_group(group))
    return with_fold(nets.site_of(proposal, None), op, calls, ())


def op_and_site(name: str) -> tuple[nn.Module, Tensor | None, Site]:
    make, bilinear = OPS[name]
    with nets.default_dtype(torch.float64):
        op = make()
    x = torch.randn(20, o3.Irreps(getattr(op, "irreps_in", None) or op.irreps_in1).dim, dtype=torch.float64)
    call = {"y": nets.attributes(20, torch.float64)} if bilinear else {}
    argument = "x" if bilinear else next(iter(adapter.propose(op, GROUP).argument.split()))
    return op, constant_only() if bilinear else None, annotated(op, [{argument: x, **call}])


@pytest.mark.parametrize("name", OPS)
def test_projection_is_least_squares_on_the_ops_weights(name: str) -> None:
    op, y, site = op_and_site(name)
    fold_map = fold_map_at(op, site)
    jacobian = nets.weight_jacobian(op, y, site.shape[1])
    weight = torch.randn(site.shape, dtype=torch.float64)
    change = torch.linalg.pinv(jacobian) @ weight.flatten()
    reference = (jacobian @ change).reshape(site.shape)
    assert reference.norm() > 0.1
    assert torch.allclose(fold_map.project(weight), reference, atol=EXACT)
    found = fold_map.weight_change(weight)
    assert torch.allclose(found["weight"].flatten(), change, atol=EXACT)
    assert torch.allclose(fold_map.map_change(found), reference, atol=EXACT)


@pytest.mark.parametrize(
    ("name", "note"),
    [("linear", ""), ("linear, split blocks", ""), ("full product", ""), ("product uvw", "")]
    + [(name, "its weights reach") for name in ("linear, missing paths", "product uvu", "product uuu")],
)
def test_an_op_with_a_path_for_every_pair_reaches_all_intertwiners(name: str, note: str) -> None:
    op, _, site = op_and_site(name)
    weight = torch.randn(site.shape, dtype=torch.float64)
    difference = (fold_map_at(op, site).project(weight) - average(weight, site.rho_out, site.rho_in)).norm()
    assert difference > 0.1 if note else difference < EXACT
    assert site.fold_note.startswith(note) if note else not site.fold_note


def test_under_so3_the_op_still_reaches_its_own_paths_only() -> None:
    with nets.default_dtype(torch.float64):
        op = o3.Linear("1o+1e", "1o+1e")
    site = annotated(op, [], "SO3")
    weight = torch.eye(3, dtype=torch.float64).repeat(2, 2)
    expected = torch.block_diag(torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    assert torch.allclose(fold_map_at(op, site).project(weight), expected, atol=EXACT)
    assert site.fold_note == "its weights reach 2 of 4 intertwiner dimensions"


def test_projection_is_differentiable_twice() -> None:
    op, _, site = op_and_site("product uvu")
    fold_map = fold_map_at(op, site)
    weight = torch.randn(site.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fold_map.project, (weight,))
    assert torch.autograd.gradgradcheck(lambda w: fold_map.project(w) ** 2, (weight,))


# Layouts of weights that no table knows.


class Flat(nn.Module):
    """A matrix on channels kept as a flat list, and one for each degree in one op: features (n, 4, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.randn(18))
        self.matrices = nn.ParameterList([nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3))])

    def forward(self, x: Tensor) -> Tensor:
        both = self.flat.view(2, 3, 3)
        scalars = x[:, :1] @ (both[0] + self.matrices[0])
        return torch.cat([scalars, x[:, 1:] @ both[1].T + x[:, 1:] @ self.matrices[1]], dim=1)


class Basis(nn.Module):
    """A convolution of images (b, 2, h, w) whose kernel is expanded from isotropic rings."""

    def __init__(self, stride: int = 1, mode: str = "zeros") -> None:
        super().__init__()
        self.stride, self.mode = stride, mode
        self.rings = nn.Parameter(torch.randn(3, 2, 3))
        distance = (torch.arange(3)[:, None] - 1) ** 2 + (torch.arange(3) - 1) ** 2
        self.register_buffer("basis", torch.stack([distance == n for n in range(3)]).double())

    def kernel(self) -> Tensor:
        return torch.einsum("oin,nhw->oihw", self.rings, self.get_buffer("basis"))

    def forward(self, x: Tensor) -> Tensor:
        if self.mode != "zeros":
            return functional.conv2d(functional.pad(x, (1, 1, 1, 1), self.mode), self.kernel(), stride=self.stride)
        return functional.conv2d(x, self.kernel(), stride=self.stride, padding=1)


class OneHot(nn.Module):
    """A matrix for each kind of atom, chosen by a second argument."""

    def __init__(self, kinds: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kinds, 4, 4))

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        return torch.einsum("nk,koi,n...i->n...o", kind, self.weight, x)


class Swapped(nn.Linear):
    """Mixes the first of two feature axes: features (n, c, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.mT @ self.weight.T).mT


def site_for(op: nn.Module, argument: str, rho_in: Representation, rho_out: Representation, **changes: Any) -> Site:
    shape = (rho_out.dimension, rho_in.dimension, *changes.pop("kernel", ()))
    return Site("", argument, "linear", "", rho_in, rho_out, shape, **changes)


def layouts() -> dict[str, tuple[nn.Module, dict[str, Tensor], Site]]:
    flat, swapped, kinds = Flat(), Swapped(4, 2, bias=False), OneHot()
    rho = axes(GROUP, "v c", {"c": 4}), [axes(GROUP, "c v", {"c": count}) for count in (4, 2)]
    parts = irreps(GROUP, "3x0e", "ir_mul") + irreps(GROUP, "3x1o", "ir_mul")
    scalars = [trivial(parse_group("C4"), count) for count in (2, 3)]
    found: dict[str, tuple[nn.Module, dict[str, Tensor], Site]] = {
        "flat weights and matrices per degree": (
            flat,
            {"x": torch.randn(5, 4, 3)},
            site_for(flat, "x", parts, parts, axes_in=(-2, -1), axes_out=(-2, -1)),
        ),
        "channels on the first axis": (
            swapped,
            {"x": torch.randn(5, 4, 3)},
            site_for(swapped, "x", *rho[1], axes_in=(-2, -1), axes_out=(-2, -1)),
        ),
        "a matrix per kind": (
            kinds,
            {"x": torch.randn(6, 3, 4), "kind": torch.eye(3).repeat(2, 1)},
            site_for(kinds, "x", rho[0], rho[0], axes_in=(-2, -1), axes_out=(-2, -1)),
        ),
    }
    for stride, mode in ((1, "zeros"), (2, "zeros"), (2, "circular"), (1, "reflect")):
        basis = Basis(stride, mode)
        how = Convolution((3, 3), (stride, stride), (1, 1), (1, 1), mode, ((1, 0), (0, 1)))
        found[f"a kernel from a basis, stride {stride}, {mode}"] = (
            basis,
            {"x": torch.randn(2, 2, 8, 8)},
            site_for(basis, "x", *scalars, convolution=how, kernel=(3, 3), axes_in=(-3,), axes_out=(-3,)),
        )
    return {
        name: (op.double(), {k: v.double() for k, v in call.items()}, site) for name, (op, call, site) in found.items()
    }


LAYOUTS = list(layouts())


def dense_jacobian(op: nn.Module, matrix: Callable[[], Tensor]) -> Tensor:
    """Return d(matrix)/d(weights) by setting one weight at a time; shape (entries, weights)."""
    weights, columns = list(op.parameters()), []
    with torch.no_grad():
        kept = [weight.clone() for weight in weights]
        for weight in weights:
            weight.zero_()
        for weight in weights:
            for index in range(weight.numel()):
                weight.view(-1)[index] = 1
                columns.append(matrix().flatten())
                weight.view(-1)[index] = 0
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)
    return torch.stack(columns, dim=1)


def matrix_by_hand(name: str, op: Any) -> Tensor:
    """Return the matrix of a layout's op as its code says; for kinds those of the three kinds side by side."""
    if isinstance(op, Basis):
        return op.kernel()
    one, three = torch.ones(1, 1).double(), torch.eye(3).double()
    if isinstance(op, Swapped):
        return torch.kron(op.weight, three)
    if isinstance(op, OneHot):
        return torch.stack([torch.kron(three, weight) for weight in op.weight])
    both = op.flat.view(2, 3, 3)
    parts = (both[0] + op.matrices[0]).T, both[1] + op.matrices[1].T
    return torch.block_diag(torch.kron(one, parts[0]), torch.kron(three, parts[1]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_weights_folds_by_least_squares(name: str) -> None:
    op, call, site = layouts()[name]
    site = with_fold(site, op, [call], ())
    assert site.fold is not None, site.fold_note
    fold_map = fold_map_at(op, site)
    jacobian = dense_jacobian(op, lambda: matrix_by_hand(name, op))
    if isinstance(op, OneHot):  # the matrices of all kinds have to change alike
        jacobian = jacobian.reshape(3, -1, jacobian.shape[1])
        differences = (jacobian - jacobian.mean(0)).flatten(0, 1)
        _, sizes, directions = torch.linalg.svd(differences)
        allowed = directions[int((sizes > 1e-9).sum()) :].T
        jacobian = jacobian.mean(0) @ allowed
    weight = torch.randn(site.shape, dtype=torch.float64)
    change = torch.linalg.pinv(jacobian) @ weight.flatten()
    reference = (jacobian @ change).reshape(site.shape)
    change = allowed @ change if isinstance(op, OneHot) else change
    assert reference.norm() > 0.1
    assert torch.allclose(fold_map.project(weight), reference, atol=EXACT)
    found = fold_map.weight_change(weight)
    assert torch.allclose(torch.cat([part.flatten() for part in found.values()]), change, atol=EXACT)
    assert torch.allclose(fold_map.map_change(found), reference, atol=EXACT)
    assert fold_complaint(op, site, call, fold_map, torch.Generator().manual_seed(1)) == ""


class Square(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight**2


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_that_enter_squared_do_not_fold(name: str) -> None:
    op, call, site = layouts()[name]
    parametrize.register_parametrization(op, next(iter(dict(op.named_parameters()))), Square())
    site = with_fold(site, op, [call], ())
    assert site.fold is None
    assert "not linear in its weights" in site.fold_note


def test_codes_fold_for_kinds_that_were_not_seen() -> None:
    op, call, site = layouts()["a matrix per kind"]
    call["kind"] = torch.eye(3).double()[[0, 1, 0, 1, 0, 1]]
    site = with_fold(site, op, [call], ())
    assert site.fold_while == "every row of kind is a one-hot code"
    fold_map, generator = fold_map_at(op, site), torch.Generator()
    for kinds, right in ((call["kind"], True), (torch.eye(3)[[2] * 6], True), (2 * torch.eye(3)[[2] * 6], False)):
        complaint = fold_complaint(op, site, {**call, "kind": kinds.double()}, fold_map, generator)
        assert (complaint == "") == right, complaint


def test_a_few_rows_that_are_no_codes_do_not_fold() -> None:
    """What is learned of a kind repeats itself in a batch as well, and changes while it is trained."""
    op, call, site = layouts()["a matrix per kind"]
    call["kind"] = torch.randn(2, 3, dtype=torch.float64)[[0, 1, 0, 1, 0, 1]]
    site = with_fold(site, op, [call], ())
    assert site.fold is None
    assert "no change of its weights changes its linear map alone" in site.fold_note


class Sum(nn.Module):
    """Two features with a matrix each, or with one for both."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        self.shared = shared

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ self.left.T + y @ (self.left if self.shared else self.right).T


@pytest.mark.parametrize("shared", [False, True])
def test_a_change_may_not_act_on_anything_else(shared: bool) -> None:
    op, rho = Sum(shared).double(), axes(GROUP, "v c", {"c": 4})
    site = site_for(op, "x", rho, rho, axes_in=(-2, -1), axes_out=(-2, -1))
    call = {name: torch.randn(9, 3, 4, dtype=torch.float64) for name in ("x", "y")}
    site = with_fold(site, op, [call], ())
    assert (site.fold is None) == shared
    assert shared or site.fold["parameters"] == ["left"]  # type: ignore[index]


class Times(nn.Linear):
    def forward(self, x: Tensor, factor: float) -> Tensor:
        return factor * super().forward(x)


@pytest.mark.parametrize("second", [1.5, 2.0])
def test_a_number_has_to_be_the_same_in_every_call(second: float) -> None:
    op, rho = Times(4, 4, bias=False).double(), axes(GROUP, "v c", {"c": 4})
    site = site_for(op, "x", rho, rho, axes_in=(-2, -1), axes_out=(-2, -1))
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    site = with_fold(site, op, [{"x": x, "factor": factor} for factor in (1.5, second)], ())
    words = "factor acts as on the sample batch" if second == 1.5 else ""
    assert (site.fold is not None, site.fold_while) == (second == 1.5, words)


# Ops of a network, found by measurement.

VECTORS, MIXED = "1x1o", "1x1o+1x2e"


class Net(nn.Module):
    """Features (n, d, 3) to (n, d): two layers on channels and a non-linearity between."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h * h.norm(dim=-2, keepdim=True)).squeeze(-1)


class Normalised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight / self.weight.norm())


class Transposed(nn.Module):
    """Holds its matrix the other way round, as some libraries do."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class WithPositions(nn.Linear):
    """Also multiplies positions by its matrix, which folding would change as well."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().forward(x + positions)


class Positioned(Net):
    """Hands its input to the second layer once more."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), x).squeeze(-1)


def plain(n_in: int, n_out: int) -> nn.Module:
    return nn.Linear(n_in, n_out, bias=False)


def rho(labels: str) -> Representation:
    return irreps(GROUP, labels)


def found(net: nn.Module, labels: str = VECTORS) -> tuple[Plan, Tensor]:
    """Plan of a network by measurement alone, and the features it was made on."""
    x = torch.randn(5, rho(labels).dimension, 3, dtype=torch.float64)

    def act(g: Tensor, x: Tensor) -> Tensor:
        return rho(labels).action(g).apply(x.mT)[0].mT

    def act_output(g: Tensor, y: Tensor) -> Tensor:
        return rho(labels).action(g).apply(y)[0]

    return surgeon.find(net, "O3", x, act=act, act_output=act_output, adapters={}), x


@pytest.mark.parametrize(
    ("labels", "note"), [(VECTORS, ""), (MIXED, "its weights reach 9 of 18 intertwiner dimensions")]
)
def test_the_mean_over_components_is_folded(labels: str, note: str) -> None:
    net = Net(plain(3, 3), plain(3, 1)).double()
    plan, x = found(net, labels)
    assert [(site.name, site.fold is not None) for site in plan.sites] == [("first", True), ("second", True)]
    assert plan.sites[0].fold_note == note
    before = net.first.get_parameter("weight").detach().clone()
    relaxation = surgeon.relax(net, plan, dense=True, mode="fold", init_scale=1.0)
    relaxation.set_theta(0.0, 1.0)
    weight = branches_of(net)["first.input"].weight.detach()
    d = rho(labels).dimension
    expected = weight.reshape(d, 3, d, 3).diagonal(dim1=0, dim2=2).mean(-1)
    with relaxation.clean():
        clean = net(x).detach()
    surgeon.strip(relaxation)
    assert torch.allclose(net.first.get_parameter("weight"), before + expected, atol=1e-14)
    assert torch.allclose(net(x), clean, atol=1e-12)
    assert not torch.allclose(expected, torch.zeros(()).double(), atol=1e-3)


@pytest.mark.parametrize(("make", "folds"), [(Transposed, True), (Normalised, False)])
def test_a_measured_op_folds_if_it_is_linear_in_its_weights(make: Callable[[int, int], nn.Module], folds: bool) -> None:
    plan, _ = found(Net(make(3, 3), plain(3, 1)).double())
    assert {site.name: site.fold is not None for site in plan.sites} == {"first": folds, "second": True}


def test_a_matrix_that_multiplies_something_else_too_is_not_folded() -> None:
    plan, _ = found(Positioned(plain(3, 3), WithPositions(3, 1, bias=False)).double())
    assert [(site.name, site.fold is None) for site in plan.sites] == [("first", False), ("second", True)]


def test_tied_weights_are_not_folded() -> None:
    net = Net(plain(3, 3), nn.Sequential(plain(3, 3), plain(3, 1))).double()
    net.second[0].weight = net.first.weight
    plan, _ = found(net)
    notes = {site.name: site.fold_note for site in plan.sites if site.fold is None}
    assert notes.keys() == {"first", "second.0"}
    assert all("tied to" in note for note in notes.values())


class Raw(nn.Module):
    """Multiplies channels by a matrix of its own in the middle of a forward that is not linear."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.weight, self.shared = nn.Parameter(torch.randn(3, 3)), shared

    def forward(self, x: Tensor) -> Tensor:
        y = x @ (2 * self.weight)
        y = y * y.norm(dim=-2, keepdim=True)
        return (y * self.weight.norm() if self.shared else y).sum(-1)


@pytest.mark.parametrize("shared", [False, True])
def test_an_op_inside_a_forward_folds_if_nothing_else_uses_its_weights(shared: bool) -> None:
    net = Raw(shared).double()
    plan, x = found(net)
    (site,) = plan.sites
    assert site.node is not None
    assert (site.fold is None) == shared
    if shared:
        assert "changed weights do not act" in site.fold_note
        return
    weight = net.weight.detach().clone()
    relaxation = surgeon.relax(net, plan, dense=True, mode="fold", init_scale=1.0)
    relaxation.set_theta(0.0, 1.0)
    (branch,) = branches_of(net).values()
    mean = branch.weight.detach().reshape(3, 3, 3, 3).diagonal(dim1=0, dim2=2).mean(-1)
    with relaxation.clean():
        clean = net(x).detach()
    surgeon.strip(relaxation)
    assert torch.allclose(net.weight, weight + mean.T / 2, atol=EXACT)
    assert torch.allclose(net(x), clean, atol=1e-10)


@pytest.mark.parametrize(
    ("fold", "words"),
    [
        ({"parameters": ["matrix"], "shape": [1, 3, 3]}, "into 'matrix' of Linear"),
        ({"parameters": ["weight"], "shape": [1, 5, 3]}, r"features of shape \(1, 5, 3\)"),
        ({"paths": [1, 2]}, "'parameters'"),
    ],
)
def test_a_plan_for_another_op_is_refused(fold: dict[str, Any], words: str) -> None:
    net = Net(plain(3, 3), plain(3, 1)).double()
    plan, _ = found(net)
    other = dataclasses.replace(plan.sites[0], fold=fold)
    with pytest.raises(PlanError, match=f"expected 'first.*{words}.*set fold to null"):
        surgeon.relax(net, dataclasses.replace(plan, sites=(other,)), dense=True, mode="fold")
    assert not branches_of(net)
