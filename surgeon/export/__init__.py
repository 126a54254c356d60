"""Formats that leave surgeon beside safetensors, each checked before it is written."""
