"""The guide is run as it stands, on tiny models: files that it shows are written, commands and Python executed."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import TrainingArguments

import nucleate
from nucleate.cli import _parser, main
from nucleate.model.networks import gpt2, load_network, save_network, word_tokenizer

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:^`(?P<file>\S+)`:\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
GUIDE = (ROOT / "docs" / "guides" / "probe.md").read_text(encoding="utf-8")
LABELS = ("refund", "greeting", "cancel")


def prompts() -> list[dict[str, str]]:
    rng = np.random.default_rng(0)
    words = [["".join(rng.choice(list("abcdefghijkl"), 5)) for _ in range(3)] for _ in range(36)]
    return [{"prompt": " ".join(three), "label": LABELS[number % 3]} for number, three in enumerate(words)]


def models(folder: Path) -> None:
    """Networks that know the words of the prompts and of the natural tasks, small enough to be probed in seconds."""
    natural = nucleate.natural_dataset("natural-shared")
    texts = [f"{one.instruction} {one.input} {one.output}" for one in natural.instances]
    tokenizer = word_tokenizer(sorted({word for text in texts for word in text.split()}))
    names = ("my-model", "my-tuned-model", "my-checkpoints/checkpoint-10", "my-checkpoints/checkpoint-20")
    for seed, name in enumerate(names):
        shape = {"width": 16, "feed_forward": 32, "layers": 2, "heads": 2, "positions": 64, "dropout": 0, "pad": 0}
        save_network(gpt2(vocabulary=len(tokenizer), seed=seed, **shape), tokenizer, folder / name)


def a_trainers_own(folder: Path) -> dict[str, Any]:
    """What a fine-tuning has before it is watched."""
    model, tokenizer = load_network(folder / "my-model")
    texts = [{"input_ids": row, "labels": row} for row in tokenizer([one["prompt"] for one in prompts()])["input_ids"]]
    settings = {"max_steps": 2, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(str(folder / "trained"), **settings)
    batches = [{name: torch.tensor([ids]) for name, ids in text.items()} for text in texts[:2]]
    optimizer = torch.optim.SGD(model.parameters())
    own = {"optimizer": optimizer, "batches": batches}
    return {"model": model, "tokenizer": tokenizer, "texts": texts, "arguments": arguments, **own}


def execute(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *words = shlex.split(line)
    if program == "python":
        monkeypatch.setattr(sys, "argv", [*words[:3], "--steps", "3", "--every", "1"])
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        for step in (1, 2, 3):  # the guide names the checkpoints of the hundreds that it asks for
            Path(f"{words[2]}/checkpoint-{step}").rename(f"{words[2]}/checkpoint-{step}00")
        return
    assert program == "nucleate"
    many = any(word.endswith(("natural-shared", "held-out.jsonl")) for word in words)
    assert main([*words, "--limit", "160"] if many else words) == 0


def test_the_guide_to_probing_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models(tmp_path)
    pl.DataFrame(prompts()).write_ndjson("prompts.jsonl")
    found: dict[str, Any] = a_trainers_own(tmp_path)
    for block in BLOCK.finditer(GUIDE):
        if block["file"] == "prompts.jsonl":
            shown = [json.loads(line) for line in block["text"].splitlines()]
            assert shown and all(row.keys() == prompts()[0].keys() and row["label"] in LABELS for row in shown)
        elif block["file"]:
            (tmp_path / block["file"]).parent.mkdir()
            (tmp_path / block["file"]).write_text(block["text"], encoding="utf-8")
        elif block["language"] == "python":
            exec(compile(block["text"], "probe.md", "exec"), found)
        else:
            for line in block["text"].splitlines():
                execute(line, monkeypatch)
    said = capsys.readouterr().out
    assert "compared with my-model" in said and "llama-7b: 6,738 million parameters, 8,800 prompts" in said
    assert found["watch"].result.models == ("step-0", "step-2") and (tmp_path / "trained-probe/page.html").is_file()
    assert found["seen"].result.models == ("step-0", "step-2") and (tmp_path / "watched/page.html").is_file()
    assert (tmp_path / "layers.png").is_file() and (tmp_path / "kept" / "metrics.parquet").is_file()
    compared = pl.read_parquet("tuning/tasks.parquet").filter(pl.col("measure").str.ends_with("_over_base"))
    assert set(compared["model"]) == {"checkpoint-100", "checkpoint-200", "checkpoint-300"}
    assert set(pl.read_parquet("curve/metrics.parquet")["step"].drop_nulls()) == {10, 20}
    held_out = pl.read_ndjson("tuned/held-out.jsonl")
    assert len(held_out) == 720 and held_out["task"].n_unique() == 6
    written = {path.name for run in ("shared", "tuning") for path in Path(run).glob("*.parquet")}
    controls = set(pl.read_parquet("shared/metrics.parquet")["control"]) - {"none"}
    assert {"metrics.parquet", "confusion.parquet"} <= written and {"untrained", "neutral", "regrouped"} <= controls
    assert not [name for name in written | controls if f"`{name}`" not in GUIDE]


def test_the_example_that_watches_a_fine_tuning_ends_with_the_answer_and_a_page(tmp_path):
    models(tmp_path)
    command = [sys.executable, str(ROOT / "examples" / "watch_a_fine_tuning.py"), "my-model", "out", "--steps", "2"]
    ended = subprocess.run([*command, "--every", "1"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert any(line.startswith("step-2: ") for line in ended.stdout.splitlines()), ended.stdout
    assert (tmp_path / "out-probe" / "page.html").is_file()


def test_the_guide_explains_every_option_and_table_of_a_probe():
    for name in ("tasks", "confusion", "suspicious", "coordinates", "dropped", "metrics"):
        assert f"`{name}.parquet`" in GUIDE
    for control in (
        "surface_prompt",
        "surface_instruction",
        "untrained",
        "neutral",
        "shuffled",
        "regrouped",
        "answers",
    ):
        assert f"`{control}`" in GUIDE
    options = options_of("probe")
    assert {"--base", "--layers", "--resume"} <= options
    assert not [option for option in options if not re.search(rf"{option}\b(?!-)", GUIDE)]


def options_of(verb: str) -> set[str]:
    """What one can write behind a verb."""
    verbs = next(action.choices for action in _parser()._actions if action.dest == "verb")
    return {option for option in verbs[verb]._option_string_actions if option.startswith("--")} - {"--help"}
