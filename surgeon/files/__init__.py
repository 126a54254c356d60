"""Bytes on disk: atomic writing, locks, seals, addresses, the relaxed folder. No model is built here."""
