"""Look at every page of the built site in a browser, as a reader with a wide screen and one with a phone do.

    mkdocs build -f .mkdocs.yml --site-dir build/site
    python docs/look.py build/site

It needs Chromium and its driver on PATH, and the Python package selenium. A page fails if it scrolls sideways, if a
table is cut, or if a formula is shown as LaTeX; the site fails if a search finds nothing. It prints what failed, and
exits with status 1.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.ui import WebDriverWait

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


def look(site: Path) -> list[str]:
    """Return what is wrong with the pages of a site, one line for each fault."""
    options = Options()
    for option in OPTIONS:
        options.add_argument(option)
    driver = shutil.which("chromedriver")
    if driver is None:
        sys.exit("chromedriver is not on PATH")
    browser, lines = webdriver.Chrome(options, Service(driver)), []
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
        if not finds(browser, site / "index.html"):
            lines.append("index.html: the search finds nothing")
    finally:
        browser.quit()
    return lines


def finds(browser: webdriver.Chrome, page: Path) -> bool:
    """Return whether the search of a page finds a word that many pages have, as a reader types it."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.set_window_size(*SIZES["wide"])
    browser.get(page.resolve().as_uri())
    wait = WebDriverWait(browser, 20)
    try:
        field = wait.until(expected.element_to_be_clickable((By.CSS_SELECTOR, "input.md-search__input")))
        field.click()
        field.send_keys("levels")
        wait.until(expected.presence_of_element_located((By.CSS_SELECTOR, ".md-search-result__item")))
    except TimeoutException:
        return False
    return True


def main() -> int:
    """Look at the site that the command line names."""
    lines = look(Path(sys.argv[1]))
    print("\n".join(lines) or "every page is as it should be")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
