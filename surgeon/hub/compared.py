"""What a model card says of a comparison: the arms with their spread over seeds."""

from __future__ import annotations

from pathlib import Path

from surgeon.errors import CheckpointError
from surgeon.files.content import read_json
from surgeon.proof.certificate_words import markdown_table


def read_comparison(path: str | Path) -> str:
    """Return the record of ``surgeon finetune --compare`` in Markdown: one row per arm, and the sentences.

    Args:
        path: the JSON file that it wrote.

    Raises:
        CheckpointError: if it cannot be read, or is something else.
    """
    data = read_json(path)
    try:
        metric, said = str(data["metric"]), [str(sentence) for sentence in data["sentences"]]
        rows = [
            (
                row["arm"],
                row["runs"],
                _with_spread(row["mean"], ".4e", row["spread"]),
                "-" if row["arm"] == "plain" else _with_spread(row["difference"], "+.1e", row["half_width"]),
            )
            for row in data["rows"]
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"expected what `surgeon finetune --compare` wrote in {str(path)!r}, got something else "
            f"({type(error).__name__} at {str(error)[:80]}): name that file"
        ) from error
    table = markdown_table(("arm", "seeds", f"test {metric}, mean ± std", "minus plain, 95 % interval"), rows)
    return "\n\n".join([table, *said])


def _with_spread(value: float | None, form: str, spread: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" if spread is None else f"{value:{form}} ± {spread:.1e}"
