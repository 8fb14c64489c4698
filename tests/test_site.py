"""The site is built as `make docs` builds it: every page is listed, every link leads somewhere, nothing is fetched."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from browser import CHROMIUM, Browser

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Warnings are errors: a page that no list names, a link to nothing, an anchor that is not there."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_make_docs_builds_with_warnings_as_errors():
    rule = re.search(r"^docs: .*\n\t(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert rule and "mkdocs build --strict" in rule[1]


def test_pages_load_nothing_from_anybody(site):
    pages = [*site.rglob("*.html")]
    assert len(pages) > 25
    for page in pages:
        loaded = re.findall(
            r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="?(https?:[^" >]+)', page.read_text("utf-8")
        )
        assert not loaded, (page, loaded)


def test_links_lead_to_pages_and_pictures_or_are_left_as_text(site):
    """Also those that lead out of docs/, and those of pages from outside it."""
    probe = (site / "guides" / "probe.html").read_text(encoding="utf-8")
    assert 'href="../tables.html"' in probe and 'href="../results/probing/index.html"' in probe
    start = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="guides/probe.html"' in start and 'src="film.webp"' in start
    assert 'src="results/seeds/figures/learn-small/figure_2_clustering_f1.png"' in start
    probing = (site / "results" / "probing" / "index.html").read_text(encoding="utf-8")
    assert 'href="../../notebook.html"' in probing
    assert "<td>false_discovery.csv</td>" in probing  # which is no page, and the repository has no address yet
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for target in re.findall(r'(?:href|src)="([^"#:?]+)[#"?]', page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page, target)


def test_lists_and_options_read_as_on_github(site):
    """A list may follow its sentence at once, and a bar inside code is written with a backslash in a table."""
    assert "<li><strong>Readable</strong>" in (site / "guides" / "probe.html").read_text(encoding="utf-8")
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert len(pages) > 15 and not any("<p>- " in text for text in pages)
    reference = (site / "reference.html").read_text(encoding="utf-8")
    assert "<code>--kind main|alignment</code>" in reference and 'id="nucleateprobe"' in reference


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_the_search_works_from_a_folder_and_no_page_is_wider_than_a_phone(site):
    shutil.copytree(site, site.with_name("moved"), dirs_exist_ok=True)
    ready = "document.readyState === 'complete' && !!document.querySelector('.md-search__input')"
    with Browser() as browser:
        page = browser.open(site.with_name("moved") / "guides" / "act.html", ready=ready)
        page.write(".md-search__input", "mislabelled")
        page.until("document.querySelectorAll('.md-search-result__item a[href*=\"probe.html\"]').length > 0")
        page.look()
        assert not page.messages and all(one.startswith(("file:", "data:", "about:")) for one in page.requests)
        for name in ("index", "findings", "reference", "neighbours"):
            narrow = browser.open(site / f"{name}.html", 390, 800, ready=ready)
            assert narrow("document.documentElement.scrollWidth") <= 390, name
