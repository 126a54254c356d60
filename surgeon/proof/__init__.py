"""What is certified about weights: equivariance, sameness; inspecting, stripping, verifying again. No training here."""
