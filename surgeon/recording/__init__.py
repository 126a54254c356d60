"""One real run as a torch.fx graph, what is read off it, and its picture. Nothing here asks for a symmetry."""
