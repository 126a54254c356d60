"""Errors of the Hub's client in one sentence without secrets."""

from __future__ import annotations

import pytest

from surgeon.errors import HubError
from surgeon.opening.remote.client import hub_errors, scrubbed

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {TOKEN} is bad", "token *** is bad"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("GET https://host/a?X-Amz-Signature=123&b=2 failed", "GET https://host/a failed"),
        ("https://alice:secret@host/x", "https://***host/x"),
        ("two\nlines", "two lines"),
        ("size differs ((…)=10b9&name=model.safetensors). Retry", "size differs (... Retry"),
        ("https://host/a?next=(x)", "https://host/a"),
    ],
)
def test_secrets_do_not_appear(text: str, shown: str) -> None:
    assert scrubbed(text) == shown


def test_the_original_error_is_not_shown_with_a_traceback() -> None:
    with pytest.raises(HubError) as caught, hub_errors("look"):
        raise RuntimeError(f"GET https://host?sig=1 {TOKEN}")
    assert str(caught.value) == "could not look: RuntimeError: GET https://host ***"
    assert caught.value.__suppress_context__
