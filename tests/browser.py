"""A real browser without a window: what a page becomes in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def find_browser() -> str | None:
    """The first chromium on the path."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def browse(browser: str, page: Path, folder: Path, *options: str) -> str:
    """Open a page in a profile of its own, and return what the browser prints."""
    command = [browser, *QUIET, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@dataclass(frozen=True)
class Place:
    """An element of a page as the browser has laid it out: the text that it shows, its box in pixels from the page's corner."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom, as Pillow crops; all zero for what is hidden."""
        return self.left, self.top, self.right, self.bottom


ASKED = """<script>
document.title = JSON.stringify([...document.querySelectorAll(%s)].map(found => {
  const box = found.getBoundingClientRect();
  return [found.innerText, box.left, box.top, box.right, box.bottom];
}));
</script></body>"""


def places(browser: str, page: Path, folder: Path, selector: str, *options: str) -> list[Place]:
    """Return all elements of a page that a CSS selector finds, asked of the browser by a script at the page's end."""
    copy = folder / f"asked-{page.name}"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", ASKED % json.dumps(selector)), encoding="utf-8")
    (title,) = re.findall(r"<title>(.*?)</title>", browse(browser, copy, folder, *options, "--dump-dom"))
    return [Place(*found) for found in json.loads(unescape(title))]
