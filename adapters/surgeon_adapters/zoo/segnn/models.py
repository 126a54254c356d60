"""Build SEGNNs from plain data, and recognise their state dicts by keys and shapes.

A state dict does not hold irreps. They follow from its shapes if the network was set up by the published script: hidden
irreps are 0e, 1o, 2e, ...; attributes are spherical harmonics; inputs are particles (2x1o+1x0e) or scalars.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from surgeon.errors import CheckpointError
from surgeon.support.e3nn_compat import import_e3nn
from surgeon.support.imports import one_line
from surgeon_adapters.recognition import require_same_form

FACTORY = "surgeon_adapters.zoo.segnn.models:build"
MARKS = ("embedding_layer.tp.weight", "layers.0.message_layer_1.tp.weight", "pre_pool2.tp.output_mask")
"""Keys that every SEGNN has."""

PARTICLES = "2x1o+1x0e"
HIGHEST = 6
"""Degrees of attributes are tried up to this one, and degrees of hidden features."""


def build(
    input_irreps: str,
    hidden_irreps: str,
    output_irreps: str,
    edge_attr_irreps: str,
    node_attr_irreps: str,
    layers: int,
    additional_message_irreps: str = "",
    task: str = "node",
    norm: str | None = None,
    pool: str = "avg",
) -> nn.Module:
    """Build a network with weights of its own.

    Args:
        input_irreps, hidden_irreps, output_irreps, edge_attr_irreps, node_attr_irreps, layers,
            additional_message_irreps, task, norm, pool: see :class:`surgeon_adapters.zoo.segnn.network.SegnnSettings`.

    Raises:
        CheckpointError: if the settings are unknown or cannot be built.
    """
    from surgeon_adapters.zoo.segnn.network import SEGNN, SegnnSettings

    for what, value, choices in (
        ("task", task, ("node", "graph")),
        ("norm", norm, (None, "batch", "instance")),
        ("pool", pool, ("avg", "sum")),
    ):
        if value not in choices:
            raise CheckpointError(f"expected {what} to be one of {choices}, got {value!r}: correct the settings")
    given: tuple[Any, ...] = (additional_message_irreps, task, norm, pool)
    settings = SegnnSettings(
        input_irreps, hidden_irreps, output_irreps, edge_attr_irreps, node_attr_irreps, layers, *given
    )
    try:
        return SEGNN(settings)
    except Exception as error:  # e3nn refuses irreps in many ways
        raise CheckpointError(f"could not build a {settings.words} ({one_line(error)}): correct its irreps") from error


def recognised(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of :func:`build` for a state dict; None if it is no SEGNN.

    Raises:
        CheckpointError: if it is a SEGNN, but of another form than the published script sets up.
    """
    if any(key not in tensors for key in MARKS):
        return None
    settings = _Shapes(tensors).settings()
    if settings is None:
        raise CheckpointError(
            "the weights look like those of a SEGNN, but their sizes are not those of hidden irreps 0e, 1o, 2e, ..., "
            "spherical harmonics as attributes, and particles or scalars as inputs: give `--model "
            f"{FACTORY} --model-args '{{...}}'` with the irreps that it was trained with"
        )
    return settings


def rebuilt(tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """Return the network that a state dict belongs to, with weights of its own; None if it is no SEGNN.

    Raises:
        CheckpointError: if it is a SEGNN of another form: what was recognised, and what differs.
    """
    settings = recognised(tensors)
    if settings is None:
        return None
    module = build(**settings)
    words = f"SEGNN of {settings['layers']} layers with {settings['hidden_irreps']} for each {settings['task']}"
    require_same_form(words, {key: value.shape for key, value in module.state_dict().items()}, tensors)
    return module


class _Shapes:
    """Reads irreps off the sizes of a state dict."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._o3: Any = import_e3nn()
        self._sizes = {key: value.numel() for key, value in tensors.items()}
        self._harmonics = [self._o3.Irreps.spherical_harmonics(degree) for degree in range(HIGHEST + 1)]

    def settings(self) -> dict[str, Any] | None:
        """Return the first settings whose sizes are those of the state dict."""
        for hidden in self._hidden():
            edge = self._attributes(hidden, _before_gate(hidden), "message_layer_2")
            node = self._attributes(hidden, hidden, "update_layer_2")
            if edge is None or node is None:
                continue
            rest = self._rest(hidden, edge, node)
            if rest is not None:
                return rest
        return None

    def _hidden(self) -> Iterator[Any]:
        """Yield hidden irreps with as many scalars, other irreps and entries as there are."""
        scalars = self._sizes.get("embedding_layer.biases", 0)
        others = self._sizes.get("layers.0.message_layer_1.biases", 0) - scalars
        entries = self._sizes.get("embedding_layer.tp.output_mask", 0) - scalars
        multiplicities: list[list[int]] = [[], [others]]
        seconds, odd = divmod(entries - 3 * others, 2)
        multiplicities += [[others - seconds, seconds]] if not odd else []
        multiplicities += [[others // degree] * degree for degree in range(3, HIGHEST + 1)]
        for counts in multiplicities:
            blocks = [(scalars, (0, 1)), *((n, (i + 1, (-1) ** (i + 1))) for i, n in enumerate(counts))]
            if scalars > 0 and all(n > 0 for n in counts) and sum(counts) == others:
                irreps = self._o3.Irreps(blocks)
                if irreps.dim == entries + scalars:
                    yield irreps

    def _attributes(self, first: Any, out: Any, layer: str) -> Any | None:
        size = self._sizes.get(f"layers.0.{layer}.tp.weight")
        return next((second for second in self._harmonics if self._count(first, second, out) == size), None)

    def _rest(self, hidden: Any, edge: Any, node: Any) -> dict[str, Any] | None:
        whole = "post_pool2.tp.weight" in self._sizes
        outputs = self._sizes.get("post_pool2.tp.output_mask" if whole else "pre_pool2.tp.output_mask", 0)
        output = {1: "1x0e", 3: "1x1o"}.get(outputs)
        inputs, extra = self._inputs(hidden, node, whole), self._extra(hidden, edge)
        if output is None or inputs is None or extra is None:
            return None
        numbers = {int(key.split(".")[1]) for key in self._sizes if key.startswith("layers.")}
        norm = "instance" if "layers.0.feature_norm.weight" in self._sizes else None
        return {
            "input_irreps": inputs,
            "hidden_irreps": str(hidden),
            "output_irreps": output,
            "edge_attr_irreps": str(edge),
            "node_attr_irreps": str(node),
            "layers": len(numbers),
            "additional_message_irreps": f"{extra}x0e" if extra else "",
            "task": "graph" if whole else "node",
            "norm": "batch" if "layers.0.message_norm.weight" in self._sizes else norm,
            "pool": "avg",
        }

    def _inputs(self, hidden: Any, node: Any, whole: bool) -> str | None:
        """Return particles or scalars, for a whole graph scalars first: their sizes can be equal."""
        size = self._sizes["embedding_layer.tp.weight"]
        particles = self._count(self._o3.Irreps(PARTICLES), node, hidden) == size
        scalars, left = divmod(size, self._count(self._o3.Irreps("1x0e"), node, hidden))
        names = [PARTICLES] * particles + [f"{scalars}x0e"] * (left == 0 and scalars > 0)
        return (names[-1] if whole else names[0]) if names else None

    def _extra(self, hidden: Any, edge: Any) -> int | None:
        """Return how many scalars the messages have besides the features of both ends."""
        out = _before_gate(hidden)
        rest = self._sizes[MARKS[1]] - 2 * self._count(hidden, edge, out)
        number, left = divmod(rest, self._count(self._o3.Irreps("1x0e"), edge, out))
        return number if number >= 0 and left == 0 else None

    @staticmethod
    def _count(first: Any, second: Any, out: Any) -> int:
        """Return the number of weights of a fully connected tensor product."""
        return sum(a * b * c for a, i in first for b, j in second for c, k in out if k in i * j)


def _before_gate(hidden: Any) -> Any:
    """Return the irreps that become ``hidden`` by a gate: one more scalar for each irrep that is none."""
    gates = hidden[1:].num_irreps
    return (hidden[:1] + type(hidden)([(gates, (0, 1))]) + hidden[1:]).simplify() if gates else hidden
