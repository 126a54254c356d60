"""Loading is strict in keys, shapes, ties and dtypes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError
from surgeon.opening.loading import load_into
from tests import nets


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_a_fitting_file_is_loaded() -> None:
    source, model = nn.Linear(3, 2), nn.Linear(3, 2)
    assert not same(state(source), state(model))
    load_into(model, source.state_dict(), "a.pt")
    assert same(state(source), state(model))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("2.bias"), r"missing from the file: 1 \(2.bias\)"),
        (lambda t: t.update(x=torch.ones(1)), r"unknown to the model: 1 \(x\)"),
        (lambda t: [t.pop(key) for key in list(t)], r"missing from the file: 4 \(0.weight, 0.bias, 2.weight, ...\)"),
        (lambda t: t.update({"0.weight": torch.ones(9, 9)}), r"0.weight is \(9, 9\) in the file and \(4, 3\)"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(change: Any, words: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    tensors = {key: value.double() + 1 for key, value in model.state_dict().items()}
    change(tensors)
    before = state(model)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_into(model, tensors, "a.pt")
    assert "a.pt" in str(caught.value)
    assert same(state(model), before)
    assert model[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("stored", "fits"), [("running_mean", True), ("weight", False), ("running_mean, of another size", False)]
)
def test_only_where_all_parameters_fit_only_buffers_are_missing(stored: str, fits: bool) -> None:
    name, model = stored.partition(",")[0], nn.BatchNorm1d(3)
    tensors = state(nn.BatchNorm1d(3) if name == stored else nn.BatchNorm1d(4))
    tensors["other"] = tensors.pop(name)
    with pytest.raises(CheckpointError) as caught:
        load_into(model, tensors, "a.pt")
    assert ("only buffers are missing" in str(caught.value)) == fits
    assert ("build the model with the settings" in str(caught.value)) != fits


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_model_takes_the_dtype_of_the_file(dtype: torch.dtype) -> None:
    source, model = nn.BatchNorm1d(3).to(dtype), nn.BatchNorm1d(3)
    model.register_buffer("own", torch.ones(1), persistent=False)
    load_into(model, source.state_dict(), "a.pt")
    assert model.weight.dtype == model.own.dtype == dtype
    assert model.num_batches_tracked is not None
    assert model.num_batches_tracked.dtype == torch.long
    assert isinstance(model.weight, nn.Parameter)


def test_mixed_dtypes_are_taken_one_by_one() -> None:
    model = nn.Linear(3, 2)
    tensors = {"weight": torch.randn(2, 3, dtype=torch.float64), "bias": torch.randn(2, dtype=torch.bfloat16)}
    load_into(model, tensors, "a.pt")
    assert same(state(model), tensors)
    assert [value.dtype for value in model.state_dict().values()] == [torch.float64, torch.bfloat16]


def test_complex_parameters_stay_complex() -> None:
    model = nn.ParameterDict({"c": torch.ones(2, dtype=torch.cfloat), "x": torch.ones(2)})
    load_into(model, {"c": torch.full((2,), 2j), "x": torch.ones(2, dtype=torch.float64)}, "a.pt")
    assert model["c"].dtype == torch.complex64
    assert model["x"].dtype == torch.float64


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


def test_tied_weights_stay_tied_and_must_agree() -> None:
    model, weight = Tied(), torch.randn(3, 3, dtype=torch.float64)
    load_into(model, {"first.weight": weight, "second.weight": weight.clone()}, "a.pt")
    assert model.first.weight is model.second.weight
    assert torch.equal(model.first.weight, weight)
    with pytest.raises(CheckpointError, match="uses one tensor as first.weight and second.weight, but they differ"):
        load_into(model, {"first.weight": weight, "second.weight": weight + 1}, "a.pt")
    assert torch.equal(model.first.weight, weight)


def test_zero_size_tensors_are_never_taken_for_ties() -> None:
    model = nn.ParameterDict({"a": torch.ones(0), "b": torch.ones(0), "c": torch.ones(1)})
    load_into(model, {"a": torch.ones(0), "b": torch.ones(0), "c": torch.zeros(1)}, "a.pt")
    assert float(model["c"].detach()) == 0.0


class WithExtraState(nn.Linear):
    note = "fresh"

    def get_extra_state(self) -> Any:
        return {"note": self.note}

    def set_extra_state(self, state: Any) -> None:
        self.note = state["note"]


def test_state_that_is_no_tensor_is_kept() -> None:
    model, source = WithExtraState(2, 2), nn.Linear(2, 2)
    load_into(model, source.state_dict(), "a.pt")
    assert torch.equal(model.weight, source.weight)
    assert model.note == "fresh"


class Rewriting(nn.Linear):
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        rest[-1].append("old version")


def test_a_model_whose_own_loading_code_refuses() -> None:
    with pytest.raises(CheckpointError, match="Rewriting refuses the tensors of a.pt .*old version"):
        load_into(Rewriting(2, 2), copy.deepcopy(nn.Linear(2, 2).state_dict()), "a.pt")


class WithConstant(nn.Linear):
    def __init__(self, constants: int) -> None:
        super().__init__(3, 2)
        for index in range(constants):
            self.register_buffer(f"_tensor_constant{index}", torch.full((1,), float(index)))


def test_constants_that_only_a_copy_has_are_left_out() -> None:
    source, model = nn.Sequential(WithConstant(2)), nn.Sequential(WithConstant(1))
    source[0].get_buffer("_tensor_constant0").fill_(7.0)
    load_into(model, source.state_dict(), "ema.pt")
    assert torch.equal(model[0].weight, source[0].weight)
    assert model[0].get_buffer("_tensor_constant0") == 7.0
    with pytest.raises(CheckpointError, match=r"missing from the file: 1 \(0._tensor_constant1\)"):
        load_into(source, model.state_dict(), "old.pt")
    near = {**model.state_dict(), "0.my_tensor_constant0": torch.ones(1)}
    with pytest.raises(CheckpointError, match="unknown to the model"):
        load_into(model, near, "near.pt")


@pytest.mark.e3nn
def test_an_average_that_was_saved_from_a_deep_copy_is_loaded() -> None:
    model, source = nets.product("uvw"), nets.product("uvw")
    average = copy.deepcopy(source)
    load_into(model, average.state_dict(), "ema.pt")
    assert torch.equal(model.weight, average.weight)


class Table(nn.Module):
    """One buffer of a dtype; ``own`` loads it by code of its own."""

    def __init__(self, dtype: torch.dtype, own: bool = False) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(2, dtype=dtype))
        if own:
            self.register_load_state_dict_post_hook(lambda module, keys: None)


KINDS: list[tuple[torch.dtype, Tensor, str]] = [
    (torch.float32, torch.tensor([1j, 2.0]), r"expected floating numbers \(float32\) for table, got complex ones"),
    (
        torch.int64,
        torch.tensor([float("nan"), 2.0]),
        r"integer numbers \(int64\) for table, got floating ones",
    ),
    (torch.bool, torch.tensor([3, 0]), r"boolean numbers \(bool\) for table, got integer ones \(int64\)"),
    (torch.complex64, torch.ones(2), "complex numbers"),
    (torch.float32, torch.tensor([2**24 + 1, 0]), "floating numbers"),
]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("dtype", "stored", "words"), KINDS)
def test_another_kind_of_numbers_is_refused_before_anything_is_loaded(
    dtype: torch.dtype, stored: Tensor, words: str, own: bool
) -> None:
    model = Table(dtype, own)
    with pytest.raises(CheckpointError, match=words):
        load_into(model, {"table": stored}, "a.pt")
    assert same(state(model), state(Table(dtype)))


@pytest.mark.parametrize("own", [False, True])
def test_integers_take_the_width_of_the_model_if_they_fit(own: bool) -> None:
    model = Table(torch.int32, own)
    load_into(model, {"table": torch.tensor([7, -7])}, "a.pt")
    assert model.state_dict()["table"].tolist() == [7, -7]
    with pytest.raises(CheckpointError, match=r"changes the values of 1 \(table\) tensors"):
        load_into(model, {"table": torch.tensor([2**40, 0])}, "a.pt")


def test_wide_complex_numbers_are_not_rounded() -> None:
    model, stored = Table(torch.complex64), torch.tensor([1 / 3 + 0.1j, 0], dtype=torch.complex128)
    load_into(model, {"table": stored}, "a.pt")
    assert torch.equal(model.state_dict()["table"], stored)


def test_nan_keeps_its_bits() -> None:
    stored = torch.tensor([0x7FC01234, -1], dtype=torch.int32).view(torch.float32)
    model = Table(torch.float32)
    load_into(model, {"table": stored}, "a.pt")
    assert model.state_dict()["table"].view(torch.int32).tolist() == [0x7FC01234, -1]


def test_two_views_of_one_memory_cannot_hold_two_values() -> None:
    class Overlapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            memory = torch.zeros(3)
            self.register_buffer("left", memory[:2])
            self.register_buffer("right", memory[1:])

    with pytest.raises(CheckpointError, match=r"changes the values of 1 \(left\) tensors"):
        load_into(Overlapping(), {"left": torch.tensor([1.0, 2.0]), "right": torch.tensor([3.0, 4.0])}, "a.pt")
