"""The guide from a probe to a steering vector is run as it stands, on a tiny network that has learnt the tasks."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.cli import main
from nucleate.probing.result import load_probe
from test_acting import prompts, taught
from test_guides import BLOCK, ROOT

GUIDE = (ROOT / "docs" / "guides" / "act.md").read_text(encoding="utf-8")


def test_the_guide_from_a_probe_to_a_steering_vector_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    taught(tmp_path / "my-model")
    pl.DataFrame(prompts()).write_ndjson("prompts.jsonl")
    found: dict[str, Any] = {}
    for block in BLOCK.finditer(GUIDE):
        if block["file"]:
            shown = [json.loads(line) for line in block["text"].splitlines()]
            assert block["file"] == "prompts.jsonl" and all(row.keys() == prompts()[0].keys() for row in shown)
            assert {row["task"] for row in shown} <= {row["task"] for row in prompts()}
        elif block["language"] == "python":
            exec(compile(block["text"], "act.md", "exec"), found)
        else:
            for line in block["text"].splitlines():
                assert main(shlex.split(line)[1:]) == 0
    where = load_probe("runs/where").where_to_act
    assert where.by == "answers" and where.layer == 2
    said = capsys.readouterr().out
    assert str(where) in said and "runs/switched" in said
    assert Path("french.safetensors").is_file() and Path("french.gguf").is_file()
    model, inputs = found["model"], found["inputs"]
    assert found["tokenizer"].decode(model(**inputs).logits[0, -1].argmax()) == "house-spanish"
    assert re.search(r"^house-french$", said, flags=re.MULTILINE)  # the same question, steered


def test_the_guide_names_every_key_for_scripts_and_every_form():
    from dataclasses import fields

    from nucleate.probing.acting import ANSWERS, CORRELATION, LIKELIER, WhereToAct

    for name in (*(field.name for field in fields(WhereToAct)), ANSWERS, LIKELIER, CORRELATION):
        assert f"`{name}`" in GUIDE, name
