"""The documents are run: every verb, size and README command exists and works."""

import json
import re
import shlex
from pathlib import Path

import pytest

from nucleate.cli import _parser, main
from nucleate.config import SECTIONS, SIZES
from nucleate.data.dataset import load_dataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^nucleate (.+?)(?:  +#.*)?$", README, flags=re.MULTILINE)


def verbs() -> set[str]:
    return set(next(action.choices for action in _parser()._actions if action.dest == "verb"))


def test_every_verb_and_size_stands_in_the_readme():
    for name in verbs() | set(SIZES) - {"micro"}:
        assert re.search(rf"\b{name}\b", README), name


def test_every_setting_stands_in_the_paper_document_or_is_explained_by_its_section():
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)", text))
    known = {f"{section}.{name}" for section, kind in SECTIONS.items() for name in kind.__dataclass_fields__}
    assert named <= known, named - known


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
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} points to {target}"


def test_the_readmes_ledger_is_that_of_the_results():
    ledger = {(row["claim"], row["size"]): row for row in json.loads((ROOT / "results" / "claims.json").read_text())}
    header, _, *rows = README.partition("<!-- ledger -->")[2].partition("<!-- end")[0].strip().splitlines()
    sizes = [cell.split()[0] for cell in cells(header)[2:]]
    assert [re.match(r"C\d+", cells(row)[0])[0] for row in rows] == list(
        dict.fromkeys(claim for claim, size in ledger if size in sizes)
    )
    for row in rows:
        claim, asked, *shown = cells(row)
        for size, cell in zip(sizes, shown, strict=True):
            one = ledger.get((re.match(r"C\d+", claim)[0], size))
            if one is None:
                assert cell == "–"
                continue
            digits = 0 if abs(one["estimate"]) >= 2 else 2
            low, high, estimate = (f"{round(one[key], digits) + 0:.{digits}f}" for key in ("low", "high", "estimate"))
            assert cell.replace("*", "") == f"{one['verdict']} {estimate} [{low}, {high}]"
            assert float(asked.split()[-1]) == pytest.approx(one["threshold"], abs=1e-3)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("| ").split("|")]
