"""The ledger as files: exact keys, escaped names, the same bytes from the same judgements."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from invented_claims import VERBS, rows_of, write_run
from nucleate.claims.ledger import JSON_KEYS, ledger_json, ledger_lines, ledger_markdown, write_ledger
from nucleate.claims.table import CLAIMS
from nucleate.claims.verdicts import judge, not_run
from nucleate.report.page import write_page
from nucleate.runs import load_run

HOSTILE = "<script>alert(1)</script>|`x`*b*_c_[d](http://e)\n# f\u202e$x^2$\\ &amp; "
CONTROL = "\u202e"


@pytest.fixture(scope="module")
def judgements(tmp_path_factory):
    """Five true learn runs, one exploratory one, one pretrain run with a judged seed."""
    folder = tmp_path_factory.mktemp("ledger")
    runs = []
    for seed in (*range(5), 100):
        rows = rows_of("learn", true=True, shift=0.001 * (seed % 7))
        runs.append(load_run(write_run(folder / f"learn-{seed}", rows, verb="learn", seed=seed)))
    rows = rows_of("pretrain", true=True)
    runs.append(load_run(write_run(folder / "pretrain", rows, verb="pretrain", size="small", seed=0)))
    return judge(runs)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A probe whose model bears a hostile name."""
    rows = [{**row, "model": HOSTILE} if row["model"] == "GPT-J-6B" else row for row in rows_of("probe", true=True)]
    run = load_run(write_run(tmp_path_factory.mktemp("hostile") / "run", rows, verb="probe", size="", seed=100))
    (found,) = judge([run])
    return found


def test_json_holds_exactly_the_keys_of_the_contract(judgements):
    rows = json.loads(ledger_json(judgements))
    keys = ["claim", "size", "verdict", "seeds", "primary", "threshold", "estimate", "low", "high", "command"]
    assert list(JSON_KEYS) == keys
    assert all(list(row) == keys for row in rows)
    assert [row["claim"] for row in rows] == [f"C{number}" for number in range(1, 15)] + ["C16", "C17"]
    assert {row["verdict"] for row in rows} <= {"holds", "fails", "undecided"}
    first = rows[0]
    assert first["seeds"] == [0, 1, 2, 3, 4]
    assert first["threshold"] < first["low"] < first["estimate"] < first["high"]


def test_json_has_null_where_there_is_no_interval_and_never_nan(judgements):
    lone = next(row for row in json.loads(ledger_json(judgements)) if row["claim"] == "C16")
    assert (lone["seeds"], lone["low"], lone["high"], lone["verdict"]) == ([0], None, None, "undecided")
    assert lone["estimate"] == pytest.approx(0.12)
    nothing = replace(judgements[0], estimate=None, low=None, high=None, seeds=())
    assert json.loads(ledger_json([nothing]))[0]["estimate"] is None
    with pytest.raises(ValueError, match="Out of range"):
        ledger_json([replace(judgements[0], estimate=float("nan"))])


def test_json_of_nothing_is_an_empty_list():
    assert json.loads(ledger_json([])) == []


def test_markdown_shows_the_papers_words_all_points_controls_and_verdicts(judgements):
    text = ledger_markdown(judgements, not_run(judgements))
    for one in judgements:
        section = text[text.index(f"## {one.claim}. ") :]
        assert one.reason.capitalize().split(",")[0].split(":")[0] in section
        for seed, point in one.points.items():
            assert re.search(rf"\| {seed} \| {re.escape(f'{point:.3f}'[:4])}", section) or abs(point) >= 2
    assert "high F1 score of over 0.9" in text
    assert "| seed | quantity | untrained | shuffled | regrouped | surface\\_instruction | surface\\_prompt |" in text
    assert "**holds**" in text
    assert "Shown, not judged: " in text and "(seed 100)" in text
    assert text.index("## Not run") < text.index("- C15. Open language models") < text.index("- C18. All alignments")


def test_every_table_of_the_markdown_has_as_many_cells_in_each_row(judgements, hostile):
    text = ledger_markdown([*judgements, hostile], [])
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) > len(judgements)
    for block in blocks:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1


def test_exploratory_rows_are_called_so_everywhere(tmp_path):
    runs = [
        load_run(write_run(tmp_path / str(seed), rows_of("learn", true=True), verb="learn", seed=seed))
        for seed in range(100, 105)
    ]
    found = judge(runs)
    text, lines = ledger_markdown(found, []), ledger_lines(found, [])
    assert "**holds**" not in text
    assert text.count("*exploratory*") >= 2 * len(found)
    assert len(lines) == len(found) + 1
    assert all("exploratory" in line for line in lines[1:])
    assert {row["verdict"] for row in json.loads(ledger_json(found))} == {"undecided"}
    write_ledger(found, [], tmp_path)
    page = write_page(runs[0], tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<td>exploratory</td>") == len(found)
    assert "<td>undecided</td>" not in page


def test_hostile_names_are_text_and_nothing_else(hostile, tmp_path):
    text = ledger_markdown([hostile], [])
    assert "<script" not in text.split("```")[0]
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt;\\|\\`x\\`\\*b\\*\\_c\\_\\[d\\](http://e) \\# f\\$x^2\\$\\\\ &amp;amp;"
        in text
    )
    assert CONTROL not in text
    assert not [line for line in text.splitlines() if line.startswith("# f")]
    assert CONTROL not in "".join(ledger_lines([hostile], []))
    assert "\n" not in "".join(ledger_lines([hostile], []))
    assert json.loads(ledger_json([hostile]))[0]["size"] == hostile.size
    paths = write_ledger([hostile], [], tmp_path)
    (svg,) = [path for path in paths if path.suffix == ".svg"]
    assert not ET.parse(svg).getroot().findall(".//{http://www.w3.org/2000/svg}script")


def test_a_command_with_backticks_stays_inside_its_block(hostile):
    text = ledger_markdown([replace(hostile, command="a ``` b\n````c")], [])
    fence = re.search(r"^(`{3,})sh$", text, flags=re.MULTILINE)
    assert fence is not None and len(fence[1]) == 5
    assert "a ``` b ````c" in text


def test_the_terminal_has_a_line_for_each_judgement_and_one_for_what_was_not_run(judgements):
    lines = ledger_lines(judgements, not_run(judgements))
    assert len(lines) == len(judgements) + 2
    assert lines[1].split()[:4] == ["C1", "narrow", "holds", "late_f1_subset"]
    assert lines[-1] == "not run: C15, C18"
    column = lines[0].index("primary")
    assert all(line[column - 1] == " " != line[column] for line in lines[1:-1])


def test_the_same_judgements_give_the_same_bytes(judgements, tmp_path):
    first, second = (write_ledger(judgements, not_run(judgements), tmp_path / name) for name in ("a", "b"))
    names = [str(path.relative_to(tmp_path / "a")) for path in first]
    assert names == ["claims.json", "claims.md", "figures/figure_claims.png", "figures/figure_claims.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_the_figure_has_a_panel_for_each_claim_with_its_threshold_points_and_controls(judgements, tmp_path):
    svg = write_ledger(judgements, [], tmp_path)[-1].read_text(encoding="utf-8")
    words = "".join(ET.fromstring(svg).itertext())
    for one in judgements:
        assert f"{one.claim}  {one.primary.replace('_', ' ')}" in words
    for label in ("threshold", "judged seed", "exploratory", "regrouped", "surface prompt", "layer 0", "holds"):
        assert label in words


def test_without_a_point_there_is_no_figure(judgements, tmp_path):
    empty = replace(judgements[0], points={}, aside={}, controls={})
    assert [path.name for path in write_ledger([empty], [], tmp_path)] == ["claims.json", "claims.md"]


def test_nothing_given_lists_every_claim_as_not_run():
    text = ledger_markdown([], not_run([]))
    assert all(f"- {claim.id}. " in text for claim in CLAIMS)
    assert set(VERBS) == {claim.id for claim in CLAIMS}


def test_drawing_the_ledger_loads_no_torch():
    check = "import nucleate.claims.ledger, sys; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
