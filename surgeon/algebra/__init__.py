"""Groups, representations, intertwiners, the penalty and its schedule: mathematics that knows no module."""
