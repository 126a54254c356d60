"""What is said on screen and in Markdown: one printable line, whatever a file or a name holds."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest

from surgeon.errors import CheckpointError, WriteError, printable
from surgeon.files.card import harmless, markdown_table
from surgeon_cli.main import main
from surgeon_cli.progress import TrainingBar
from surgeon_cli.screen import print_table, say

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
