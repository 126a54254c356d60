"""SOAP and Muon on blocks, and any other optimiser on views of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon import optim
from surgeon.algebra.equivariance import relative_difference
from surgeon.errors import UsageError
from surgeon.optim import preconditioned
from surgeon.optim.adam import MatrixOptimizer
from surgeon.support.e3nn_compat import import_e3nn
from surgeon.support.modes import default_dtype

pytestmark = pytest.mark.e3nn
o3 = import_e3nn()

IRREPS = "4x0e+4x1o"
MAKERS: dict[str, Callable[..., MatrixOptimizer]] = {"soap": optim.soap, "muon": optim.muon}


class Net(nn.Module):
    """Two e3nn layers with a gate, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = o3.Linear("4x0e+4x1o", IRREPS, biases=True), o3.Linear(IRREPS, "4x1o")

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x))
        return result


def made(dtype: torch.dtype = torch.float64) -> tuple[Net, Tensor, Tensor]:
    with default_dtype(dtype):
        return Net(), torch.randn(40, 16, dtype=dtype), torch.randn(40, 12, dtype=dtype)


def train(net: nn.Module, optimizer: Any, x: Tensor, y: Tensor, steps: int, before: Callable[[], Any] = int) -> None:
    for _ in range(steps):
        net.zero_grad()
        (net(x) - y).square().mean().backward()
        before()
        optimizer.step()


def states_equal(one: Any, other: Any) -> bool:
    left, right = (each.state_dict()["state"] for each in (one, other))
    return left.keys() == right.keys() and all(
        left[n].keys() == right[n].keys() and all(torch.equal(left[n][k], right[n][k]) for k in left[n]) for n in left
    )


def test_the_identity_preconditioner_is_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = made()
    twin = copy.deepcopy(net)
    with monkeypatch.context() as patch:
        patch.setattr(preconditioned, "first_basis", lambda covariance: torch.eye(len(covariance)).to(covariance))
        train(net, optim.soap(net, lr=1e-2, weight_decay=0.1, every=1000), x, y, 12)
    train(twin, torch.optim.AdamW(twin.parameters(), 1e-2, (0.9, 0.95), weight_decay=0.1), x, y, 12)
    torch.testing.assert_close(net(x), twin(x), rtol=1e-11, atol=1e-11)
    other = made()[0]
    other.load_state_dict(Net().double().state_dict())
    optimizer = optim.soap(other, lr=1e-2, largest=1)  # no side is small enough
    train(other, optimizer, x, y, 2)
    assert {slot for state in optimizer.state.values() for slot in state} == {"step", "exp_avg", "exp_avg_sq"}


def in_another_basis(net: Net) -> Net:
    """The same function, with the copies of each irrep between the layers in another orthonormal basis."""
    turned = copy.deepcopy(net)
    with torch.no_grad():
        turned.first.bias.zero_()
        net.first.bias.zero_()
        for first, second in ((0, None), (1, 0)):
            basis = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
            before = turned.first.weight.view(2, 4, 4)[first]
            before.copy_(before @ basis)
            if second is not None:
                after = turned.second.weight.view(4, 4)
                after.copy_(basis.T @ after)
    turned.first.bias.requires_grad_(False)
    net.first.bias.requires_grad_(False)
    return turned


@pytest.mark.parametrize("kind", ["soap", "muon", "adam"])
def test_an_update_in_another_basis_of_the_copies_is_the_same_update(kind: str) -> None:
    net, x, y = made()
    turned = in_another_basis(net)
    torch.testing.assert_close(net(x), turned(x), rtol=1e-12, atol=1e-12)
    for each in (net, turned):
        optimizer = torch.optim.AdamW(each.parameters(), 1e-2) if kind == "adam" else MAKERS[kind](each, lr=1e-2)
        for group in optimizer.param_groups:
            # In its own basis the first gradient is diagonal; what rounding leaves beside it is divided by this.
            group["eps"] = 1e-3
            if kind == "soap":
                group["every"] = 2  # refreshes are covered
        train(each, optimizer, x, y, 7)
    difference = relative_difference(net(x), turned(x))
    assert (difference < 1e-11) == (kind != "adam"), difference
    if kind == "adam":
        assert difference > 1e-4


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_resumed_optimizer_goes_on_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    net = nn.Linear(6, 5, dtype=dtype)
    x, y = torch.randn(20, 6, dtype=dtype), torch.randn(20, 5, dtype=dtype)
    optimizer = MAKERS[kind](net, lr=1e-2)
    train(net, optimizer, x, y, 14)
    resumed_net = copy.deepcopy(net)
    resumed = MAKERS[kind](resumed_net, lr=5.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert states_equal(optimizer, resumed)
    for one, its in ((net, optimizer), (resumed_net, resumed)):
        train(one, its, x, y, 13)
    assert torch.equal(net.weight, resumed_net.weight)
    assert states_equal(optimizer, resumed)
    if dtype == torch.bfloat16:
        floating = [v for state in resumed.state.values() for v in state.values() if v.is_floating_point()]
        assert {value.dtype for value in floating} == {torch.float32}


def test_means_and_squares_stay_with_their_direction_when_the_basis_is_reordered() -> None:
    """The second direction overtakes the first: with squares left behind the update would be off by their ratio."""
    weight = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    optimizer = optim.soap(weight, lr=0.0, every=4)
    for sizes in [(3.0, 1.0)] * 2 + [(0.1, 30.0)] * 2:
        weight.weight.grad = torch.diag(torch.tensor(sizes, dtype=torch.float64))
        optimizer.step()
    state = optimizer.state[weight.weight]
    assert torch.equal(state["left_basis_0"].abs().round(), torch.eye(2, dtype=torch.float64).flip(0))
    left, right = state["left_basis_0"], state["right_basis_0"]
    mean = torch.tensor([3.0, 1.0]) * 0.1 * (0.9**3 + 0.9**2) + torch.tensor([0.1, 30.0]) * 0.1 * (0.9 + 1)
    torch.testing.assert_close(left @ state["exp_avg"] @ right.mT, torch.diag(mean.double()))
    diagonal = state["exp_avg_sq"].diagonal()
    assert diagonal[0] > 10 * diagonal[1] > 0
    before = state["exp_avg_sq"].clone()
    weight.weight.grad = torch.zeros(2, 2, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(state["exp_avg_sq"], 0.95 * before)


def test_sides_above_the_limit_keep_their_basis() -> None:
    net = nn.Linear(7, 3, bias=False)
    optimizer = optim.soap(net, largest=5)
    train(net, optimizer, torch.randn(9, 7), torch.randn(9, 3), 12)
    slots = set(optimizer.state[net.weight])
    assert {"left_0", "left_basis_0"} <= slots
    assert not {"right_0", "right_basis_0"} & slots


@pytest.mark.parametrize("kind", MAKERS)
def test_complex_weights_are_moved_by_adamw(kind: str) -> None:
    net = nn.Linear(2, 3, dtype=torch.complex128)
    twin = copy.deepcopy(net)
    for each, optimizer in (
        (net, MAKERS[kind](net, lr=1e-2)),
        (twin, torch.optim.AdamW(twin.parameters(), 1e-2, (0.9, 0.95), weight_decay=0.0)),
    ):
        for weight in each.parameters():
            weight.grad = weight.detach() * 2
        optimizer.step()
    torch.testing.assert_close(net.weight, twin.weight)


def test_a_block_too_large_beside_one_that_is_not_is_moved_by_adam() -> None:
    net = o3.Linear("2x0e+6x1o", "2x0e+6x1o")
    twin, x, y = copy.deepcopy(net), torch.randn(9, 20), torch.randn(9, 20)
    train(net, optim.soap(net, lr=1e-2, largest=4), x, y, 1)
    train(twin, torch.optim.AdamW(twin.parameters(), 1e-2, (0.9, 0.95), weight_decay=0.0), x, y, 1)
    torch.testing.assert_close(net.weight[4:], twin.weight[4:])
    assert not torch.allclose(net.weight[:4], twin.weight[:4])


def test_a_basis_is_begun_by_the_first_gradient_that_is_not_zero() -> None:
    net = nn.Linear(3, 3, bias=False)
    optimizer = optim.soap(net, lr=0.1)
    net.weight.grad = torch.zeros(3, 3)
    optimizer.step()
    assert "left_0" not in optimizer.state[net.weight]
    net.weight.grad = torch.randn(3, 3)
    optimizer.step()
    assert "left_0" in optimizer.state[net.weight]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_weight_without_gradient_is_skipped_and_a_tied_one_is_moved_once(kind: str) -> None:
    used, unused = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    net = nn.ModuleDict({"used": used, "again": used, "unused": unused})
    optimizer, before = MAKERS[kind](net, lr=0.1), unused.weight.detach().clone()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    used(used(torch.ones(2, 3))).sum().backward()
    optimizer.step()
    assert torch.equal(unused.weight, before)
    assert list(optimizer.state) == [used.weight]


@pytest.mark.parametrize("kind", MAKERS)
def test_blocks_of_one_size_do_not_share_their_steps(kind: str) -> None:
    """Two matrices and numbers beside them, one of which joins later, move as each does by itself."""

    def moved(names: str) -> dict[str, Tensor]:
        net = nn.ModuleDict({name: nn.Linear(4, 3, bias=True, dtype=torch.float64) for name in names})
        optimizer = MAKERS[kind](net, lr=0.1, betas=(0.9, 0.95))
        for name, each in net.items():
            values = torch.Generator().manual_seed(ord(name))
            for step in range(14):
                for weight in each.parameters():
                    gradient = torch.randn(weight.shape, generator=values, dtype=torch.float64)
                    gradients.setdefault((name, step), []).append(gradient)
        with torch.no_grad():
            for weight in net.parameters():
                weight.zero_()
        for step in range(14):
            for name, each in net.items():
                for weight, gradient in zip(each.parameters(), gradients[name, step], strict=False):
                    weight.grad = gradient if name == "a" or step > 4 else None
            optimizer.step()
        return {name: value.detach() for name, value in net.named_parameters()}

    gradients: dict[tuple[str, int], list[Tensor]] = {}
    together, alone = moved("ab"), {**moved("a"), **moved("b")}
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-12, atol=1e-12)
    assert not torch.equal(together["a.weight"], together["b.weight"])


def test_muon_is_that_of_torch_on_a_plain_matrix() -> None:
    """Whose iteration runs in bfloat16: two or three digits."""
    net, other = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
    other.load_state_dict(net.state_dict())
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    settings = {"lr": 1e-2, "weight_decay": 0.0, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    x, y = torch.randn(9, 4), torch.randn(9, 6)
    start = net.weight.detach().clone()
    train(net, optim.muon(net, lr=1e-2), x, y, 3)
    train(other, torch.optim.Muon(other.parameters(), **settings), x, y, 3)
    moved = float((net.weight - start).detach().norm())
    assert float((net.weight - other.weight).detach().norm()) < 0.03 * moved


def test_any_optimizer_works_on_views() -> None:
    net, x, y = made()
    twin = copy.deepcopy(net)
    views = optim.MatrixViews(optim.find_blocks(net))
    assert [tuple(matrix.shape) for matrix in views.matrices] == [(4, 4)] * 3
    assert [tuple(each.shape) for each in views.rest] == [(4,)]
    assert views.left_over == []
    train(net, torch.optim.SGD(views.matrices, lr=0.1), x, y, 3, views.take_gradients)
    twin.first.bias.requires_grad_(False)
    train(twin, torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1), x, y, 3)
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    for parameter in net.parameters():
        parameter.grad = None
    views.take_gradients()
    assert all(matrix.grad is None for matrix in views.matrices)


def last_loss(kind: str, rate: float) -> float:
    """Train a layer to reach another one on features whose channels are correlated."""
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        net, aim = o3.Linear("8x1o", "8x1o"), o3.Linear("8x1o", "8x1o")
    scale = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q * torch.logspace(0, -3, 8, dtype=torch.float64)
    x = torch.einsum("cd,ndx->ncx", scale, torch.randn(200, 8, 3, dtype=torch.float64)).flatten(1)
    y = aim(x).detach()
    optimizer = torch.optim.AdamW(net.parameters(), rate) if kind == "adamw" else optim.soap(net, lr=rate)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_correlated_channels_are_no_obstacle_for_soap() -> None:
    """Each at the best of its rates; the ratio was 60 to 100 with three seeds."""
    best = {kind: min(last_loss(kind, rate) for rate in (0.03, 0.1, 0.3)) for kind in ("soap", "adamw")}
    assert best["soap"] < best["adamw"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": -1.0}, "learning rate"),
        ({"lr": "x"}, "learning rate, eps and decay of at least 0, got 'x'"),
        ({"lr": float("inf")}, "finite learning rate"),
        ({"weight_decay": None}, "decay of at least 0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": 0.9}, "two betas"),
        ({"every": 0}, "every and largest"),
        ({"largest": 2.5}, "whole numbers"),
    ],
)
def test_unusable_settings_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        optim.Soap(nn.Linear(2, 2).parameters(), **given)


def test_without_blocks_it_says_how_to_get_them() -> None:
    net = nn.Linear(2, 2)
    net(torch.ones(1, 2)).sum().backward()
    with pytest.raises(UsageError, match=r"surgeon.optim.soap\(model\)"):
        optim.Soap(net.parameters()).step()
