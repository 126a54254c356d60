"""Adapters: one module per model family, found through the entry-point group ``surgeon.adapters``."""
