"""The README is short, and what it says and shows is what the results hold."""

import json
import re
from pathlib import Path

import nucleate
from nucleate.data.dataset import load_dataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
COUNTS += ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")


def test_the_readme_has_at_most_seven_hundred_words():
    """All that stands between blanks counts: tables, code and links too."""
    assert 300 < len(README.split()) <= 700


def test_the_readmes_tally_is_that_of_the_claims():
    told = {}
    text = " ".join(README.split())
    for width in ("256", "32"):
        words = re.search(
            rf"at width {width},? of (\w+),?(?: claims)? (\w+) holds?, (\w+) fail and (\w+) are", text, re.I
        )
        assert words, width
        told[width] = [COUNTS.index(word) for word in words.groups()]
    judged = json.loads((ROOT / "results" / "first-ledger" / "claims.json").read_text(encoding="utf-8"))
    for width, size in (("256", "small"), ("32", "narrow")):
        verdicts = [row["verdict"] for row in judged if is_told_of(row, size)]
        assert told[width] == [len(verdicts), *(verdicts.count(one) for one in ("holds", "fails", "undecided"))]


def is_told_of(row: dict[str, str], size: str) -> bool:
    """By rows, but for the applications, which were run packed."""
    runs = f"{row['size']} {row.get('law', '')}"
    return runs.startswith(size) and ("rows" in runs or row["claim"] in ("C16", "C17", "C18"))


def test_the_output_in_the_readme_is_that_of_the_run_in_the_results():
    shown = README.partition("<!-- output -->")[2].split("```")[1].split()
    printed = str(nucleate.load_probe(ROOT / "results" / "probe-smollm2" / "shared")).split()
    assert len(shown) > 40 and printed[: len(shown)] == shown


def test_the_readmes_rows_of_speed_are_measured_ones():
    measured = (ROOT / "results" / "speed.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| ([\d.]+) \|$", README, re.MULTILINE)
    assert len(rows) == 3
    for times in rows:
        assert f"**{times}**" in measured


def test_the_readmes_python_runs(tmp_path, micro_run, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my-model").symlink_to(micro_run / "checkpoints" / "best")
    prompts = load_dataset(micro_run / "data").frame().select("instruction", "input", "output", label="task")
    prompts.write_ndjson("prompts.jsonl")
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert "held-out" in capsys.readouterr().out
