"""How the files of a clean folder are used, for its ``README.md``: every line follows from what was checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from surgeon.export.onnx_file import ONNX_FILE
from surgeon.export.ports import made_up
from surgeon.export.reopening import USAGE
from surgeon.files.card import BEGIN, CLEAN_WORDS, END
from surgeon.proof.words import INPUTS_AND_OUTPUTS, sections

_ONNX = """```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
batch = {{
{arrays}
}}
for output, values in zip(session.get_outputs(), session.run(None, batch)):
    print(output.name, values.shape)
```"""


def clean_card(certificate: Mapping[str, Any]) -> str:
    """Return the text of a clean folder's own ``README.md``; as :func:`usage`."""
    parts = ["# Clean weights", CLEAN_WORDS, usage(certificate)]
    return f"{BEGIN}\n" + "\n\n".join(part for part in parts if part) + f"\n{END}\n"


def usage(certificate: Mapping[str, Any]) -> str:
    """Return Markdown on the files beside the weights: their inputs and outputs, and programs that run them."""
    details = certificate["details"]
    parts = [sections(certificate)[INPUTS_AND_OUTPUTS].markdown(), *_onnx(details.get("onnx"))]
    written = (details.get("container") or {}).get(USAGE)
    if written:
        parts.append(f"`{details['container']['file']}`, as its library uses it:\n\n```python\n{written}\n```")
    return "\n\n".join(part for part in parts if part)


def _onnx(record: Mapping[str, Any] | None) -> Iterator[str]:
    if record is None:
        return
    made = (f'    "{name}": {_array(record["axes"][name])},' for name in record["inputs"])
    told = "the numbers are made up: put yours there"
    if not record["runs_on_made_up_numbers"]:
        told += "; with these, ONNX Runtime refuses to run it"
    yield f"`{ONNX_FILE}` in ONNX Runtime ({told}):\n\n" + _ONNX.format(file=ONNX_FILE, arrays="\n".join(made))


def _array(axes: str) -> str:
    """Return what makes an array that fits, as :func:`surgeon.export.checks.made_up_feed` does."""
    kind, sizes = made_up(axes)
    return f'np.{"ones" if "float" in kind else "zeros"}({sizes}, "{kind}")'
