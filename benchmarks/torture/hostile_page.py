"""The page with hostile names in a real browser: no dialog, no message, no request outside the file, no script run.

    python benchmarks/torture/hostile_page.py --count 40 --seed 0 --minutes 20

Each case draws names, prompts, answers and settings of a run from a list of attacks, opens its page in headless
Chromium, and does what a reader does: plays, hovers, searches, filters, pins, opens everything.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl
from campaign import Result, main

from browser import CHROMIUM, Browser
from fake_run import build
from nucleate.report.page import write_page
from nucleate.runs import load_run

TITLE = "a page of hostile names in Chromium: no dialog, no request, no script of the data"
DO = "alert(1)"
ATTACKS = (
    f"<script>{DO}</script>", f"</script><script>{DO}</script>", f"<img src=x onerror={DO}>", f"<svg/onload={DO}>",
    f"</script><img src=x onerror={DO}>", f"'\"><svg onload={DO}>",
    f"<iframe srcdoc='<script>parent.{DO}</script>'>", "<img src=http://hostile.invalid/a.png>",
    "<link rel=stylesheet href=//hostile.invalid/a.css>", f"javascript:{DO}", "<base href=http://hostile.invalid/>",
    "<meta http-equiv=refresh content='0;url=http://hostile.invalid/'>", f"<details open ontoggle={DO}>",
    f"<body onload={DO}>", f"<a href='javascript:{DO}'>x</a>", "<!--", "-->", "]]>",
    f"<math><mtext></mtext><style><img src=x onerror={DO}>", f"<!--><script>{DO}</script>-->",
    "</title></style></svg>", f"</textarea><script>{DO}</script>",
    "<style>@import '//hostile.invalid/a.css';</style>", "__proto__", "constructor", f"${{{DO}}}",
    f"{{{{constructor.constructor('{DO}')()}}}}", f"';{DO};//", f'";{DO};//', f"\\';{DO};//", "\u2028" + DO,
    "\u2029" + DO, f"&lt;script&gt;{DO}&lt;/script&gt;", f"&#60;script&#62;{DO}&#60;/script&#62;", "\u202e</x>",
    "toString", f"<ScRiPt>{DO}</sCrIpT>", f"<script\n>{DO}</script\n>", f"<input autofocus onfocus={DO}>",
    "=cmd|' /C calc'!A0", f"<object data='javascript:{DO}'>", f"<embed src='javascript:{DO}'>",
    "url(//hostile.invalid/a)", "\ufeff<b>", "%00<b>", f"<form action=javascript:{DO}><button>x</button></form>",
    f"<video><source onerror={DO}></video>", "<b>\x00</b>",
)  # fmt: skip
_RAN = "['alert', 'confirm', 'prompt', 'open', 'print'].forEach((n) => (window[n] = () => (window.__ran = n)))"
_ALL = """(() => {
  document.querySelectorAll('details').forEach((one) => (one.open = true));
  document.querySelectorAll('select').forEach((one) => {
    for (const option of [...one.options]) {
      one.value = option.value;
      one.dispatchEvent(new Event('change', {bubbles: true}));
    }
  });
  document.querySelectorAll('#legend button').forEach((one) => one.click());
})()"""


def campaign(numbers: Iterable[int], asked: argparse.Namespace) -> Iterator[Result]:
    if CHROMIUM is None:
        print("hostile_page: there is no Chromium here (apt-get install chromium), so nothing was tried")
        return
    with Browser("--disable-3d-apis") as browser:
        for number in numbers:
            rng = random.Random(f"hostile {asked.seed} {number}")
            with tempfile.TemporaryDirectory() as place:
                drawn = rng.sample(ATTACKS, 8)
                page = hostile_page(Path(place), drawn, rng)
                fault = opened(browser, page, drawn[0])
            yield Result(number, "page", f"{drawn}: {fault}" if fault else "")


def hostile_page(folder: Path, drawn: list[str], rng: random.Random) -> Path:
    """A page of a run whose every word may be an attack."""
    tasks = [f"task-{number}" for number in range(6)] + ["task-0-hard", "task-1-hard"]
    run = build(folder / "run<b>&'", layers=1, epochs=2, names=dict(zip(tasks, drawn, strict=True)))
    table = run / "data" / "dataset.parquet"
    frame = pl.read_parquet(table)
    for column in ("instruction", "input", "output", "distribution"):
        words = [rng.choice(ATTACKS) if rng.random() < 0.3 else word for word in frame[column].to_list()]
        frame = frame.with_columns(pl.Series(column, words))
    frame.write_parquet(table)
    config = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(config.replace('"small"', json.dumps(rng.choice(ATTACKS).replace("\x00", ""))))
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    told = {**manifest, "machine": rng.choice(ATTACKS), "versions": {rng.choice(ATTACKS): rng.choice(ATTACKS)}}
    (run / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
    return write_page(load_run(run), folder / "page.html")


def opened(browser: Browser, path: Path, searched: str) -> str:
    """What went wrong; nothing where the page stayed quiet."""
    try:
        page = browser.open(path)
        page.call("Page.addScriptToEvaluateOnNewDocument", source=_RAN)
        page.call("Page.reload")
        page.settle()
        page.until("document.documentElement?.dataset.ready === 'yes'")
        page(_ALL)
        page.write("#search", searched)
        page.key("Enter")
        for across in (0.2, 0.5, 0.8):
            page.mouse("Moved", *page.place("#canvas-0", across, 0.5))
            page.settle()
        page.press("#play")
        page.settle()
        page.look()
    except (AssertionError, OSError) as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    ran, made = page("window.__ran || ''"), page("document.querySelectorAll('iframe,object,embed,base,form').length")
    outside = [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))]
    faults = {"ran": ran, "elements": made, "requests": outside, "messages": page.messages}
    return json.dumps({name: fault for name, fault in faults.items() if fault}) if any(faults.values()) else ""


if __name__ == "__main__":
    main("hostile_page", TITLE, campaign, count=40)
