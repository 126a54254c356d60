"""Formats that leave surgeon beside safetensors, each checked before it is written. Clean folders are made in proof."""
