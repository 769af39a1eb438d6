"""Look at every page of the built site in a browser, as a reader with a wide screen and one with a phone do.

    mkdocs build -f .mkdocs.yml --site-dir build/site
    python docs/look.py build/site

It needs Chromium and its driver on PATH, and the Python package selenium. A page fails if it scrolls sideways, if a
table is cut, or if a formula is shown as LaTeX; the site fails if a search finds nothing. It prints what failed, and
exits with status 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options

SIZES = {"wide": (1440, 900), "phone": (390, 844)}
SCHEMES = ("default", "slate")  # light and dark
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")

# What a page shows that it should not; a list of texts. A table, code or formula may scroll in its own box.
FAULTS = r"""
const faults = [], page = document.scrollingElement, width = document.documentElement.clientWidth;
if (page.scrollWidth > width) faults.push(`scrolls sideways: ${page.scrollWidth} of ${width} pixels`);
for (const table of document.querySelectorAll("article table")) {
  let box = table;
  while (box && !["auto", "scroll"].includes(getComputedStyle(box).overflowX)) box = box.parentElement;
  if (table.getBoundingClientRect().right > width + 1 && (!box || box === document.body)) {
    faults.push(`a table is cut: ${table.innerText.slice(0, 40)}`);
  }
}
const text = document.querySelector("article").innerText;
for (const raw of [".. math::", ":math:`", "formulablockx", "formulainlinex"]) {
  if (text.includes(raw)) faults.push(`shows ${raw}`);
}
return faults;
"""
SEARCH = r"""
const done = arguments[arguments.length - 1], field = document.querySelector("input.md-search__input");
document.querySelector("#__search").checked = true;
field.focus(); field.value = "levels"; field.dispatchEvent(new Event("input", {bubbles: true}));
field.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
let looks = 0;
const timer = setInterval(() => {
  const found = document.querySelectorAll(".md-search-result__item").length;
  if (found || ++looks > 100) { clearInterval(timer); done(found); }
}, 100);
"""


def look(site: Path) -> list[str]:
    """Return what is wrong with the pages of a site, one line for each fault."""
    options = Options()
    for option in OPTIONS:
        options.add_argument(option)
    options.add_argument("--allow-file-access-from-files")
    browser, lines = webdriver.Chrome(options=options), []
    pages = sorted(path for path in site.rglob("*.html") if path.name != "404.html")
    try:
        for name, (width, height) in SIZES.items():
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": name == "phone"}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            for path in pages:
                browser.get(path.resolve().as_uri())
                for scheme in SCHEMES:
                    browser.execute_script(f"document.body.setAttribute('data-md-color-scheme', '{scheme}')")
                    faults = browser.execute_script(FAULTS)
                    lines += [f"{path.relative_to(site)} ({name}, {scheme}): {fault}" for fault in faults]
        browser.get((site / "index.html").resolve().as_uri())
        browser.set_script_timeout(30)
        if not browser.execute_async_script(SEARCH):
            lines.append("index.html: the search finds nothing")
    finally:
        browser.quit()
    return lines


def main() -> int:
    """Look at the site that the command line names."""
    lines = look(Path(sys.argv[1]))
    print("\n".join(lines) or "every page is as it should be")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
