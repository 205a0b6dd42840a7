"""A report's page in a browser without a window."""

import json
import re
import shutil
import subprocess

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PROBE = """<script>
window.problems = [];
addEventListener("error", (e) => problems.push(e.message || e.target.outerHTML), true);
const complain = console.error;
console.error = (...words) => { problems.push(words.join(" ")); complain(...words); };
addEventListener("load", () => {
  const table = [...document.querySelectorAll("table")].find(
    (one) => one.caption.textContent.trim() === "All networks");
  const column = [...table.tHead.rows[0].cells].findIndex(
    (cell) => cell.textContent.includes("parameters"));
  const read = () => [...table.tBodies[0].rows].map(
    (row) => Number(row.cells[column].dataset.value));
  const button = table.tHead.rows[0].cells[column].querySelector("button");
  button.click(); const up = read(); button.click(); const down = read();
  location.hash = document.querySelector("details[id]").id;
  setTimeout(() => {
    parent.postMessage(JSON.stringify({
      problems, up, down,
      images: [...document.images].map((one) => one.naturalWidth),
      dark: [...document.images].every((one) => one.currentSrc.includes("-dark")),
      width: document.documentElement.scrollWidth, window: innerWidth,
      opened: document.querySelector("details[id]").open,
      overlapping: [...document.querySelectorAll("figure")].some(
        (one) => one.scrollWidth > one.clientWidth + 1),
    }), "*");
  }, 50);
});
</script>"""
# A browser's own window is never as narrow as a phone.
FRAME = """<body><script>
addEventListener("message", (e) => { document.body.dataset.found = e.data; });
</script><iframe src="probe.html" width="WIDTH" height="900" style="border: 0">
</iframe>"""


def look(report, folder, width, dark):
    """Returns what a page's scripts, tables and pictures come to.

    Args:
        report: the folder of the page.
        folder: an empty one, for a copy of it.
        width: of the window, in pixels.
        dark: whether the user prefers dark colours.
    """
    out = shutil.copytree(report, folder / "report")
    text = (out / "index.html").read_text()
    (out / "probe.html").write_text(text.replace("<head>", f"<head>{PROBE}", 1))
    (out / "frame.html").write_text(FRAME.replace("WIDTH", f"{width}"))
    command = [
        *(CHROMIUM, "--headless", "--disable-gpu", "--no-sandbox", "--no-first-run"),
        *("--proxy-server=127.0.0.1:9", f"--user-data-dir={folder / 'user'}"),
        *("--window-size=1400,1000", "--virtual-time-budget=4000"),
        *(("--blink-settings=preferredColorScheme=0",) if dark else ()),
        *("--dump-dom", (out / "frame.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found[1].replace("&quot;", '"'))
