"""The front page of the report as a small PNG for the README, made by a headless Chromium.

From the repository's root, after the page or the committed records changed::

    python -m reports.screenshot            # renders reports/records and writes reports/screenshots/h100.png

It needs Playwright's Python package, Pillow (which comes with matplotlib) and an installed Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.errors import MissingDependency

RECORDS = Path("reports/records")
OUT = Path("reports/screenshots/h100.png")
WIDTH, HEIGHT = 1280, 900
#: Colours kept: text on few tones needs no more, and the file stays under 300 KB.
COLOURS = 128
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def shoot(page: Path, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """The top of a page in the light theme.

    Args:
        page: an HTML file.
        width: of the window, pixels.
        height: of the window, pixels.

    Returns:
        A PNG.

    Raises:
        MissingDependency: Playwright or Chromium is missing.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise MissingDependency("a screenshot needs the package playwright: pip install playwright.") from error
    browser_path = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if browser_path is None:
        raise MissingDependency(
            f"a screenshot needs one of {', '.join(CHROMIUM)} on PATH (Debian: apt-get install chromium)."
        )
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        opened.goto(page.resolve().as_uri())
        taken: bytes = opened.screenshot()
        browser.close()
    return taken


def smaller(png: bytes, colours: int = COLOURS) -> bytes:
    """The same picture with a palette of ``colours``."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(colours, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Render the records into a temporary folder and keep the top of the front page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--from", dest="source", type=Path, default=RECORDS, help="records to render")
    parser.add_argument("--out", type=Path, default=OUT, help="PNG to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "harness", "report", "--from", str(given.source), "--out", folder]
        subprocess.run(command, check=True)
        try:
            png = smaller(shoot(Path(folder) / "index.html"))
        except MissingDependency as error:
            sys.exit(f"screenshot: {error}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_bytes(png)
    print(f"{given.out}: {len(png) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
