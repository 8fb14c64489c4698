"""The ledger as files: exact keys, escaped names, the same bytes from the same judgements."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from invented_claims import SURFACE, rows_of, write_run
from nucleate.claims.ledger import (
    _CONTROLS,
    LEDGER_HEADER,
    ledger_json,
    ledger_markdown,
    ledger_rows,
    not_run_line,
    short_table,
    write_ledger,
)
from nucleate.claims.table import CLAIMS
from nucleate.claims.verdicts import Judgement, judge, not_run
from nucleate.intervals import Interval
from nucleate.report.page import write_page
from nucleate.runs import load_run

HOSTILE = "<script>alert(1)</script>|`x`*b*_c_[d](http://e)\n# f\u202e$x^2$\\ &amp; "
CONTROL = "\u202e"
PACKED = '[training]\npacking = "tree"\n'


@pytest.fixture(scope="module")
def judgements(tmp_path_factory):
    """Five true learn runs, packed, one exploratory one, one pretrain run with a judged seed."""
    folder = tmp_path_factory.mktemp("ledger")
    runs = []
    for seed in (*range(5, 10), 100):
        rows = rows_of("learn", true=True, shift=0.001 * (seed % 7))
        made = write_run(folder / f"learn-{seed}", rows, verb="learn", seed=seed, settings=PACKED)
        runs.append(load_run(made))
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
    keys = [
        *("claim", "sentence", "paper", "size", "law", "judged", "exploratory", "verdict", "reason", "note", "meaning"),
        *("direction", "seeds", "primary", "threshold", "points", "controls", "difference", "difference_low"),
        *("difference_high", "estimate", "low", "high", "beside", "command"),
    ]
    assert all(list(row) == keys for row in rows)
    spoken = [claim.id for claim in CLAIMS if claim.experiment in ("learn", "pretrain") and claim.id != "C14"]
    assert [row["claim"] for row in rows] == spoken
    assert {row["verdict"] for row in rows} <= {"holds", "fails", "undefined", "undecided"}
    first = rows[0]
    assert first["seeds"] == [5, 6, 7, 8, 9]
    assert first["threshold"] < first["low"] < first["estimate"] < first["high"]
    assert (first["judged"], list(first["exploratory"])) == (True, ["100"])
    assert list(first["points"]) == list(first["controls"]) == list(first["beside"]) == ["5", "6", "7", "8", "9"]
    assert set(first["controls"]["5"]) == {*("untrained", "shuffled", "regrouped"), *SURFACE}
    assert first["law"] == "tree"


def test_json_alone_makes_the_markdown_and_the_rows_of_the_terminal(judgements, hostile):
    def read(name, value):
        by_seed = name in ("points", "controls", "beside", "exploratory")
        return (
            {int(seed): one for seed, one in value.items()} if by_seed else tuple(value) if name == "seeds" else value
        )

    told = [*judgements, hostile, replace(judgements[0], size="other", points={}, controls={}, difference=None)]
    again = [
        Judgement(**{name: read(name, value) for name, value in row.items()}) for row in json.loads(ledger_json(told))
    ]
    assert again == told
    assert ledger_markdown(again, not_run(again)) == ledger_markdown(told, not_run(told))
    assert ledger_rows(again) == ledger_rows(told)


def test_the_law_of_batches_is_named_where_a_network_was_trained(tmp_path, hostile):
    """Runs of another law are a group of their own, in words; a probe's model was not trained here."""
    runs = []
    for law, settings in (("tree", PACKED), ("rows", PACKED.replace("tree", "rows"))):
        made = write_run(tmp_path / law, rows_of("learn", true=True), verb="learn", seed=5, settings=settings)
        runs.append(load_run(made))
    found = judge(runs, CLAIMS[:1])
    assert {one.law for one in found} == {"rows", "tree"}
    text, lines = ledger_markdown(found, []), ["  ".join(row) for row in ledger_rows(found)]
    for words in ("small, by rows", "small, packed"):
        assert f"### C1, {words}" in text
        assert any(words in line for line in lines)
    assert "packing" not in "".join(lines)
    assert hostile.law is None


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
        assert one.meaning.split("'")[0] in section
        for seed, point in one.points.items():
            assert re.search(rf"\| {seed} \| {re.escape(f'{point:.3f}'[:4])}", section) or abs(point) >= 2
    assert "high F1 score of over 0.9" in text
    assert "| seed | quantity | untrained | shuffled | regrouped | surface\\_instruction | surface\\_prompt |" in text
    assert "**holds**" in text
    assert "Shown, not judged: " in text and "(seed 100)" in text
    assert text.index("## Not run") < text.index("- C15. Open language models") < text.index("- C18a. Every alignment")


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
    text, lines = ledger_markdown(found, []), [row for row in ledger_rows(found) if row[3]]
    assert "**holds**" not in text
    assert text.count("*exploratory*") >= 2 * len(found)
    assert len(lines) == len(found) and {row[3] for row in lines} == {"not judged"}
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
    cells = "".join(cell for row in ledger_rows([hostile]) for cell in row)
    assert CONTROL not in cells and "\n" not in cells
    assert json.loads(ledger_json([hostile]))[0]["size"] == hostile.size
    paths = write_ledger([hostile], [], tmp_path)
    (svg,) = [path for path in paths if path.suffix == ".svg"]
    assert not ET.parse(svg).getroot().findall(".//{http://www.w3.org/2000/svg}script")


def test_a_command_with_backticks_stays_inside_its_block(hostile):
    text = ledger_markdown([replace(hostile, command="a ``` b\n````c")], [])
    fence = re.search(r"^(`{3,})sh$", text, flags=re.MULTILINE)
    assert fence is not None and len(fence[1]) == 5
    assert "a ``` b ````c" in text


def test_the_terminal_has_the_words_of_each_claim_beside_its_judgements(judgements):
    """The claim's words, what is measured and its bar run on below each other; no names of variables or settings."""
    rows = ledger_rows(judgements)
    assert all(len(row) == len(LEDGER_HEADER) for row in rows)
    assert [row[0][:5].strip() for row in rows if row[0][:5].strip()] == [one.claim for one in judgements]
    words = " ".join(row[0][5:].strip() for row in rows)
    assert all(one.sentence in " ".join(words.split()) for one in judgements)
    first = rows[0]
    assert (first[2], first[3]) == ("small, packed", "seen")
    assert first[4:] == ("0.96", "0.45 n-grams")
    assert " ".join(row[1] for row in rows[:3]) == "F1 of clusters against tasks, late in training: above 0.9"
    assert "_" not in "".join(cell for row in rows for cell in row)
    assert next(row for row in rows if row[0].startswith("C16"))[3] == "one seed only"
    widths = [max(len(row[column]) for row in [LEDGER_HEADER, *rows]) for column in range(len(LEDGER_HEADER))]
    assert sum(widths) + 2 * (len(widths) - 1) <= 120
    assert not_run_line(not_run(judgements)) == "not run: C14, C15, C18a, C18b, C18c, C18d"


def test_the_terminal_says_what_was_seen_and_why_nothing_can_be_said(judgements):
    one = judgements[0]
    five = range(5)
    for changes, said in (
        ({"verdict": "holds"}, "seen"),
        ({"verdict": "fails"}, "not seen"),
        ({"verdict": "undecided", "points": {seed: 0.8 + 0.1 * seed for seed in five}}, "seeds disagree"),
        ({"verdict": "undecided"}, "undecided"),
        ({"verdict": "undecided", "points": {seed: 0.95 for seed in range(4)}}, "4 seeds only"),
        ({"verdict": "undecided", "points": {3: 0.95}}, "one seed only"),
        ({"verdict": "undecided", "judged": False}, "not judged"),
        ({"verdict": "undecided", "points": {}}, "cannot be told"),
    ):
        points = changes.get("points", one.points)
        controls = {seed: {"untrained": 0.1} for seed in points}
        assert ledger_rows([replace(one, **{"controls": controls, **changes})])[0][3] == said
    ahead = {seed: {"untrained": 0.9 if seed else 0.99} for seed in five}
    apart = replace(one, verdict="undecided", controls=ahead, points=dict.fromkeys(five, 0.95))
    assert ledger_rows([apart])[0][3] == "seeds disagree"


def test_every_control_and_quantity_has_plain_words():
    assert {name for claim in CLAIMS for name in claim.controls} == set(_CONTROLS)
    for claim in CLAIMS:
        words = " ".join(claim.primary.__doc__.split()).partition(". ")[0]
        assert len(words) <= 70 and "_" not in words, claim.id


def test_numbers_of_a_document_are_rounded_once(judgements):
    """-0.2747 is -0.27, although it is -0.275 with three decimals, and that would be -0.28."""
    one = replace(judgements[0], estimate=0.63651, low=0.5, high=0.8465, difference=-0.2747, verdict="fails")
    *_, row = short_table({"narrow": [one], "small": [replace(one, estimate=None)], "paper": []})[:-1]
    assert row.endswith("| fails 0.64 [0.50, 0.85]; -0.27 | – | – |")
    assert "| -0.275 [" in ledger_markdown([one], [])
    *_, row = short_table({"narrow": [replace(one, difference=0.1648, verdict="holds")]})[:-1]
    assert row.endswith("; +0.16 |") and "| **holds** 0.64" in row
    with pytest.raises(ValueError, match="2 groups of the runs of 'narrow'"):
        short_table({"narrow": [one, one]})


def test_the_page_shows_the_ledger_of_an_earlier_version(judgements, tmp_path):
    """Which had ten keys, and its sentences in the Markdown beside."""
    keys = ("claim", "size", "verdict", "seeds", "primary", "threshold", "estimate", "low", "high", "command")
    rows = json.loads(ledger_json(judgements))
    run = load_run(write_run(tmp_path / "run", rows_of("learn", true=True), verb="learn", seed=0))
    pages = []
    for told in ([{key: row[key] for key in keys} for row in rows], rows):
        (tmp_path / "claims.json").write_text(json.dumps(told))
        pages.append(write_page(run, tmp_path / "page.html").read_text(encoding="utf-8"))
    old, new = pages
    assert "<td>C1</td>" in old and judgements[0].sentence not in old
    first = judgements[0]
    assert "<td>late f1 subset</td>" in old and "<td>late f1 subset</td>" not in new
    assert "<td>F1 of clusters against tasks, late in training</td>" in new and "<td>above 0.9</td>" in new
    assert f"<td>C1. {first.sentence}</td>" in new and ">difference</button>" in new
    assert f"<td>{Interval(first.estimate, first.low, first.high)}</td>" in new
    assert f"<td>{Interval(first.difference, first.difference_low, first.difference_high)}</td>" in new
    assert ">difference</button>" not in old


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
    for label in ("threshold", "judged seed", "exploratory", "regrouped", "surface prompt", "answers", "holds"):
        assert label in words


def test_without_a_point_there_is_no_figure(judgements, tmp_path):
    empty = replace(judgements[0], points={}, exploratory={}, controls={})
    assert [path.name for path in write_ledger([empty], [], tmp_path)] == ["claims.json", "claims.md"]


def test_nothing_given_lists_every_claim_as_not_run():
    text = ledger_markdown([], not_run([]))
    assert all(f"- {claim.id}. " in text for claim in CLAIMS)


def test_drawing_the_ledger_loads_no_torch():
    check = "import nucleate.claims.ledger, sys; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
