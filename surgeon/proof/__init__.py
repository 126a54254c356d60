"""What is certified about stripped weights: equivariance, sameness, the certificate, and verifying it again."""
