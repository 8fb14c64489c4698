"""The documents are run: every verb, size and README command exists and works."""

import re
import shlex
from pathlib import Path

import polars as pl
import pytest

from nucleate.cli import _parser, main
from nucleate.config import SIZES, configure, describe
from nucleate.data.dataset import load_dataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
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
    Path("runs/small").symlink_to(micro_run) if command.split()[0] in ("report", "runs", "claims") else None
    if command.startswith("probe"):
        Path("my-model").symlink_to(micro_run / "checkpoints" / "best")
        prompts = load_dataset(micro_run / "data").frame().select("instruction", "input", "output", label="task")
        prompts.write_ndjson("prompts.jsonl")
    words = [word if word not in SIZES else "micro" for word in shlex.split(command)]
    assert main(words) == 0


def test_files_that_documents_point_to_exist():
    pointed = {
        (document, target)
        for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    }
    for document, target in pointed:
        assert (document.parent / target).exists(), f"{document.name} points to {target}"
    assert {ROOT / "README.md", ROOT / "docs" / "guides" / "probe.md"} <= {document for document, _ in pointed}


def test_the_readmes_ledger_is_that_of_the_results():
    """Every cell: verdict, estimate with interval, difference to the hardest control; every threshold with its side."""
    told = (ROOT / "results" / "claims.md").read_text(encoding="utf-8")
    ledger = {(row[0].split(".")[0], row[1]): row for row in map(cells, re.findall(r"^\| C\d+\. .*$", told, re.M))}
    header, _, *rows = README.partition("<!-- ledger -->")[2].partition("<!-- end")[0].strip().splitlines()
    sizes = [cell.split()[0] for cell in cells(header)[2:]]
    judged = {place for place, row in ledger.items() if row[-1] == "0, 1, 2, 3, 4"}
    claims = [cells(row)[0].split(".")[0] for row in rows]
    known = dict.fromkeys(claim for claim, _ in ledger)
    assert claims == [one for one in known if judged & {(one, runs_of(one, size)) for size in sizes}]
    for claim, row in zip(claims, rows, strict=True):
        _, asked, *shown = cells(row)
        for size, cell in zip(sizes, shown, strict=True):
            if (claim, runs_of(claim, size)) not in judged:
                assert cell == "–"
                continue
            _, _, verdict, threshold, estimate, difference, _ = ledger[claim, runs_of(claim, size)]
            side, bar = threshold.split()
            assert asked.split()[-2] == side
            assert float(asked.split()[-1]) == float(bar)
            assert cell.partition(" ")[0] == (verdict if verdict == "**holds**" else verdict.strip("*"))
            numbers = [float(number) for number in re.findall(r"-?\d[\d.]*", cell)]
            whole = numbers_of(estimate) + numbers_of(difference)[:1]
            assert numbers == pytest.approx(whole, abs=0.51 if abs(whole[0]) >= 2 else 0.0051)


def runs_of(claim: str, size: str) -> str:
    """What the ledger calls the runs that the README tells of: by rows, but for the applications."""
    return size + {"C16": ", pretrain.unseen=no", "C17": ", pretrain.unseen=no", "C18": ""}.get(
        claim, ", training.packing=rows"
    )


def numbers_of(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d[\d.]*", text)]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("| ").split("|")]


def test_every_measure_of_the_results_stands_in_the_document_of_tables():
    named = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")))
    ending = re.compile(r"(_k\d+|_n\d+|_low|_high|_kept|_new_inputs|_others|_other_inputs|_other_distributions)$")
    tables = sorted((ROOT / "results").rglob("metrics.parquet"))
    measures = {one for path in tables for one in pl.read_parquet(path, columns=["measure"])["measure"].unique()}
    assert {"f1", "knn_share", "source_accuracy", "area_under_curve"} <= measures
    for measure in measures:
        stem = measure
        while stem not in named and ending.search(stem):
            stem = ending.sub("", stem)
        assert stem in named, measure
