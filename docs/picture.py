"""Draw docs/report.png, the verdict and the table of a study's page, in a browser (`make picture`).

The study takes a few minutes on JAX. The environment variable CHROMIUM names the browser; the default is the browser
that `playwright install chromium` has installed.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

STUDY = ["diabetes", "--corrupt-targets", "0.2", "--seeds", "30"]
PICTURE = Path(__file__).parent / "report.png"


def studied(folder):
    """Run the study, and return its page."""
    command = [sys.executable, "-m", "minimand.cli", "study", *STUDY, "--json"]
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    printed = subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True).stdout
    return Path(folder, json.loads(printed)["report"])


def draw(page):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 900, "height": 1200}, device_scale_factor=1.5)
        tab.goto(page.as_uri())
        table = tab.locator("table").first.bounding_box()
        height = table["y"] + table["height"] + 16
        tab.screenshot(path=PICTURE, clip={"x": 0, "y": 0, "width": 900, "height": height}, full_page=True)
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        draw(studied(folder))
