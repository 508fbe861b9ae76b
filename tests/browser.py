"""A real browser without a window: what a page becomes in it."""

from __future__ import annotations

import shutil
import subprocess
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
