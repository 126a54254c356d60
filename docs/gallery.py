"""Make the pictures of docs/gallery.md: train two examples, and photograph their reports.

Run `make gallery`; it needs chromium and takes some minutes. What is trained lies in build/gallery.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageChops

ROOT = Path(__file__).parents[1]
OUT, PICTURES = Path("build/gallery"), Path("docs/images/gallery")
NBODY = ["examples/nbody/segnn_nbody.safetensors", "--task", "examples/nbody/task.py"]
ETHANOL = ["examples/potential/potential.safetensors", "--task", "examples/potential/task.py"]
WIDTHS = {1280: 5500, 390: 8000}
"""Of windows, in px, and heights in which every page has room."""

COMMANDS = [
    ["relax", *NBODY, "--group", "O3", "--dense", "-o", f"{OUT}/nbody-relaxed"],
    ["finetune", f"{OUT}/nbody-relaxed", "--epochs", "20", "--lr", "2e-3", "-o", f"{OUT}/nbody-run"],
    ["finetune", *ETHANOL, "--arm", "drop", "--epochs", "6", "--lr", "1e-2", "-o", f"{OUT}/ethanol-run"],
]
REPORTS = ("nbody-run", "ethanol-run")


def main() -> None:
    """Do everything; what was made before is replaced."""
    chromium = shutil.which("chromium") or sys.exit("expected chromium, which is not installed")
    shutil.rmtree(ROOT / OUT, ignore_errors=True)
    (ROOT / OUT).mkdir(parents=True)
    (ROOT / PICTURES).mkdir(parents=True, exist_ok=True)
    for words in COMMANDS:
        surgeon(*words)
    for name in REPORTS:
        page = OUT / f"{name}.html"
        surgeon("report", f"{OUT}/{name}", "-o", str(page))
        for width in WIDTHS:
            photograph(chromium, page, width)


def surgeon(*words: str) -> None:
    """Run a command in the checkout, so that pages show paths inside it."""
    subprocess.run([sys.executable, "-m", "surgeon_cli.main", *words], check=True, cwd=ROOT)


def photograph(chromium: str, page: Path, width: int) -> None:
    """Write a picture of a whole page, cut where it ends."""
    target = ROOT / PICTURES / f"{page.stem}-{width}.png"
    window = f"--window-size={width},{WIDTHS[width]}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", window, f"--screenshot={target}"]
    subprocess.run([chromium, *options, f"file://{ROOT / page}"], check=True, capture_output=True)
    with Image.open(target) as opened:
        seen = opened.convert("RGB")
    ground = Image.new("RGB", seen.size, seen.getpixel((0, seen.height - 1)))
    end = ImageChops.difference(seen, ground).getbbox()[3] + 40
    seen.crop((0, 0, width, end)).quantize(48).save(target, optimize=True)


if __name__ == "__main__":
    main()
