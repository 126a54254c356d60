"""The layers of e3nn."""
