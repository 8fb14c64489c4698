"""The guide to the paper's experiments is run as it stands, at size micro, for an epoch and with fewer seeds."""

import re
import shlex
from pathlib import Path

import pytest

from nucleate.cli import main
from nucleate.config import SIZES
from test_guides import BLOCK, ROOT

GUIDE = (ROOT / "docs" / "guides" / "reproduce.md").read_text(encoding="utf-8")
FEWER = {"5..9": "5..6", "0..4": "0..1"}


def small(word: str) -> str:
    return "micro" if word in SIZES else FEWER.get(word, word)


@pytest.mark.timeout(900)  # some ten experiments, one after the other
def test_the_guide_to_reproducing_the_paper_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in BLOCK.finditer(GUIDE):
        if block["language"] == "python":
            exec(compile(block["text"], "reproduce.md", "exec"), {})
        else:
            for line in block["text"].splitlines():
                one = ["--epochs", "1"] if "--size" in line else []
                assert main([*map(small, shlex.split(line)[1:]), *one]) == 0, line
    for made in ("demo/page.html", "ledger/claims.md", "together/page.html", "llama/metrics.parquet"):
        assert Path("runs", made).is_file(), made
    assert "model.architecture=llama" in capsys.readouterr().out


@pytest.mark.parametrize("command", re.findall(r"^\| (?:Fig|Tab).*`nucleate (.+)` \|$", GUIDE, re.MULTILINE))
def test_each_figure_has_a_command_that_is_understood(command):
    from nucleate.cli import _parser

    assert _parser().parse_args(shlex.split(command)).out
