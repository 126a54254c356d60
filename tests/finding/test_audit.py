"""What is said of every parameter, and that one op which cannot be understood never ends an inspection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import irreps
from surgeon.errors import NotASymmetryError, NothingToRelaxError
from surgeon.registry import installed_adapters
from tests.nets import o3


@pytest.mark.parametrize(
    "hidden", ["4x0e+0x1o", "0x0e+4x1o", "2x0e+0x2e+2x1o"], ids=lambda labels: labels.replace("+", " ")
)
def test_blocks_of_multiplicity_0_fold_like_none(hidden: str) -> None:
    first, second = o3.Linear("2x0e+2x1o", hidden), o3.Linear(hidden, "2x0e+2x1o")
    model, x = nn.Sequential(first, second), torch.randn(5, 8)
    plan = surgeon.find(model, "O3", x)
    assert [bool(site.fold) for site in plan.sites] == [True, True]
    relaxation = surgeon.relax(model, plan, dense=True, mode="fold", init_scale=1.0)
    relaxation.set_theta(0.0, 1.0)
    with relaxation.clean():
        clean = model(x).detach()
    surgeon.strip(relaxation)
    assert torch.allclose(model(x).detach(), clean, atol=1e-5)


def test_a_weight_in_an_op_that_is_not_understood_says_which_and_where() -> None:
    class Powers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.powers = nn.Linear(4, 4, bias=False), nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x.mT).norm(dim=1) ** self.powers

    plan = surgeon.find(Powers(), "SO3", torch.randn(5, 4, 3), act=lambda g, x: x @ g.T, act_output=lambda g, y: y)
    (entry,) = (entry for entry in plan.audit if entry.parameter == "powers")
    assert entry.coverage == "unexplained"
    assert "it meets an activation in aten.pow.Tensor_Tensor in the forward of the model itself, of" in entry.reason


def test_an_adapter_that_fails_at_one_op_costs_that_op_only() -> None:
    real = installed_adapters()["e3nn"]
    model = nn.Sequential(*(o3.Linear("2x0e+2x1o", "2x0e+2x1o") for _ in range(3)))

    class Failing:
        name, groups = real.name, real.groups

        def __getattr__(self, called: str) -> Any:
            def stumble(module: nn.Module, *args: Any) -> Any:
                if called == "propose" and module is model[1]:
                    raise KeyError("no such irrep")
                return getattr(real, called)(module, *args)

            return stumble

    plan = surgeon.find(model, "O3", torch.randn(4, 8), adapters={"e3nn": Failing()})  # type: ignore[dict-item]
    assert "1: KeyError of the adapter 'e3nn' ('no such irrep')" in plan.notes
    assert [site.name for site in plan.sites if site.fold] == ["0", "2"]


def turn(g: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return x @ g.T.to(x)


def audited(model: nn.Module, group: str = "O3", x: Tensor | None = None, **options: Any) -> surgeon.Plan:
    options = {"act": turn, "act_output": lambda g, y: y, **options}
    return surgeon.find(model, group, torch.randn(9, 3) if x is None else x, **options)


def coverage(plan: surgeon.Plan) -> dict[str, str]:
    return {entry.parameter: entry.coverage for entry in plan.audit}


class ByDegree(nn.Module):
    """One matrix per degree, from a dict to a dict."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w = nn.ParameterDict({key: nn.Parameter(torch.randn(channels, channels) / 2) for key in "01"})

    def forward(self, h: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value @ self.w[key] for key, value in h.items()}


class TwoDegrees(nn.Module):
    """Scalars and vectors; the head reads both, or the scalars only."""

    def __init__(self, read: str) -> None:
        super().__init__()
        self.lift, self.first, self.last, self.read = nn.Linear(1, 4, bias=False), ByDegree(4), ByDegree(4), read

    def forward(self, x: Tensor) -> Tensor:
        v = self.lift(x[..., None])
        h = self.first({"0": v.square().sum(1), "1": v})
        gated = h["1"] * h["0"].tanh()[:, None]
        h = self.last({"0": h["0"] + h["1"].square().sum(1), "1": gated})
        vectors = h["1"] if self.read == "both" else torch.zeros(())
        return h["0"].sum(-1) + vectors.square().sum()


@pytest.mark.parametrize(("read", "last"), [("both", ("site", "site")), ("scalars", ("invariant", "no effect"))])
def test_one_degree_of_a_dict_that_reaches_nothing_is_no_site(read: str, last: tuple[str, str]) -> None:
    plan = audited(TwoDegrees(read))
    assert [site.key for site in plan.sites] == ["lift.input", "first.h.1", "last.h.1"][: 3 if read == "both" else 2]
    found = coverage(plan)
    assert (found["last.w.0"], found["last.w.1"]) == last
    assert found["first.w.1"] == "site"


class Loud(nn.Module):
    """Between two layers the scalars are larger than the vectors by a factor."""

    rho = "2x0e+2x1o"

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.middle, self.last = (o3.Linear(self.rho, self.rho) for _ in range(3))
        self.register_buffer("scale", torch.cat([torch.full((2,), scale), torch.ones(6)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x) * self.scale) / self.scale)


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
@pytest.mark.parametrize("annotated", [True, False])
def test_large_scalars_do_not_hide_how_small_vectors_turn(scale: float, annotated: bool) -> None:
    rho = irreps(parse_group("O3"), Loud.rho)

    def act(g: Tensor, x: Tensor) -> Tensor:
        return rho.action(g).to(x).apply(x)[0]

    options = {} if annotated else {"adapters": {}}
    plan = audited(Loud(scale), x=torch.randn(16, 8), act=act, act_output=act, **options)
    assert [site.name for site in plan.sites] == ["first", "middle", "last"]
    assert {site.source for site in plan.sites} == {"both" if annotated else "measurement"}
    assert {site.rho_in.irreps for site in plan.sites} == {Loud.rho}


class Mislabelled(nn.Module):
    """A layer that calls its features vectors, while all it receives are invariants: numbers and their negatives."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.layer = nn.Linear(1, 4, bias=False), o3.Linear("2x1o", "2x1o")

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.mix(x[..., None])
        return vectors.square().sum((1, 2)) + self.layer(vectors.square().sum(1) @ torch.ones(4, 6).to(x)).sum(-1)


def test_no_verified_annotation_goes_without_a_note() -> None:
    plan = audited(Mislabelled())
    assert [site.name for site in plan.sites] == ["mix"]
    assert coverage(plan)["layer.weight"] == "invariant"
    (note,) = plan.notes
    assert note.startswith("layer: annotated as 2x1o (mul_ir) -> 2x1o (mul_ir), which its op satisfies")
    assert note.endswith("6 x trivial -> 6 x trivial; no branch is attached")


class Branching(nn.Module):
    """Vectors, and beside them weights that are equivariant in a way that this batch, or nothing, can tell."""

    def __init__(self, beside: Callable[[Tensor, nn.Module], Tensor], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.mix, self.inner, self.beside = nn.Linear(1, 4, bias=False), inner or nn.Linear(4, 4, bias=False), beside

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.mix(x[..., None])
        return vectors.square().sum((1, 2)) + self.beside(vectors, self.inner)


class Scale(nn.Module):
    """Beside a layer it has weights that multiply features one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.weight = nn.Linear(4, 4, bias=False), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x * self.weight


class Dense(nn.Module):
    """Mixes the components of vectors: with some weights a rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(3, 3))[0])

    def forward(self, x: Tensor) -> Tensor:
        return (x.mT @ self.weight).mT


def cubed(v: Tensor, inner: nn.Module) -> Tensor:
    """Features to which no representation fits in this basis: degrees 1 and 3 in every coordinate."""
    return inner(v.square().sum((1, 2), keepdim=True) * v + v**3).square().sum((1, 2)) * 0.0


@pytest.mark.parametrize(
    ("beside", "inner", "found", "words"),
    [
        (lambda v, f: f(0 * v).sum((1, 2)), nn.Linear(4, 4, bias=False), "no effect", "leaves every output"),
        (lambda v, f: f(0 * v).sum((1, 2)), Scale(), "no effect", "leaves every output"),
        (lambda v, f: f(v).square().sum((1, 2)), Scale(), "not linear", "only scales"),
        (lambda v, f: f(v).square().sum((1, 2)), Dense(), "not equivariant", "with other weights"),
        (cubed, nn.Linear(4, 4, bias=False), "unexplained", "no structured representation fits"),
    ],
)
def test_weights_are_called_not_equivariant_only_if_they_were_seen_to_be(
    beside: Callable[[Tensor, nn.Module], Tensor], inner: nn.Module, found: str, words: str
) -> None:
    plan = audited(Branching(beside, inner))
    (entry,) = (entry for entry in plan.audit if entry.parameter == "inner.weight")
    assert (entry.coverage, words in entry.reason) == (found, True), entry


def test_a_bias_shares_the_reason_of_its_weights() -> None:
    plan = audited(Branching(cubed, nn.Linear(4, 4)))
    weight, bias = (entry for entry in plan.audit if entry.parameter.startswith("inner."))
    assert (bias.coverage, bias.reason) == (weight.coverage, weight.reason)
    assert bias.reason.startswith("how its input transforms is not known")


@pytest.mark.parametrize(("read", "words"), [(4, "by design"), (3, "not checked for 17% of their weights")])
def test_what_is_0_on_the_batch_is_called_so_by_design_only_if_weights_read_it(read: int, words: str) -> None:
    class Last(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[..., -read:])

    class Dying(Invariants):
        def __init__(self) -> None:
            super().__init__()
            self.last = Last(read, 1)
            with torch.no_grad():
                self.first.weight[0], self.first.bias[:] = 0.0, torch.tensor([-5.0, 5.0, 5.0, 5.0])

        def forward(self, x: Tensor) -> Tensor:
            distances = (x[:, None] - x[None]).norm(dim=-1).sort().values[:, 1:5]
            return self.last(self.first(distances).relu())

    with pytest.raises(NothingToRelaxError, match=words) as caught:
        audited(Dying())
    assert ("by design" in str(caught.value)) == (read == 4)


class Untraceable(nn.Module):
    """Its forward cannot be traced; what keeps it from being relaxed is another thing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if bool(x.isfinite().all()) else x


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        (cubed, "no structured representation fits"),
        (lambda v, f: f(0 * v).sum((1, 2)), "leaves every output as it is, to the bit"),
    ],
)
def test_the_reason_is_the_true_one_not_that_of_a_later_attempt(
    beside: Callable[[Tensor, nn.Module], Tensor], words: str
) -> None:
    plan = audited(Branching(beside, Untraceable()))
    (entry,) = (entry for entry in plan.audit if entry.parameter == "inner.weight")
    assert words in entry.reason
    assert "trac" not in entry.reason


@pytest.mark.parametrize("fails", [True, False])
def test_an_action_without_a_float64_run_is_not_called_no_action(fails: bool) -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known, self.other = o3.Linear("1x1o", "4x1o"), nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float64:
                raise NotImplementedError("no kernel for this dtype")
            h = self.other(self.known(x).unflatten(-1, (4, 3)).mT)
            return h.square().sum((1, 2))

    options = {} if fails else {"act": None, "act_output": None}
    plan = audited(Single(), **options)
    (entry,) = (entry for entry in plan.audit if entry.parameter == "other.weight")
    assert ("there is no action" in entry.reason) != fails
    assert ("runs in float64" in entry.reason) == fails


class Invariants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        distances = (x[:, None] - x[None]).norm(dim=-1).sort().values[:, 1:5]
        return self.last(self.first(distances).tanh())


@pytest.mark.parametrize(
    ("model", "group", "error", "words"),
    [
        (Invariants, "O3", NothingToRelaxError, "so by design, all linear maps that it trains and uses act on"),
        (
            lambda: nn.Sequential(Cubing()),
            "O3",
            NothingToRelaxError,
            "not understood, 100% of its parameters are unexpl",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 3, bias=False), Squares()),
            "O3",
            NotASymmetryError,
            "choose a smaller group",
        ),
        (lambda: DenseSeen(), "O3", NothingToRelaxError, "O3 is not the group of this model, 100% of its parameters"),
    ],
)
def test_a_refusal_carries_the_audit_and_says_which_case_it_is(
    model: Callable[[], nn.Module], group: str, error: type[Exception], words: str
) -> None:
    built = model()
    with pytest.raises(error, match=words) as caught:
        audited(built, group)
    plan = caught.value.plan  # type: ignore[attr-defined]
    assert plan.sites == ()
    assert [entry.parameter for entry in plan.audit] == [name for name, _ in built.named_parameters()]


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(-1)


class Cubing(nn.Module):
    """Weights on features that are no representation; the output does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        v = x[..., None].expand(-1, -1, 4)
        return x.square().sum(-1) + cubed(v, self.mix)


class DenseSeen(nn.Module):
    """A rotation that training would change, seen through norms."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Dense()

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x[..., None]).square().sum((1, 2))
