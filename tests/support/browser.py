"""Pages in a real browser, where one is installed."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MEASURE = """<!DOCTYPE html><body>
<iframe style="border:0;width:{width}px;height:3000px" srcdoc="{page}"></iframe>
<pre></pre>
<script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement
  const broken = [...page.images].filter(image => !image.naturalWidth).length
  document.querySelector("pre").textContent = `measured ${{root.clientWidth}} ${{root.scrollWidth}} ${{broken}}`
}}</script>"""


def measured(page: str, width: int, folder: Path) -> tuple[int, int, int]:
    """Of a page shown at a width, in pixels: its inner width, the width that it needs, and how many pictures broke."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium, which is not installed here")
    path = folder / "measure.html"
    path.write_text(MEASURE.format(width=width, page=html.escape(page)), encoding="utf-8")
    options = "headless no-sandbox disable-gpu no-first-run disable-background-networking disable-sync disable-quic"
    options += (
        f" disable-component-update virtual-time-budget=5000 window-size=1600,3200 user-data-dir={folder}/profile"
    )
    done = subprocess.run(
        [browser, *(f"--{option}" for option in options.split()), "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r"measured (\d+) (\d+) (\d+)", done.stdout)
    assert found is not None, done.stderr[-2000:]
    inside, needed, broken = map(int, found.groups())
    return inside, needed, broken
