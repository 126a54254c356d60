"""Read a ``torch.export`` archive without running anything in it, and compare two of them.

``torch.export.load`` is for files that one trusts: it unpickles what an archive says is pickled, and evaluates its
expressions. Here the records are only read: the graph is JSON, tensors are bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import CheckFailedError
from surgeon.support.imports import one_line

_GRAPH = "models/model.json"
_SAMPLE = "data/sample_inputs/model.pt"
_FOLDERS = {"weights": "data/weights/", "constants": "data/constants/"}
_KNOWN = {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id"}
_SYMBOL = re.compile(r"\b[su]\d+\b")


@dataclass(frozen=True)
class Stored:
    """One tensor of an archive: its form as JSON, and the bytes of the storage in which it lies."""

    form: Mapping[str, Any]
    content: bytes

    def equals(self, tensor: Tensor) -> bool:
        """Tell whether it has the bits of a tensor of any shape and dtype; dtypes are compared elsewhere."""
        sizes, strides = (tuple(size.get("as_int") for size in self.form[key]) for key in ("sizes", "strides"))
        if sizes != tuple(tensor.shape):
            return False
        plain = tensor.detach().cpu().contiguous()
        if not plain.numel():
            return not self.content
        if len(self.content) % plain.element_size():
            return False
        flat = torch.frombuffer(bytearray(self.content), dtype=plain.dtype)
        try:
            found = flat.as_strided(sizes, strides, self.form["storage_offset"]["as_int"])
        except RuntimeError:  # a storage that is too small
            return False
        return torch.equal(found.contiguous().view(-1).view(torch.uint8), plain.view(-1).view(torch.uint8))


@dataclass(frozen=True)
class Archive:
    """What a ``.pt2`` file says: its graph as JSON without remarks, and its tensors."""

    graph: Mapping[str, Any]
    weights: Mapping[str, Stored]
    constants: Mapping[str, Stored]

    @property
    def nodes(self) -> list[Any]:
        """The graph's operations, in order."""
        return list(self.graph["graph_module"]["graph"]["nodes"])

    @property
    def digest(self) -> str:
        """The sha256 of everything but the values of the weights."""
        return hashlib.sha256(json.dumps([*_rows(self)], sort_keys=True).encode()).hexdigest()


def read_archive(path: Path) -> Archive:
    """Read a file that :func:`surgeon.export.pt2_file.export_pt2` wrote.

    Raises:
        CheckFailedError: if it is damaged, or holds anything that is pickled or that no such file holds.
    """
    file = path.name
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            records = {name.partition("/")[2]: name for name in names}
            if len(records) != len(names):
                raise CheckFailedError(f"{file} holds two records of one name")
            graph = json.loads(archive.read(records[_GRAPH]))
            tensors = {part: _tensors(archive, records, folder) for part, folder in _FOLDERS.items()}
            _refuse_strangers(archive, records, file)
    except CheckFailedError:
        raise
    except Exception as error:  # a damaged file raises whatever its fields lead to
        raise CheckFailedError(f"{file} cannot be read as a torch.export archive ({one_line(error)})") from error
    return Archive(_canonical(graph), tensors["weights"], tensors["constants"])


def _config(archive: zipfile.ZipFile, records: Mapping[str, str], folder: str) -> dict[str, Any]:
    name = f"{folder}model_{folder.split('/')[1]}_config.json"
    config: dict[str, Any] = json.loads(archive.read(records[name]))["config"]
    return config


def _tensors(archive: zipfile.ZipFile, records: Mapping[str, str], folder: str) -> dict[str, Stored]:
    found = {}
    for name, entry in _config(archive, records, folder).items():
        if entry["use_pickle"] or entry["tensor_meta"] is None:
            raise CheckFailedError(f"the archive holds {name} as a pickle, which would run code: it is not opened")
        form = {**entry["tensor_meta"], "is_param": entry["is_param"]}
        found[name] = Stored(form, archive.read(records[folder + entry["path_name"]]))
    return found


def _refuse_strangers(archive: zipfile.ZipFile, records: Mapping[str, str], file: str) -> None:
    """Refuse records that ``torch.export.load`` would open, perhaps instead of those that were compared."""
    known = {_GRAPH, _SAMPLE, *_KNOWN}
    for folder in _FOLDERS.values():
        known.add(f"{folder}model_{folder.split('/')[1]}_config.json")
        known.update(folder + entry["path_name"] for entry in _config(archive, records, folder).values())
    strange = sorted(records.keys() - known)
    if strange or archive.getinfo(records[_SAMPLE]).file_size:
        raise CheckFailedError(f"{file} holds {strange[0] if strange else _SAMPLE}, which was not exported")


def _canonical(graph: Any) -> Any:
    """Drop remarks and versions, and number the symbols of sizes in order of appearance."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: plain(value) for key, value in part.items() if key not in ("metadata", "torch_version")}
        return [plain(value) for value in part] if isinstance(part, list) else part

    symbols: dict[str, str] = {}
    text = json.dumps(plain(graph))
    return json.loads(_SYMBOL.sub(lambda match: symbols.setdefault(match[0], f"symbol_{len(symbols)}"), text))


def _rows(archive: Archive) -> Iterator[tuple[str, Any]]:
    """Yield the graph row by row, the form of every weight, and every constant by value."""
    inner = archive.graph["graph_module"]["graph"]
    for place, node in enumerate(archive.nodes):
        yield f"node {place}", node
    for key in sorted(inner.keys() - {"nodes"}):
        yield f"the graph's {key}", inner[key]
    for key in sorted(archive.graph["graph_module"].keys() - {"graph"}):
        yield key, archive.graph["graph_module"][key]
    for key in sorted(archive.graph.keys() - {"graph_module"}):
        yield key, archive.graph[key]
    for name, stored in archive.weights.items():
        yield f"weight {name}", stored.form
    for name, stored in archive.constants.items():
        yield f"constant {name}", [stored.form, hashlib.sha256(stored.content).hexdigest()]


def compare_archives(before: Archive, after: Archive, limit: int = 5) -> list[str]:
    """Return the first differences of two archives in words, node by node; values of weights do not count."""
    left, right = dict(_rows(before)), dict(_rows(after))
    found = []
    if len(before.nodes) != len(after.nodes):
        found.append(f"expected {len(before.nodes)} nodes in the exported graph, got {len(after.nodes)}")
    for name in dict.fromkeys([*left, *right]):
        if left.get(name) != right.get(name):
            parts = (_short(rows.get(name, "nothing")) for rows in (left, right))
            found.append("{} of the exported graph: expected {}, got {}".format(name, *parts))
    return found[:limit]


def _short(part: Any) -> str:
    text = json.dumps(part)
    return text if len(text) <= 160 else text[:160] + "..."
