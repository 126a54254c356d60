"""Vector Neurons: networks with the published parameter names, their checkpoints and data files."""
