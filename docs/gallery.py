"""Make the pictures of docs/gallery.md: train two examples, and photograph their reports (`--photograph`: only that).

Run `make gallery`; it needs chromium and takes some minutes. What is trained lies in build/gallery.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageChops

from surgeon.report.page import DARK, LIGHT

ROOT = Path(__file__).parents[1]
OUT, PICTURES = Path("build/gallery"), Path("docs/images/gallery")
NBODY = ["examples/nbody/segnn_nbody.safetensors", "--task", "examples/nbody/task.py"]
ETHANOL = ["examples/potential/potential.safetensors", "--task", "examples/potential/task.py"]
ARMS = ["--compare", "plain@adamw,plain@soap,drop@adamw", "--seeds", "3", "--keep", "none"]
LOOKS = {"1280": (1280, False), "390": (390, True)}
"""By what names of pictures end in: width of the window in px, and whether its reader's system is dark."""
HEIGHT = 9000
"""In which every page has room, in px."""
SHADES = 3
"""Of every colour of a page, mixed with its ground: few, so that pictures are small."""

COMMANDS = [
    ["relax", *NBODY, "--group", "O3", "--dense", "-o", f"{OUT}/nbody-relaxed"],
    ["finetune", f"{OUT}/nbody-relaxed", "--epochs", "20", "--lr", "2e-3", "-o", f"{OUT}/nbody-run"],
    ["finetune", *ETHANOL, "--arm", "drop", "--epochs", "6", "--lr", "1e-2", "-o", f"{OUT}/ethanol-run"],
    ["strip", f"{OUT}/ethanol-run", "-o", f"{OUT}/ethanol-clean"],
    ["finetune", *ETHANOL, *ARMS, "--epochs", "6", "--lr", "1e-2", "-o", f"{OUT}/ethanol-compare.json"],
]
FRONT, FRONT_HEIGHT = "ethanol-run", 1440
"""Whose picture README shows, and how much of it, in px."""
REPORTS = ("nbody-run", "ethanol-run", "ethanol-clean", "ethanol-compare.json")


def main() -> None:
    """Do everything; what was made before is replaced."""
    chromium = shutil.which("chromium") or sys.exit("expected chromium, which is not installed")
    if sys.argv[1:] != ["--photograph"]:
        shutil.rmtree(ROOT / OUT, ignore_errors=True)
        (ROOT / OUT).mkdir(parents=True)
        for words in COMMANDS:
            surgeon(*words)
    (ROOT / PICTURES).mkdir(parents=True, exist_ok=True)
    for name in REPORTS:
        page = OUT / f"{Path(name).stem}.html"
        surgeon("report", f"{OUT}/{name}", "-o", str(page), "--force")
        for ending, (width, dark) in LOOKS.items():
            photograph(chromium, page, ROOT / PICTURES / f"{page.stem}-{ending}.png", width, dark)
    with Image.open(ROOT / PICTURES / f"{FRONT}-1280.png") as opened:
        opened.crop((80, 0, opened.width - 80, FRONT_HEIGHT)).save(ROOT / "docs/images/report.png", optimize=True)


def surgeon(*words: str) -> None:
    """Run a command in the checkout, so that pages show paths inside it."""
    subprocess.run([str(Path(sys.executable).with_name("surgeon")), *words], check=True, cwd=ROOT)


def photograph(chromium: str, page: Path, target: Path, width: int, dark: bool) -> None:
    """Write a picture of a whole page, cut where it ends."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={target}"]
    options += [f"--window-size={width},{HEIGHT}", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    subprocess.run([chromium, *options, f"file://{ROOT / page}"], check=True, capture_output=True)
    with Image.open(target) as opened:
        seen = opened.convert("RGB")
    ground = Image.new("RGB", seen.size, seen.getpixel((0, seen.height - 1)))
    end = ImageChops.difference(seen, ground).getbbox()[3] + 40
    own = palette(DARK if dark else LIGHT)
    seen.crop((0, 0, width, end)).quantize(palette=own, dither=Image.Dither.NONE).save(target, optimize=True)


def palette(colours: Mapping[str, str]) -> Image.Image:
    """Return the colours of a page and their mixtures with its ground, as an image that has them."""
    ground, *others = ([int(hexed[at : at + 2], 16) for at in (1, 3, 5)] for hexed in colours.values())
    shades = [step / SHADES for step in range(1, SHADES + 1)]
    mixed = [[round(g + share * (c - g)) for g, c in zip(ground, o, strict=True)] for o in others for share in shades]
    image = Image.new("P", (1, 1))
    image.putpalette([value for colour in (ground, *mixed) for value in colour])
    return image


if __name__ == "__main__":
    main()
