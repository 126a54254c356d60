"""Networks that are equivariant only nearly, by design: features are sampled inside them."""

from __future__ import annotations

import dataclasses

import torch

from surgeon.finding.breaks import find_breaks
from surgeon.finding.inference.hypotheses import TOLERANCE
from surgeon.finding.measurement import Measurement
from surgeon.finding.own_symmetry import judged
from surgeon.support.modes import default_dtype


def nearly_by_design(measurement: Measurement) -> Measurement:
    """Note the op that samples features, if that is where equivariance fails first, and never by more than 2 %.

    Other weights, which would make an error of trained ones larger, may not exceed that either.
    """
    group, own = measurement.symmetry.group, measurement.errors
    if not own or max(own.values()) <= TOLERANCE:
        return measurement
    with default_dtype(torch.float64):
        if any(judged(group, errors, torch.float64) for errors in (own, measurement.changed.errors())):
            return measurement
        first = find_breaks(measurement.twin, measurement.symmetry, *measurement.inputs).first
    return dataclasses.replace(measurement, sampled=first.sampled if first is not None else "")
