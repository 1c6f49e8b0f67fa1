"""The site in a real browser: on a phone and a desk, light and dark, no page overflows or fades, or loads from away."""

import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from chromium import CHROMIUM

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")]

FAULTS = """() => {
  const article = document.querySelector("article"), width = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > width) found.push("the page is wider than its window");
  for (const image of document.images) if (!image.naturalWidth) found.push("no picture at " + image.src);

  const numbers = colour => { const n = colour.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const blend = (over, under) => under.map((u, i) => over[i] * over[3] + u * (1 - over[3]));
  const ground = e => {
    if (!e) return [255, 255, 255];
    const own = numbers(getComputedStyle(e).backgroundColor);
    return own[3] ? blend(own, ground(e.parentElement)) : ground(e.parentElement);
  };
  const linear = v => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const words = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const text = words.currentNode.data.trim(), e = words.currentNode.parentElement, style = getComputedStyle(e);
    if (!text || !e.getBoundingClientRect().width || e.closest("script, style, svg, .headerlink")) continue;
    const under = ground(e), levels = [light(blend(numbers(style.color), under)), light(under)].sort((a, b) => b - a);
    const least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    const contrast = (levels[0] + 0.05) / (levels[1] + 0.05);
    if (contrast < least) found.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)} to 1`);
  }
  return [...new Set(found)];
}"""
"""What is wrong with the page that is open; contrast by WCAG 2.1, level AA."""


class Quiet(SimpleHTTPRequestHandler):
    """Serve a folder and say nothing of it."""

    def log_message(self, format, *arguments):
        """Drop the line."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site, serve it on loopback; give its address and the paths of its pages."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("index.html"))
    yield f"http://127.0.0.1:{server.server_port}/", paths
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1440, "light"), (375, "light"), (1440, "dark")])
def test_every_page_can_be_read(site, width, scheme):
    from playwright.sync_api import sync_playwright

    address, paths = site
    found, complaints = {}, []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda asked: None if asked.url.startswith((address, "data:")) else complaints.append(asked.url)
        )
        for path in paths:
            page.goto(address + path)
            if faults := page.evaluate(FAULTS):
                found[path] = faults
        browser.close()
    assert len(paths) > 30
    assert found == {}
    assert complaints == []
