"""JSON as strictly as its standard: whatever a file holds, one ValueError says what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from surgeon.support.plain import parse_json

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deep"),
        ("9" * 5000, "a number of 5000 digits"),
        ("-" + "1" * 20, "a number of 21 digits"),
        ("1e999", "not finite"),
        ("NaN", "not finite"),
        ("-Infinity", "not finite"),
        ('{"a": 1, "a": 2}', "the name 'a' twice"),
        (r'"\ud800"', "not UTF-8"),
        (b"\xff\xfe", "not UTF-8"),
        ("{", "Expecting"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_no_other_reader_would_take_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


def test_the_rest_is_read_as_it_is() -> None:
    data = r'{"a": [1, -2.5, 1e300, null, true, "\ud83d\ude00 é"], "": 9223372036854775807}'
    assert parse_json(data.encode()) == {"a": [1, -2.5, 1e300, None, True, "😀 é"], "": 2**63 - 1}


def test_nothing_reads_json_in_another_way() -> None:
    """What the package itself has just written may be read by Python's own reader."""
    own = {"core.py", "grids.py", "images.py", "build.py", "spread.py", "contract.py", "archive.py", "plain.py"}
    files = [path for part in ("surgeon", "adapters", "cli") for path in (ROOT / part).rglob("*.py")]
    found = {path.name for path in files if re.search(r"json\.loads?\(", path.read_text(encoding="utf-8"))}
    assert found == own
