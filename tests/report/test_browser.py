"""A report as headless Chromium shows it: whole figures, nothing wider than the window, colours that can be read."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from surgeon.report.write import write_report

pytest.importorskip("matplotlib", reason="matplotlib is not installed: the extra plots")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

KINDS = ("net-run", "net-compare.json", "net-clean")

LOOK = """<script>
addEventListener("load", () => {
  const painter = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = colour => { painter.fillStyle = colour; painter.fillRect(0, 0, 1, 1);
                          return [...painter.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const box = each => each.getBoundingClientRect();
  const all = (what, inside = document) => [...inside.querySelectorAll(what)];
  const root = getComputedStyle(document.documentElement);
  const colours = {};
  for (const name of ["ground", "panel", "ink", "soft", "link", "good", "bad", ...Array(6).keys()])
    colours[name] = rgb(root.getPropertyValue("--" + (Number.isInteger(name) ? "c" + name : name)));
  const seen = {width: innerWidth, content: document.documentElement.scrollWidth, colours,
    body: rgb(getComputedStyle(document.body).backgroundColor), axis: all("figure svg text").map(each =>
      rgb(getComputedStyle(each).fill)), figures: all("figure svg").map(svg => ({width: box(svg).width,
      letters: Math.min(...all("text", svg).map(each => parseFloat(getComputedStyle(each).fontSize) * box(svg).width
        / svg.viewBox.baseVal.width)),
      cut: all("text", svg).filter(each => box(each).left < box(svg).left - 1 || box(each).right > box(svg).right + 1
        || box(each).top < box(svg).top - 1 || box(each).bottom > box(svg).bottom + 1).map(each => each.textContent)})),
    unreachable: all("a, summary, .scroll").filter(each => each.tabIndex < 0).length};
  const shown = document.createElement("pre");
  shown.className = "seen-" + frameElement.id;
  shown.textContent = btoa(JSON.stringify(seen).replace(/[^ -~]/g, "?"));
  parent.document.body.append(shown);
});
</script>"""


@dataclass
class Looked:
    """What the browser measured, and its console."""

    seen: Any
    console: list[str]

    def complaints(self, figures: int, width: int) -> list[str]:
        """Return what is wrong with the page, in words."""
        seen, found = self.seen, [f"console: {line}" for line in self.console]
        if seen["width"] != width or seen["content"] > width:
            found.append(f"content is {seen['content']} px wide in a window of {seen['width']}")
        drawn = [each for each in seen["figures"] if each["width"] > 0.25 * width and each["letters"] >= 8]
        if len(drawn) != figures:
            found.append(f"figures: {seen['figures']}")
        found += [f"cut: {each['cut']}" for each in seen["figures"] if each["cut"]]
        if seen["unreachable"]:
            found.append("not by keyboard")
        colours = seen["colours"]
        for ground in (colours["ground"], colours["panel"]):
            found += [f"{n}: {contrast(colours[n], ground):.1f}" for n in TEXT if contrast(colours[n], ground) < 4.5]
        lines = [str(number) for number in range(6)]
        found += [f"line {n}" for n in lines if contrast(colours[n], colours["ground"]) < 3]
        found += ["letters of a figure" for each in seen["axis"] if contrast(each, seen["body"]) < 4.5]
        return found


TEXT = ("ink", "soft", "link", "good", "bad")


def contrast(one: list[int], other: list[int]) -> float:
    """Return the ratio of luminances, as WCAG 2 defines it."""

    def luminance(colour: list[int]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def look(pages: Mapping[str, tuple[str, int]], dark: bool, folder: Path) -> dict[str, Looked]:
    """Open copies of pages, each with a script that measures it, in frames: windows are never as narrow as a phone."""
    frames = (
        f'<iframe id="{name}" style="border: 0; width: {width}px; height: 1200px" '
        f'srcdoc="{html.escape(text.replace("</body>", f"{LOOK}</body>"))}"></iframe>'
        for name, (text, width) in pages.items()
    )
    around = '<!doctype html><meta charset="utf-8"><style>:root { color-scheme: light dark }</style><body>'
    page = folder / "looked-at.html"
    page.write_text(around + "".join(frames), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options += [
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--window-size=1600,1300",
        "--hide-scrollbars",
    ]
    options += [f"--user-data-dir={folder / 'profile'}", f"file://{page}"]
    assert CHROMIUM is not None
    done = subprocess.run([CHROMIUM, *options], capture_output=True, check=True, timeout=120)
    found = dict(re.findall(r'<pre class="seen-([^"]+)">([^<]+)</pre>', done.stdout.decode()))
    assert found.keys() == pages.keys(), done.stderr.decode()[-2000:]
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return {name: Looked(json.loads(base64.b64decode(seen)), console) for name, seen in found.items()}


@pytest.fixture(scope="module")
def pages(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    for kind in KINDS:
        write_report(made / kind, folder / kind)
    return {kind: (folder / kind).read_text(encoding="utf-8") for kind in KINDS}


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_pages_are_whole_in_a_browser(pages: dict[str, str], tmp_path: Path, width: int, dark: bool) -> None:
    for kind, looked in look({kind: (text, width) for kind, text in pages.items()}, dark, tmp_path).items():
        assert looked.complaints(pages[kind].count("<figure>"), width) == [], kind
        assert len(looked.seen["figures"]) > 0
        assert (sum(looked.seen["body"]) < 3 * 64) == dark


def test_what_is_wrong_is_seen(pages: dict[str, str], tmp_path: Path) -> None:
    text = pages["net-run"]
    wrong = text.replace("</main>", '<div style="width: 1000px">wide</div></main><script>gone()</script>')
    wrong = wrong.replace("--soft: #5a626b", "--soft: #aaaaaa").replace("loss</text>", f"{'loss' * 40}</text>")
    wrong = wrong.replace("<figure>", '<figure style="display: none">', 1).replace('tabindex="0"', 'tabindex="-1"')
    looked = look({"wrong": (wrong, 390)}, False, tmp_path)["wrong"]
    found = " ".join(looked.complaints(text.count("<figure>"), 390))
    for words in ("console: ", "px wide", "figures: ", "cut: ", "not by keyboard", "soft: 2"):
        assert words in found
