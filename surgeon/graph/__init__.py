"""The recorded torch.fx graph of one real run, and what is read off it."""

from surgeon.graph.candidates import Candidate, find_candidates, reaches_output
from surgeon.graph.compare import compare_graphs, graph_hash
from surgeon.graph.provenance import bypassed_parameters, used_parameters
from surgeon.graph.record import Recording, record

__all__ = [
    "Candidate",
    "find_candidates",
    "reaches_output",
    "Recording",
    "bypassed_parameters",
    "compare_graphs",
    "graph_hash",
    "record",
    "used_parameters",
]
