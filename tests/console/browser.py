"""Browser: Chromium, Playwright and axe-core, installed from `package-lock.json` once, below `.cache/console` (CON-24).

Nothing of the machine's own is used: no browser, no Node, no library but libc's, and no font.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from loadtest import environments
from tests.clients.environments import node
from tests.repository import ROOT

HERE = Path(__file__).parent
CACHE = ROOT / ".cache" / "console"

_FONTS = """<?xml version="1.0"?>
<fontconfig>
  <dir>{fonts}</dir>
  <cachedir>{cache}</cachedir>
  <alias binding="same"><family>monospace</family><prefer><family>JetBrains Mono</family></prefer></alias>
  <match target="pattern">
    <test name="family" compare="not_eq"><string>monospace</string></test>
    <edit name="family" mode="append_last"><string>Inter</string></edit>
  </match>
</fontconfig>
"""


def packages() -> Path:
    """The folder with the packages and, in `browser`, what runs a page."""
    folder = environments.packages(CACHE, "npm-browser", HERE, node())
    browser = folder / "browser"
    with environments.held(CACHE, "browser"):
        if not browser.exists():
            draft = folder / f"draft-{os.getpid()}"
            draft.mkdir()
            shutil.copy(HERE / "unpack.mjs", folder)
            environments.run("/usr/bin/env", f"TMPDIR={draft}", node(), folder / "unpack.mjs")
            fonts = folder / "node_modules" / "@expo-google-fonts"
            (draft / "fonts.conf").write_text(_FONTS.format(fonts=fonts, cache=browser / "fonts-cache"))
            draft.rename(browser)
    return folder


def scripts() -> Path:
    """The same folder, with this folder's scripts beside the packages, where imports are looked for."""
    folder = packages()
    with environments.held(CACHE, "browser"):
        for script in HERE.glob("*.mjs"):
            shutil.copy(script, folder)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """What a script that drives the browser is run with."""
    browser = folder / "browser"
    return {
        "HOME": str(browser),
        "PATH": os.environ["PATH"],
        "LD_LIBRARY_PATH": str(browser / "al2023" / "lib"),
        "FONTCONFIG_FILE": str(browser / "fonts.conf"),
        "CHROMIUM": str(browser / "chromium"),
    }
