"""What a page of many suspects costs: its file, and how long a browser takes over it.

    python examples/benchmarks/page_cost.py --suspects 5000 --side 32 --neighbors 8

One in ten labels is a suspect; the neighbours are any samples. Pictures are in colour, in patches
with some noise, so that they take as much as photographs. The page is opened
by Chromium, without a window, and a script that is added to a copy of it takes the times: until the
rows that one sees first are laid out, for a new order, for a filter, and for a jump in the list.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import noisydml

CLASSES = 200
MEASURE = """<script>
const times = { "first rows": performance.now() };
function timed(name, action) {
  const start = performance.now();
  action();
  list.getBoundingClientRect(); // lays out what has changed
  times[name] = Math.max(times[name] ?? 0, performance.now() - start);
}
for (const order of ["given", "suggested", "score"]) {
  byId("sort").value = order;
  timed("sort", arrange);
}
for (const label of [...byId("class").options].slice(0, 20)) {
  byId("class").value = label.value;
  timed("filter", arrange);
}
byId("class").value = "";
arrange();
for (let i = 1; i <= 200; i++) {
  scroll.scrollTop = (i * 0.618 % 1) * scroll.scrollHeight;
  timed(i <= 100 ? "jump, the first 100" : "jump, the next 100", draw);
}
timed("decision", () => keys.a());
document.title = JSON.stringify(times);
for (const block of document.querySelectorAll("[type='application/json']")) block.remove();
</script></body>"""


def make_issues(suspects: int, neighbors: int) -> noisydml.LabelIssues:
    rng = torch.Generator().manual_seed(0)
    total = 10 * suspects
    given = torch.randint(CLASSES, (total,), generator=rng)
    return noisydml.LabelIssues(
        issues=torch.arange(suspects),
        score=torch.linspace(0, 0.3, total).double(),
        given_labels=given,
        suggested_labels=(given + 1) % CLASSES,
        support=torch.ones(total).double(),
        noise_rate=0.1,
        neighbors=torch.randint(total, (suspects, neighbors), generator=rng),
    )


def picture(i: int, side: int) -> np.ndarray:
    rng = np.random.default_rng(i)
    coarse = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((side // 8, side // 8, 1)))
    return (coarse * 0.9 + rng.integers(0, 12, (side, side, 3))).astype(np.uint8)


def times_in_browser(page: Path, copy: Path, chromium: str) -> dict[str, float]:
    """The page's own times in milliseconds; what the browser needs to start is not among them."""
    text = page.read_text(encoding="utf-8")
    # The page lets no other script run; the copy does.
    text = re.sub(r"<meta http-equiv[^>]*>", "", text, count=1).replace("</body>", MEASURE)
    copy.write_text(text, encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,900"]
    profile = f"--user-data-dir={copy.parent / 'profile'}"
    command = [chromium, *flags, profile, "--dump-dom", copy.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    title = re.search(r"<title>(.*?)</title>", found.stdout)
    assert title is not None, found.stderr
    times: dict[str, float] = json.loads(title[1])
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suspects", type=int, default=5000)
    parser.add_argument("--neighbors", type=int, default=8)
    parser.add_argument("--side", type=int, default=32, help="of the pictures, a multiple of 8")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    issues = make_issues(options.suspects, options.neighbors)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        start = time.perf_counter()
        issues.to_html(page, images=lambda i: picture(i, options.side))
        print(f"written in {time.perf_counter() - start:.1f} s, {page.stat().st_size / 1e6:.1f} MB")
        if chromium is None:
            parser.exit(message="no Chromium here: the browser's times are left out\n")
        measured = Path(folder) / "measured.html"
        runs = [times_in_browser(page, measured, chromium) for _ in range(options.repeats)]
        for name in runs[0]:
            print(f"{name:20s} {min(r[name] for r in runs):7.0f} to "
                  f"{max(r[name] for r in runs):.0f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
