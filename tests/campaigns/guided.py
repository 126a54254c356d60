"""``make fuzz ARGS="--guided NAME"``: one reader attacked by atheris, which keeps what reaches lines that are new.

It goes on for a minute, or for as many seconds as are given; what is found is written beside as ``crash-...``, and
belongs into :mod:`tests.campaigns.crashers` once it is mended.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from tests.campaigns.work import furnish, here


def main() -> None:
    """Attack the reader that is named; libFuzzer ends the process."""
    import atheris  # an option, and it has to see what is imported

    with atheris.instrument_imports(include=["surgeon", "surgeon_adapters"]):
        from tests.campaigns import fuzz
        from tests.campaigns.readers import READERS, digest
    name, seconds = sys.argv[1:]
    reader, found_in = next((each for each in READERS if each.name == name), None), Path.cwd()
    if reader is None or not reader.available:
        sys.exit(f"expected one of {', '.join(each.name for each in READERS if each.available)}, got {name!r}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "work"
        folder.mkdir()
        with here(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            furnish(folder)
            before, corpus = digest(reader.read()), Path(place) / "corpus"
            corpus.mkdir()
            (corpus / "valid").write_bytes(Path(reader.file).read_bytes())

            def attack(data: bytes) -> None:
                outcome = fuzz.Outcome()
                fuzz.attacked(reader, data, before, outcome, name)
                if outcome.faults:
                    raise AssertionError(outcome.faults[0])

            options = [f"-max_total_time={seconds}", f"-artifact_prefix={found_in}/", "-timeout=20"]
            atheris.Setup(["guided", str(corpus), *options], attack)
            atheris.Fuzz()


if __name__ == "__main__":
    main()
