"""Report pages in a real browser, on a desk and on a phone: `make test-report`.

The browser is Chromium, headless: CHROMIUM names it, or it is found by one of its usual names.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import latentq
from conftest import paint

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (1440, 390)
MOST_BYTES = 5 << 20

# The page is opened in a frame, as a browser's window may have a smallest width. Charts and tables may scroll in
# themselves, and the page may not.
FRAME = """<!doctype html><title>frame</title><iframe id=page width={width} height=900 src="{page}"></iframe>
<script>
const frame = document.getElementById("page");
const overlap = axis => {{
  const boxes = [...axis.querySelectorAll("text")].filter(text => text.textContent)
    .map(text => text.getBoundingClientRect()).sort((a, b) => a.left - b.left);
  return boxes.some((box, index) => index && boxes[index - 1].right > box.left);
}};
frame.onload = () => {{
  const root = frame.contentDocument.documentElement;
  const pictures = [...frame.contentDocument.images];
  for (const details of frame.contentDocument.querySelectorAll("details")) details.open = true;
  document.body.dataset.found = JSON.stringify({{
    width: root.clientWidth, needed: root.scrollWidth, height: root.scrollHeight,
    pictures: pictures.length, broken: pictures.filter(p => p.complete && !p.naturalWidth).length,
    charts: frame.contentDocument.querySelectorAll("svg").length,
    overlaps: [...frame.contentDocument.querySelectorAll(".axis.x")].filter(overlap).length,
  }});
}};
</script>"""


@pytest.fixture(scope="session")
def chromium():
    """The browser's program."""
    named = os.environ.get("CHROMIUM")
    found = next(filter(None, map(shutil.which, [named] if named else BROWSERS)), None)
    if found is None:
        pytest.exit(f"no browser ({named or ', '.join(BROWSERS)}): install Chromium, or name it by CHROMIUM=", 1)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A thousand pictures in three class folders with captions, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("browser") / "photos"
    for index in range(1000):
        path = folder / ["ant", "bee", "cat"][index % 3] / f"{index:04}.jpg"
        paint(path, index, (90 + index % 50, 70 + index % 71))
        path.with_suffix(".txt").write_text(" ".join(["word"] * (index % 30 + 1)))
    (folder / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\x00")
    (folder / "ant" / f"{'long' * 40}.jpg").write_bytes(b"\xff\xd8\xff\x01")
    return folder


def images(source, out, _):
    latentq.encode(source, out, autoencoder="dct-f8c16", size=64, captions="txt")
    return {"source": source}


def buckets(source, out, _):
    latentq.encode(source, out, autoencoder="dct-f8c16", buckets=[[64, 64], [64, 96], [72, 64]])
    return {"source": source}


def tokens(source, out, fixture):
    model = fixture("tiny_vq")
    latentq.encode(source, out, autoencoder=model, size=32, store="tokens")
    return {"source": source, "autoencoder": model}


def moments(source, out, fixture):
    model = fixture("tiny_vae")
    latentq.encode(source, out, autoencoder=model, size=32, store="moments")
    return {"source": source, "autoencoder": model}


def text(source, out, fixture):
    encoder = fixture("tiny_clip")
    latentq.encode(
        source, out, autoencoder="dct-f8c16", size=64, captions="txt", text_encoder=encoder, pooled=True
    )  # fmt: skip
    return {"source": source}


@pytest.fixture(scope="module", params=[images, buckets, tokens, moments, text], ids=lambda make: make.__name__)
def page(request, source, tmp_path_factory):
    """A report on a dataset of a kind."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    options = request.param(source, folder / "out", request.getfixturevalue)
    latentq.report(folder / "out", folder / "report.html", **options)
    return folder / "report.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_its_window_and_has_no_error(page, width, chromium, tmp_path):
    assert page.stat().st_size < MOST_BYTES
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width, page=page.as_uri()))
    command = [
        chromium, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=10000",
        f"--window-size={width + 40},1000",
    ]  # fmt: skip
    shown = subprocess.run([*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in shown.stderr, shown.stderr
    data = re.search(r'data-found="([^"]*)"', shown.stdout)
    assert data is not None, f"{shown.stdout[:2000]}\n{shown.stderr[-2000:]}"
    found = json.loads(data[1].replace("&quot;", '"'))
    assert found["width"] <= width
    assert found["needed"] <= found["width"]
    assert found["pictures"] > 0
    assert found["broken"] == 0
    assert found["overlaps"] == 0  # of the labels of a chart's horizontal axis
    assert found["charts"] > 0
    if pictures := os.environ.get("SCREENSHOTS"):  # a folder, to look at the pages
        picture = Path(pictures).resolve() / f"{page.parent.name.rstrip('0123456789')}-{width}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        frame.write_text(
            FRAME.format(width=width, page=page.as_uri()).replace("height=900", f"height={found['height']}")
        )
        sizes = f"--window-size={width + 40},{min(found['height'] + 40, 16000)}"
        subprocess.run(
            [*command[:-1], sizes, f"--screenshot={picture}", frame.as_uri()], capture_output=True, timeout=120
        )
