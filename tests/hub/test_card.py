"""The model card: valid YAML from the records, and the user's own text is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from surgeon.errors import CheckpointError, HubError
from surgeon.files.card import BEGIN, END
from surgeon.hub.card import card_text
from surgeon.hub.content import content_of
from surgeon.hub.pushing import PushOptions, push_to_hub
from tests.hub.folders import made, make_relaxed
from tests.hub.server import Hub
from tests.hub.test_fetching import weights

__all__ = ["made"]

REPO = "alice/net"
OWN = "---\nlicense: mit\ntags:\n- mine\nlibrary_name: other\n---\n\n# My title\n\nMy words.\n"


def test_a_trained_relaxed_model(made: Path) -> None:
    card = ModelCard(card_text(content_of(made / "run"), REPO, ""))
    assert card.data.library_name == "equisurgeon"
    assert {"equivariance", "relaxed", "o3"} <= set(card.data.tags)
    assert card.data.base_model is None, "the base is not on the Hub"
    history = [json.loads(line) for line in (made / "run" / "records.jsonl").read_text().splitlines()]
    best = json.loads((made / "run" / "training_state" / "state.json").read_text())["state"]["best_epoch"]
    (result,) = (entry for entry in card.data.eval_results if entry.metric_type == "mse")
    assert result.metric_value == history[best]["validation"]["mse"]
    assert f"{history[0]['validation']['mse']:.6g}" in card.text
    assert "| learning rate | 0.01 |" in card.text
    assert "| `first` |" in card.text
    assert "surgeon.from_hub(" in card.text
    assert str(made) not in card.content


def test_clean_weights(made: Path) -> None:
    card = ModelCard(card_text(content_of(made / "clean"), REPO, "My words.\n"))
    assert card.text.endswith(f"{END}\n\nMy words.\n")
    certificate = json.loads((made / "clean" / "certificate.json").read_text())
    metrics = {entry.metric_type: entry.metric_value for entry in card.data.eval_results}
    assert metrics == certificate["metrics"]["stripped"]
    for name in certificate["checks"]:
        assert f"| {name} | yes |" in card.text
    assert "| stripped | float64 |" in card.text
    assert "load_state_dict" in card.text


@pytest.mark.parametrize(("folder", "relation"), [("relaxed", "adapter"), ("run", "finetune")])
def test_a_base_on_the_hub(logged_in: Hub, made: Path, tmp_path: Path, folder: str, relation: str) -> None:
    commit = logged_in.store.put("alice/base", {"net.safetensors": weights(1)}).id
    make_relaxed("hf://alice/base", tmp_path / "relaxed", made / "task.py")
    chosen = tmp_path / "relaxed"
    if relation == "finetune":  # what `strip` writes names the base in its certificate
        chosen = tmp_path / "clean"
        shutil.copytree(made / "clean", chosen)
        certificate = json.loads((chosen / "certificate.json").read_text())
        certificate["details"]["original"] |= {"repo": "alice/base", "revision": commit}
        (chosen / "certificate.json").write_text(json.dumps(certificate))
    card = ModelCard(card_text(content_of(chosen), REPO, ""))
    assert card.data.base_model == "alice/base"
    assert card.data.base_model_relation == relation
    assert commit in card.text


def test_the_users_text_is_kept(logged_in: Hub, made: Path) -> None:
    logged_in.store.put(REPO, {"README.md": OWN.encode()})
    for folder in ("relaxed", "run"):
        push_to_hub(made / folder, REPO)
        text = logged_in.store.repos[REPO].head.files["README.md"].data.decode()
        card = ModelCard(text)
        assert card.data.license == "mit"
        assert set(card.data.tags) >= {"mine", "equivariance"}
        assert card.data.library_name == "equisurgeon"
        assert text.count(BEGIN) == text.count(END) == 1
        assert text.count("# My title\n\nMy words.\n") == 1
    assert "records.jsonl" in logged_in.store.repos[REPO].head.files
    edited = text.replace("My words.", "My new words.").replace(BEGIN, "In front.\n\n" + BEGIN)
    logged_in.store.put(REPO, {"README.md": edited.encode()})
    push_to_hub(made / "run", REPO)
    assert logged_in.store.repos[REPO].head.files["README.md"].data.decode() == edited


def test_text_in_the_folders_card_goes_along(made: Path) -> None:
    content = content_of(made / "relaxed")
    written = card_text(content, REPO, content.card + "\nWritten at home.\n")
    assert written.endswith("\nWritten at home.\n")
    assert written.count(BEGIN) == 1
    assert "# Relaxed model" not in written, "the folder's own block is replaced"


def test_a_card_with_broken_yaml(made: Path) -> None:
    with pytest.raises(HubError, match="YAML at the top of the card so far is unusable"):
        card_text(content_of(made / "relaxed"), REPO, "---\na: [\n---\n")


def card_of(hub: Hub) -> str:
    return hub.store.repos[REPO].head.files["README.md"].data.decode()


def comparison(tmp_path: Path, **changed: Any) -> Path:
    rows = [
        {
            "arm": "plain",
            "reference": "plain",
            "runs": 3,
            "mean": 0.02,
            "spread": 0.001,
            "difference": 0.0,
            "half_width": 0.0,
        },
        {
            "arm": "drop",
            "reference": "plain",
            "runs": 3,
            "mean": 0.018,
            "spread": 0.002,
            "difference": -0.002,
            "half_width": 0.001,
        },
        {
            "arm": "fold",
            "reference": "plain",
            "runs": 1,
            "mean": 0.019,
            "spread": None,
            "difference": -0.001,
            "half_width": None,
        },
    ]
    rows = [{**row, "reference": "plain"} for row in rows]
    path = tmp_path / "compare.json"
    path.write_text(json.dumps({"metric": "mse", "rows": rows, "sentences": ["drop: better than plain"], **changed}))
    return path


def test_a_comparison_shows_its_spread(logged_in: Hub, made: Path, tmp_path: Path) -> None:
    push_to_hub(made / "run", REPO, PushOptions(comparison=comparison(tmp_path)))
    text = card_of(logged_in)
    assert "| drop | 3 | 1.8000e-02 ± 2.0e-03 | -2.0e-03 ± 1.0e-03 |" in text
    assert "| plain | 3 | 2.0000e-02 ± 1.0e-03 | - |" in text
    assert "| fold | 1 | 1.9000e-02 | -1.0e-03 |" in text
    assert "drop: better than plain" in text
    push_to_hub(made / "run", REPO)
    assert "drop: better" not in logged_in.store.repos[REPO].head.files["README.md"].data.decode(), (
        "it was not given again"
    )


def test_another_file_is_no_comparison(logged_in: Hub, made: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="`surgeon finetune --compare` wrote .* name that file"):
        push_to_hub(made / "run", REPO, PushOptions(comparison=comparison(tmp_path, rows=[{"arm": "plain"}])))
    assert not logged_in.requests
