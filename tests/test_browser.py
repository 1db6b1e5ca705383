"""Pages opened in a browser: every picture is decoded, nothing is fetched, nothing is wider than the window."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import gradsurgery as gs
from gradsurgery.diagnostics.page import Section, page, picture, table
from gradsurgery.diagnostics.pictures import (
    draw_front,
    draw_layers,
    draw_pairs,
    draw_time,
    draw_trade_off,
    draw_weights,
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (1280, 400)
DARK = "--blink-settings=preferredColorScheme=0"
# Each page is in a frame as wide as a window, and this looks into it.
HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body>FRAMES<pre id="found"></pre><script>
function coloured(image) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const dots = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0, clear = 0;
  for (let at = 0; at < dots.length; at += 4) {
    const own = [dots[at], dots[at + 1], dots[at + 2]];
    count += Math.max(...own) - Math.min(...own) > 40;
    clear += dots[at + 3] < 255;
  }
  // Dots at the edge may be covered in part.
  return {width: canvas.width, coloured: count, opaque: clear < 0.02 * dots.length / 4};
}
addEventListener("load", async () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const inside = frame.contentDocument, root = inside.documentElement, images = [...inside.images];
    await Promise.all(images.map(image => image.decode().catch(() => null)));
    found.push({
      heading: inside.querySelector("h1").textContent,
      headings: [...inside.querySelectorAll("h2")].map(own => own.textContent),
      broken: images.filter(image => !image.naturalWidth).length,
      images: images.filter(image => image.naturalWidth).map(coloured),
      narrowest: Math.min(...images.map(image => image.getBoundingClientRect().width)),
      fetched: frame.contentWindow.performance.getEntriesByType("resource").map(own => own.name),
      width: root.clientWidth,
      needed: root.scrollWidth,
      background: frame.contentWindow.getComputedStyle(inside.body).backgroundColor,
      behind: images.map(image => frame.contentWindow.getComputedStyle(image).backgroundColor),
    });
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body>"""


def opened(pages: list[tuple[str, int]], folder: Path, *flags: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What a browser finds in pages at some widths, and what it wrote on its console."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium on the path: pages were not opened in a browser")
    frames = "".join(
        f'<iframe srcdoc="{html.escape(text)}" style="width: {width}px; height: 800px; border: 0"></iframe>'
        for text, width in pages
    )
    (folder / "harness.html").write_text(HARNESS.replace("FRAMES", frames), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--hide-scrollbars", "--virtual-time-budget=30000", "--enable-logging=stderr", *flags]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", (folder / "harness.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL) or [""]
    assert found, f"the browser gave no result: {done.stderr[-2000:]}"
    return json.loads(html.unescape(found)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def pictures_page() -> str:
    """All six pictures and a table, with names that are hard to write."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(40, 4, 3, generator=generator), dim=-1)
    cosines, names = rows @ rows.mT, ["depth", "$x_1^2$", "<b>&", "a name that is very long " * 3]
    values = torch.rand(3, 4, generator=generator)
    figures = {
        "pairs": draw_pairs(cosines[0], names, shares=cosines[1].abs()),
        "layers": draw_layers(cosines, [f"encoder.layers.{index}.weight" for index in range(40)], names),
        "time": draw_time(torch.arange(40), cosines, names),
        "weights": draw_weights(torch.arange(40), cosines[:, 0] + 2, names),
        "trade-off": draw_trade_off({"upgrad": 20 * values - 10, "mgda": 20 * values}, names),
        "front": draw_front({"sum": values[:, :2], "upgrad": values[:, 2:]}, ["left", "right"]),
    }
    sections = [Section(name, name, f"The picture of {name}.", picture(own, name)) for name, own in figures.items()]
    header = ["a column of words", *(f"column {index}" for index in range(12))]
    sections.append(Section("table", "table", "", table(header, [["a row", *range(100_000, 100_012)]])))
    return page("All of them", "<pre>a line that is far too long</pre>".replace(" far", " far" * 60), sections)


class Tasks(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
        self.heads = torch.nn.ModuleList([torch.nn.Linear(4, 1) for _ in range(2)])


def losses(model: Tasks, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    shared = model.trunk(batch)
    return {name: (head(shared) - batch[:, :1]).square().mean() for name, head in zip("ab", model.heads, strict=True)}


def reports(folder: Path) -> list[str]:
    """The reports of a diagnosis and of a training."""
    torch.manual_seed(0)
    model, batches = Tasks(), [torch.randn(8, 3) for _ in range(4)]
    gs.diagnose(model, losses, batches, costs=False).report(folder / "diagnosis.html")
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.named_parameters(), lr=0.1), gs.UPGrad())
    monitor = gs.ConflictMonitor(optimizer, every=1, scope="module")
    for batch in batches:
        optimizer.zero_grad()
        optimizer.backward(losses(model, batch))
        optimizer.step()
    monitor.history.report(folder / "history.html")
    return [(folder / name).read_text(encoding="utf-8") for name in ("diagnosis.html", "history.html")]


def test_pages_render_and_need_nothing(tmp_path: Path) -> None:
    written = [pictures_page(), *reports(tmp_path)]
    found, console = opened([(text, width) for text in written for width in WIDTHS], tmp_path)
    assert console == []
    for index, own in enumerate(found):
        text = written[index // len(WIDTHS)]
        assert own["width"] == WIDTHS[index % len(WIDTHS)]
        assert own["needed"] <= own["width"], own["heading"]
        assert own["broken"] == 0
        assert own["fetched"] == []
        assert len(own["images"]) == text.count("<img ") > 0
        for image in own["images"]:
            assert image["coloured"] > 100
            assert image["opaque"]
        assert own["narrowest"] > 380  # legible also in a narrow window, where it scrolls in its own frame
        assert own["background"] == "rgb(255, 255, 255)"
    assert len(found[0]["images"]) == 6
    assert found[0]["headings"] == ["pairs", "layers", "time", "weights", "trade-off", "front", "table"]


def test_dark_pages_and_what_the_harness_would_notice(tmp_path: Path) -> None:
    faulty = (
        '<img alt="" src="data:image/svg+xml,<svg"><img alt="" src="https://gradsurgery.invalid/x.png">'
        '<div style="width: 3000px">wide</div>'
    )
    shown = page("Dark", "", [Section("a", "A", "", picture(draw_pairs(torch.eye(2) * 2 - 1, ["a", "b"]), "pairs"))])
    (dark, broken), console = opened([(shown, 800), (page("Faulty", faulty, []), 800)], tmp_path, DARK)
    assert dark["background"] == "rgb(20, 23, 27)"
    assert dark["behind"] == ["rgb(255, 255, 255)"]
    assert dark["images"][0]["opaque"]
    assert dark["images"][0]["coloured"] > 100
    assert broken["broken"] == 2
    assert broken["needed"] >= 3000 > broken["width"]
    assert any("Content Security Policy" in line for line in console)
