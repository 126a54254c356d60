"""SEGNN: the network with the published parameter names, its checkpoints and N-body files."""
