"""What ``surgeon finetune`` takes by itself for potentials, by library, as arms of a comparison."""

from __future__ import annotations

from surgeon_adapters.mace.task import CLIP, RATE_OF_SMALL
from surgeon_adapters.sevennet.task import BETA2, RATE

SOAP, MUON = "plain@soap", "plain@muon"
DEFAULTS = {"mace": (SOAP, RATE_OF_SMALL), "sevennet": (f"{SOAP}+beta2={BETA2}", RATE)}
"""Arm and learning rate."""
CLIPS = {"mace": CLIP, "sevennet": None}
"""Largest norm of gradients."""
