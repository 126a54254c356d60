"""What is certified about weights: equivariance, sameness, the certificate; inspecting, stripping, verifying again."""
