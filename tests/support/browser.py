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
    path = folder / "measure.html"
    path.write_text(MEASURE.format(width=width, page=html.escape(page)), encoding="utf-8")
    done = _browser(folder, "--virtual-time-budget=5000", "--window-size=1600,3200", "--dump-dom", path.as_uri())
    found = re.search(r"measured (\d+) (\d+) (\d+)", done.stdout)
    assert found is not None, done.stderr[-2000:]
    inside, needed, broken = map(int, found.groups())
    return inside, needed, broken


def printed(page: str, folder: Path) -> int:
    """On how many sheets a page is printed."""
    path, pdf = folder / "print.html", folder / "print.pdf"
    path.write_text(page, encoding="utf-8")
    _browser(folder, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", path.as_uri())
    return len(re.findall(rb"/Type */Page\b", pdf.read_bytes()))


def _browser(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium, which is not installed here")
    options = "headless no-sandbox disable-gpu no-first-run disable-background-networking disable-sync disable-quic"
    options += f" disable-component-update user-data-dir={folder}/profile"
    return subprocess.run(
        [browser, *(f"--{option}" for option in options.split()), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
