"""Steerable networks of escnn."""
