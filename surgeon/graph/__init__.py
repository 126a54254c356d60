"""The recorded torch.fx graph of one real run, and what is read off it."""

from surgeon.graph.candidates import Candidate, find_candidates, reaches_output
from surgeon.graph.compare import Constant, compare_graphs, constants_of, erase_branches, forward_part, graph_hash
from surgeon.graph.provenance import bypassed_parameters, used_parameters
from surgeon.graph.record import Recording, record

__all__ = [
    "Candidate",
    "Constant",
    "Recording",
    "bypassed_parameters",
    "compare_graphs",
    "constants_of",
    "erase_branches",
    "find_candidates",
    "forward_part",
    "graph_hash",
    "reaches_output",
    "record",
    "used_parameters",
]
