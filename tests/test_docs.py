"""The documents are run: every verb, size and README command exists and works."""

import json
import re
import shlex
from pathlib import Path

import polars as pl
import pytest

from nucleate.cli import _parser, main
from nucleate.config import SIZES, configure, describe
from nucleate.data.dataset import load_dataset
from nucleate.reference import reference

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FINDINGS = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^nucleate (.+?)(?:  +#.*)?$", README, flags=re.MULTILINE)


def verbs() -> set[str]:
    return set(next(action.choices for action in _parser()._actions if action.dest == "verb"))


def test_every_verb_and_size_stands_in_the_readme():
    """As what one types: most of them are ordinary words as well."""
    for name in verbs():
        assert re.search(rf"(^nucleate |`nucleate |`){name}\b", README, flags=re.MULTILINE), name
    for name in set(SIZES) - {"micro"}:
        assert re.search(rf"(--size |`){name}\b", README), name


def test_every_setting_has_a_row_of_its_own_in_the_paper_document_with_its_value_and_its_source():
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    settings = {key: value for key, value, _ in describe(configure("paper"))}
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)", text))
    assert named <= set(settings), named - set(settings)
    rows = [cells(row) for row in re.findall(r"^\| .*$", text, flags=re.MULTILINE)]
    told = [(key.strip("`"), value, source) for _, value, key, source in rows if key.startswith("`")]
    assert sorted(key for key, _, _ in told) == sorted(settings)
    for key, value, source in told:
        first = value.split()[0].rstrip(",;:").replace(",", "")
        assert type(settings[key])(first) == settings[key], key
        assert re.match(r"(\*\*ours\*\*: |Tables? \d|§\d)", source), key


def test_the_readme_names_no_command_that_the_tests_do_not_run():
    assert {command.split()[0] for command in COMMANDS} == verbs()


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_run(command, tmp_path, micro_run, monkeypatch):
    """At size micro, in a folder of their own; a run that a command reads is the one made for all tests."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    reads = ("report", "runs", "claims", "transfer")
    Path("runs/small").symlink_to(micro_run) if command.split()[0] in reads else None
    if command.startswith("probe"):
        Path("my-model").symlink_to(micro_run / "checkpoints" / "best")
        prompts = load_dataset(micro_run / "data").frame().select("instruction", "input", "output", label="task")
        prompts.write_ndjson("prompts.jsonl")
    words = [word if word not in SIZES else "micro" for word in shlex.split(command)]
    assert main(words) == 0


def test_files_that_documents_point_to_exist():
    pointed = {
        (document, target)
        for document in [
            ROOT / "README.md",
            ROOT / "CONTRIBUTING.md",
            *(ROOT / "docs").rglob("*.md"),
            *(ROOT / "results").rglob("*.md"),
        ]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    }
    for document, target in pointed:
        assert (document.parent / target).exists(), f"{document.name} points to {target}"
    assert {ROOT / "README.md", ROOT / "docs" / "guides" / "probe.md"} <= {document for document, _ in pointed}


def test_files_that_contributors_are_sent_to_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:src|docs|tests|results|examples)/[^`]+|\w+\.(?:toml|yml|md))`", text))
    assert len(named) > 20 and not [name for name in named if not (ROOT / name).exists()]


def test_the_first_ledger_of_the_findings_is_the_frozen_one():
    """Every verdict and number, rounded once from the numbers that the judged runs gave."""
    table = FINDINGS.partition("<!-- ledger -->")[2].partition("<!-- end")[0].strip().splitlines()
    frozen = json.loads((ROOT / "results" / "first-ledger" / "claims.json").read_text(encoding="utf-8"))
    told = 0
    for row in table[2:]:
        claim = row.strip("| ").partition(".")[0]
        packed = claim in ("C16", "C17", "C18")
        for size, cell in zip(("narrow", "small"), cells(row)[2:], strict=True):
            (one,) = [row for row in frozen if row["claim"] == claim and is_of(row["size"], size, packed)] or [None]
            if one is None or one["estimate"] is None:
                assert cell == "–"
                continue
            numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", cell.partition(";")[0])]
            decimals = 0 if abs(one["estimate"]) > 2 else 2
            assert numbers == [float(f"{one[name]:.{decimals}f}") for name in ("estimate", "low", "high")], row
            assert cell.replace("*", "").startswith(one["verdict"])
            told += 1
    assert told == 14 - 2 + 16


def is_of(words: str, size: str, packed: bool) -> bool:
    """By rows, as the first ledger says it; the applications were run packed, without naming it."""
    return words == f"{size}, training.packing=rows" or (packed and words.startswith(size))


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("| ").split("|")]


def test_every_measure_of_the_results_stands_in_the_document_of_tables():
    named = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")))
    ending = re.compile(
        r"(_k\d+|_n\d+|_t\d+|_low|_high|_kept|_new_inputs|_others|_other_inputs|_other_distributions|_other_both|_other_format"
        r"|_by_task)$"
    )
    tables = sorted((ROOT / "results").rglob("metrics.parquet"))
    measures = {one for path in tables for one in pl.read_parquet(path, columns=["measure"])["measure"].unique()}
    assert {"f1", "knn_share", "source_accuracy", "area_under_curve"} <= measures
    for measure in measures:
        stem = measure
        while stem not in named and ending.search(stem):
            stem = ending.sub("", stem)
        assert stem in named, measure


def test_the_reference_is_what_its_sources_say():
    """python -m nucleate.reference > docs/reference.md"""
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == reference()
    for option in ("--switch linear\\|mlp", "`measure.perplexity`", "thorough: bool = False", "### nucleate.tsne"):
        assert option in written
