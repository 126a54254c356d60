"""Every file that Surgeon reads, with the function that reads it and what its content is."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from surgeon.errors import CheckFailedError
from surgeon.export.archive import read_archive
from surgeon.files.clean import canonical_digest, read_clean
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import read_relaxed
from surgeon.files.seals import seal_folder
from surgeon.opening import models
from surgeon.opening.planning import read_plan
from surgeon.proof.exports import _loaded
from surgeon.report.write import read_page
from surgeon.training.compare import read_sweep
from surgeon.training.runs import read_record
from surgeon.training.store import IDENTITY_FILE, RunStore
from surgeon_adapters.atoms.md17 import read_md17
from surgeon_adapters.atoms.reference import Energies, read_energies
from surgeon_adapters.atoms.xyz_frames import read_labelled
from surgeon_adapters.zoo.vector_neurons.data import read_clouds
from tests.campaigns.mutations import hostile_bytes, hostile_json

FACTORY = "tests.tiny:make_net"
Kind = Literal["json", "lines", "header", "bytes", "pickle"]


@dataclass(frozen=True)
class Reader:
    """A file, and what is called to read it.

    Attributes:
        file: name in the campaign's folder.
        kind: how it is attacked: values of its JSON, one line's or a safetensors header's, bytes, or those of the
            pickle in an archive of torch.save, whose checksum is made to fit.
        read: returns the content, of which :func:`digest` is taken.
        checked: whether another content than before is a fault, because a hash or a checksum would have shown it.
        share: weight in the campaign.
        prepare: makes a changed file fit its folder again, as who changes it on purpose would do.
        needs: a library that may be missing.
    """

    name: str
    file: str
    kind: Kind
    read: Callable[[], Any]
    checked: bool = False
    share: float = 1
    prepare: Callable[[], Any] | None = None
    needs: str = ""

    @property
    def available(self) -> bool:
        return not self.needs or importlib.util.find_spec(self.needs) is not None

    def hostile(self, content: bytes, draw: random.Random) -> bytes:
        """Return the file's content, attacked."""
        if self.kind == "bytes":
            return hostile_bytes(content, draw)
        if self.kind == "pickle":
            return with_pickle(content, lambda pickle: hostile_bytes(pickle, draw))
        if self.kind == "json":
            return hostile_json(json.loads(content), draw).encode()
        if self.kind == "lines":
            lines = content.decode().splitlines()
            place = draw.randrange(len(lines))
            lines[place] = hostile_json(json.loads(lines[place]), draw)
            return "\n".join(lines).encode()
        length = int.from_bytes(content[:8], "little")
        header = hostile_json(json.loads(content[8 : 8 + length]), draw).encode()
        return len(header).to_bytes(8, "little") + header + content[8 + length :]


def with_pickle(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return an archive of torch.save with another pickle in it."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    return result.getvalue()


def digest(content: Any) -> str:
    """Return a hash of nested content: tensors by their bits."""
    found = hashlib.sha256()
    for part in _flat(content):
        found.update(part)
    return found.hexdigest()


def _flat(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield f"{tuple(value.shape)}{value.dtype}".encode()
        if value.layout == torch.strided and value.numel() and value.device.type == "cpu":
            yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield repr(key).encode()
            yield from _flat(value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _flat(part)
    else:
        yield repr(value).encode()


def checkpoint(name: str) -> Any:
    opened = open_checkpoint(name)
    return {**opened.tensors}, opened.prefix, opened.container


def relaxed(folder: str) -> Any:
    files = read_relaxed(Path(folder))
    return files.config.to_data(), {**files.base}, {**files.branches}


def run(folder: str) -> Any:
    state = open_checkpoint(Path(folder) / "training_state/state.safetensors")
    return relaxed(folder), repr(read_record(Path(folder))), {**state.tensors}


def clean(folder: str) -> Any:
    files = read_clean(Path(folder))
    if files.damage or files.certificate["files"] != files.hashes or files.digest != files.certificate.get("sha256"):
        raise CheckFailedError(files.damage or "the certificate does not fit its files")
    return files.certificate, {**files.tensors}


def page(path: str) -> Any:
    return read_page(Path(path)).html()


def statement(name: str) -> Any:
    """Return what is said of a network; what names another factory than the user's own goes on to be imported."""
    opened = open_checkpoint(name)
    said = models._statement(opened)
    if said is not None and said[1]["factory"] != FACTORY:
        models._from_statement(opened, False)
    return said


def store() -> Any:
    folder = Path("net-compare.runs")
    runs = RunStore(folder, json.loads((Path("identity.json")).read_text()))
    if runs.damaged:
        raise CheckFailedError(f"damaged: {', '.join(runs.damaged)}")
    return repr({**runs})


def archive() -> Any:
    read = read_archive(Path("net.pt2"))
    return read.digest, {name: (each.form, each.content) for name, each in read.weights.items()}


def energies() -> Any:
    atoms = Energies((0.0, 0.0), ("H", "O"), {1: 0, 8: 1}, None, 0, 0)
    return read_energies(Path("energies.json"), atoms, torch.ones(2))


def clouds(path: Path = Path("clouds.h5")) -> Any:
    return vars(read_clouds(path, 8, torch.float32))


def resealed(folder: str) -> Callable[[], Any]:
    return partial(seal_folder, Path(folder))


def signed_again() -> None:
    """Make a certificate's own hash right, as who writes another one would do."""
    path = Path(CERTIFICATE)
    try:
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "sha256": canonical_digest(data)}))
    except (ValueError, TypeError, RecursionError, UnicodeError):
        return


RUN, COMPARED, CERTIFICATE = "net-run/", "net-compare.json", "net-clean/certificate.json"
STATE, STATEMENT = RUN + "training_state/state.json", "aside.safetensors.model.json"
FINISHED = "net-compare.runs/run-plain-lr0.001-seed0.json"
READERS = (
    Reader("safetensors header", "net.safetensors", "header", partial(checkpoint, "net.safetensors"), share=6),
    Reader("safetensors bytes", "net.safetensors", "bytes", partial(checkpoint, "net.safetensors"), share=2),
    Reader("torch.save bytes", "net.pt", "bytes", partial(checkpoint, "net.pt"), True, 4),
    Reader("nested torch.save bytes", "nested.pt", "bytes", partial(checkpoint, "nested.pt"), True, 2),
    Reader("pickle of torch.save", "nested.pt", "pickle", partial(checkpoint, "nested.pt"), share=4),
    Reader("legacy torch.save bytes", "legacy.pt", "bytes", partial(checkpoint, "legacy.pt"), share=4),
    Reader("statement in a header", "net.safetensors", "header", partial(statement, "net.safetensors"), share=1),
    Reader("statement beside a file", STATEMENT, "json", partial(statement, "aside.safetensors"), share=2),
    Reader("statement bytes", STATEMENT, "bytes", partial(statement, "aside.safetensors")),
    Reader("plan values", "plan.json", "json", partial(read_plan, "plan.json", None), share=5),
    Reader("plan bytes", "plan.json", "bytes", partial(read_plan, "plan.json", None), share=2),
    *(
        Reader(f"sealed {name}", RUN + name, "bytes", partial(run, "net-run"), True, 1)
        for name in (
            *("surgeon_config.json", "model.safetensors", "relaxation.safetensors", "surgeon_seal.json"),
            *("training_state/state.json", "training_state/state.safetensors"),
        )
    ),
    Reader(
        "configuration values", "net-relaxed/surgeon_config.json", "json", partial(relaxed, "net-relaxed"), False, 8,
        resealed("net-relaxed"),
    ),
    Reader(
        "branches header", "net-relaxed/relaxation.safetensors", "header", partial(relaxed, "net-relaxed"), False, 1,
        resealed("net-relaxed"),
    ),
    Reader("seal values", "net-relaxed/surgeon_seal.json", "json", partial(relaxed, "net-relaxed"), True, 1),
    Reader("state values", STATE, "json", partial(run, "net-run"), False, 4, resealed("net-run")),
    Reader("state page", STATE, "json", partial(page, "net-run"), False, 0.3, resealed("net-run")),
    Reader("records page", RUN + "records.jsonl", "lines", partial(page, "net-run"), False, 0.3, resealed("net-run")),
    Reader("certificate values", CERTIFICATE, "json", partial(clean, "net-clean"), True, 4),
    Reader("certificate bytes", CERTIFICATE, "bytes", partial(clean, "net-clean"), True, 1),
    Reader(
        "certificate values, signed again", CERTIFICATE, "json", partial(clean, "net-clean"), False, 4,
        signed_again,
    ),
    Reader("certificate page", CERTIFICATE, "json", partial(page, "net-clean"), False, 0.3, signed_again),
    Reader("clean weights", "net-clean/model.safetensors", "bytes", partial(clean, "net-clean"), True, 1),
    Reader("comparison page", COMPARED, "json", partial(page, COMPARED), False, 0.3),
    Reader("learning rates", COMPARED, "json", lambda: read_sweep(Path(COMPARED)), False, 2),
    Reader("finished run", FINISHED, "json", store, False, 2),
    Reader("description of a comparison", f"net-compare.runs/{IDENTITY_FILE}", "json", store, True, 1),
    Reader("reference energies", "energies.json", "json", energies, False, 2),
    Reader("MD17 npz bytes", "md17.npz", "bytes", lambda: vars(read_md17("md17.npz")), True, 2),
    Reader("torch.export bytes", "net.pt2", "bytes", archive, True, 2),
    Reader(
        "extended XYZ bytes", "frames.xyz", "bytes",
        lambda: repr(read_labelled(Path("frames.xyz"), {}, [1, 8]).values), False, 2, None, "ase",
    ),
    Reader("ONNX bytes", "net.onnx", "bytes", lambda: _loaded(Path("net.onnx")) is None, False, 1, None, "onnx"),
    Reader("HDF5 bytes", "clouds.h5", "bytes", clouds, False, 2, None, "h5py"),
)  # fmt: skip
