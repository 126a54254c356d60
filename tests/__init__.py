"""A package of its own, because some installed library ships another one called ``tests``."""
