"""What is said on screen and in Markdown: one printable line, whatever a file or a name holds."""

from __future__ import annotations

import ast
import copy
import pickle
import sys
from pathlib import Path

import pytest

from surgeon.errors import CheckpointError, WriteError, printable, sentence
from surgeon.files.card import harmless, markdown_table
from surgeon_cli.main import main
from surgeon_cli.progress import TrainingBar
from surgeon_cli.screen import print_table, say

ROOT = Path(__file__).parents[1]

HOSTILE = "\x1b[31mred\x07\u202egnp\u2028\ud800\x9b\r\n\tend"
SHOWN = r"\x1b[31mred\x07\u202egnp"


def test_a_message_is_one_printable_line() -> None:
    text = str(CheckpointError(f"expected a name, got {HOSTILE}: correct it"))
    assert text.isprintable()
    assert SHOWN in text
    assert text.endswith("end: correct it")


@pytest.mark.parametrize("long", ["x" * 100_000, "x " * 50_000])
def test_a_long_message_keeps_its_begin_and_its_advice(long: str) -> None:
    text = str(WriteError(f"expected a name, got {long}: correct it"))
    assert len(text) < 700
    assert text.startswith("expected a name, got x")
    assert text.endswith("x : correct it" if " " in long else "x: correct it")


def advice_of(call: ast.Call) -> tuple[str, str] | None:
    """Return the message of an error with long values in it, and what it says to do; None for another call."""
    given = call.args[0] if isinstance(call.func, ast.Name) and call.func.id.endswith("Error") and call.args else None
    if not isinstance(given, ast.JoinedStr):
        return None
    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in given.values]
    before, colon, advice = "".join(map(str, parts)).rpartition(": ")
    return before.replace("\0", "x " * 700) + colon + advice.replace("\0", "x" * 20), advice.replace("\0", "x" * 20)


def test_what_to_do_is_said_of_every_error_however_long_its_values_are() -> None:
    sources = [path for room in ("surgeon", "cli", "adapters") for path in (ROOT / room).rglob("*.py")]
    calls = [call for path in sources for call in ast.walk(ast.parse(path.read_text())) if isinstance(call, ast.Call)]
    messages = [found for found in map(advice_of, calls) if found is not None]
    assert len(messages) > 500
    for message, advice in messages:
        shown = sentence(message)
        assert len(shown) < 700
        assert shown.endswith(advice), advice


def test_usual_messages_stay_as_they_are() -> None:
    usual = CheckpointError("expected 'Größe', got \u201e😀\u201c in /a/b.pt: correct it")
    assert str(usual) == usual.args[0]
    assert str(pickle.loads(pickle.dumps(usual))) == str(copy.copy(usual)) == usual.args[0]


def test_nothing_on_screen_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    print_table(HOSTILE, [["name", HOSTILE], [HOSTILE, "[bold]"]])
    TrainingBar(None).say(HOSTILE)
    shown = "".join(capsys.readouterr())
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert shown.count(r"\x1b") == 5
    assert "[bold]" in shown


def test_no_html_and_no_further_cells_in_markdown() -> None:
    name = f"<script>a|b{HOSTILE}"
    table = markdown_table([name], [[name]]).splitlines()
    assert len(table) == 3
    for row in (table[0], table[2]):
        assert row.startswith(r"| &lt;script>a\|b\x1b[31m")
        assert row.isprintable()
    assert harmless("is `a<b`, not <b>") == "is `a<b`, not &lt;b>"
    assert harmless(harmless("`a`<b>` <i>`` <u>``")) == r"`a`&lt;b>\` &lt;i>\`\` &lt;u>\`\`"


def test_lines_of_a_text_stay() -> None:
    assert printable("a\nb") == "a\nb"


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_ends_its_lines_between_words_of_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with pytest.raises(SystemExit):
        main(["inspect", "gone.pt", "--nothing"])
    told = capsys.readouterr().err
    assert "No such option" in told
    assert {"--nothing:", "--help`"} <= set(told.split())
    assert (max(map(len, told.splitlines())) <= 24) == terminal
