"""Model cards as the loopback Hub reads them: the YAML block at the top of README.md."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.hub.store import Blob

RELATIONS = ("adapter", "finetune", "merge", "quantized")
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


def yaml_block(text: str) -> str | None:
    """Return what stands between the first two lines of ``---``."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---(?:\r?\n|$)", text, re.DOTALL)
    return found[1] if found else None


def read_card(blob: Blob | None) -> dict[str, Any]:
    """Return the metadata of a card; a bad or missing one has none."""
    block = None if blob is None else yaml_block(blob.data.decode(errors="replace"))
    if block is None:
        return {}
    try:
        data = yaml.safe_load(block)
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def card_errors(text: str) -> tuple[list[str], list[str]]:
    """Return what is wrong with a card's metadata, and what is merely missing."""
    block = yaml_block(text)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block)
    except yaml.YAMLError as error:
        return [f"YAML parsing error: {error}"], []
    if not isinstance(data, dict):
        return ['"metadata" must be of type object'], []
    return wrong_types(data) + wrong_base(data), []


def wrong_types(data: dict[str, Any]) -> list[str]:
    errors = [
        f'"{name}" must be a string'
        for name in ("library_name", "license", "pipeline_tag", "license_name")
        if not isinstance(data.get(name, ""), str)
    ]
    for name in ("tags", "datasets", "metrics"):
        value = data.get(name, [])
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            errors.append(f'"{name}" must be an array of strings')
    if not isinstance(data.get("model-index", []), list):
        errors.append('"model-index" must be an array')
    return errors


def wrong_base(data: dict[str, Any]) -> list[str]:
    bases = data.get("base_model", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and REPO_ID.fullmatch(base) for base in bases):
        return ['"base_model" with value that is not valid. Use a model id from the Hub, such as "owner/name".']
    relation = data.get("base_model_relation", RELATIONS[0])
    return [] if relation in RELATIONS else [f'"base_model_relation" must be one of {list(RELATIONS)}']
