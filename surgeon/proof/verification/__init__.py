"""Verify a clean folder: compute again what its certificate says."""
