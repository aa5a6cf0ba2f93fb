"""A page as a real browser shows it: headless Chromium, without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--proxy-server=127.0.0.1:9",  # whatever asks for the network is refused
)


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page.

    Attributes:
        width: Of the window, pixels.
        page_width: What the page needs; more than ``width`` means that it scrolls sideways.
        height: Of the whole page, pixels.
        images: How many there are.
        broken: Images that did not load, or take no room.
        without_text: Images without an alternative text.
        outside: Boxes that reach out of the window and do not scroll by themselves.
        requests: Addresses that were asked for besides the page itself.
    """

    width: int
    page_width: int
    height: int
    images: int
    broken: int
    without_text: int
    outside: tuple[str, ...]
    requests: tuple[str, ...]


# The page is shown in a frame of the wanted width, on the same origin, and measured when all is loaded.
_MEASURE = """<!doctype html><meta charset="utf-8"><script>
function measure(frame) {{
  const page = frame.contentDocument, images = [...page.images];
  const right = page.documentElement.clientWidth + 1;
  const scrolls = e => e && (getComputedStyle(e).overflowX === "auto" || scrolls(e.parentElement));
  const reachesOut = e => e.getBoundingClientRect().right > right && !scrolls(e);
  const requests = frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name);
  document.getElementById("seen").textContent = JSON.stringify({{
    width: page.documentElement.clientWidth,
    page_width: page.documentElement.scrollWidth,
    height: page.documentElement.scrollHeight,
    images: images.length,
    broken: images.filter(image => !image.naturalWidth || !image.clientWidth).length,
    without_text: images.filter(image => !image.alt.trim()).length,
    outside: [...page.body.querySelectorAll("*")].filter(reachesOut).map(e => e.tagName),
    requests: requests.filter(name => !name.startsWith("data:")),
  }});
}}
</script><body><pre id="seen"></pre>
<iframe onload="measure(this)" srcdoc="{page}" style="width:{width}px; height:800px; border:0"></iframe>"""


def look(path: Path, width: int) -> Seen:
    """Open a page in a window ``width`` pixels wide; skip the test where there is no Chromium."""
    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        frame.write_text(_MEASURE.format(page=html.escape(text), width=width), encoding="utf-8")
        dom = _run(
            folder,
            "--virtual-time-budget=20000",
            "--dump-dom",
            f"--window-size={width + 40},900",
            frame.as_uri(),
        )
    found = re.search('<pre id="seen">(.+?)</pre>', dom, re.DOTALL)
    assert found, f"the browser did not finish loading the page:\n{dom[-2000:]}"
    seen = json.loads(html.unescape(found[1]))
    return Seen(**{**seen, "outside": tuple(seen["outside"]), "requests": tuple(seen["requests"])})


def _run(folder: str, *arguments: str) -> str:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian's package is chromium)")
    command = [browser, *FLAGS, f"--user-data-dir={folder}/profile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
