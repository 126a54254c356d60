"""Optimisers that see equivariant weights as matrices of multiplicities, branches or not. Loops are in training.

Three lines in anybody's own training loop are enough::

    from surgeon import optim

    optimizer = optim.soap(model, lr=2e-3)
"""

from surgeon.optim.adam import WARMUP as WARMUP
from surgeon.optim.blocks import WeightBlocks as WeightBlocks
from surgeon.optim.blocks import find_blocks as find_blocks
from surgeon.optim.make import muon as muon
from surgeon.optim.make import soap as soap
from surgeon.optim.orthogonalised import Muon as Muon
from surgeon.optim.preconditioned import Soap as Soap
from surgeon.optim.views import MatrixViews as MatrixViews
