"""Bytes on disk: atomic writing, seals, containers, addresses, the relaxed folder. No model is built here."""
