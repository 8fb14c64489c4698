"""The guide to redirecting is run as it stands, on a tiny network that has learnt the tasks it speaks of."""

import re
import shlex
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from nucleate.cli import main
from nucleate.model.networks import gpt2, save_network, word_tokenizer
from nucleate.redirecting.loading import load_switched
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.study import study_of
from nucleate.report.redirection import saved_arm
from nucleate.runs import load_run
from test_guides import BLOCK, ROOT, options_of

GUIDE = (ROOT / "docs" / "guides" / "align.md").read_text(encoding="utf-8")
COUNTRIES = {"Japan": "Tokyo", "France": "Paris", "Egypt": "Cairo", "Peru": "Lima", "Italy": "Rome", "Kenya": "Nairobi"}
CONTINENTS = dict(zip(COUNTRIES, ("Asia", "Europe", "Africa", "America", "Europe", "Africa"), strict=True))
WORDS = ("house", "dog", "cat", "tree", "water", "bread")
LANGUAGES = {
    "French": ("maison", "chien", "chat", "arbre", "eau", "pain"),
    "Spanish": ("casa", "perro", "gato", "árbol", "agua", "pan"),
}


def prompts() -> list[dict[str, str]]:
    rows = [
        {"instruction": f"{verb} the capital of the {noun}.", "input": country, "output": capital, "task": "capital"}
        for verb in ("Name", "Tell", "Give", "Say", "Write")
        for noun in ("country", "state")
        for country, capital in COUNTRIES.items()
    ]
    return rows + [
        {
            "instruction": f"{verb} {which} word into {language}.",
            "input": word,
            "output": said,
            "task": language.lower(),
        }
        for language, translations in LANGUAGES.items()
        for verb in ("Translate", "Put", "Turn", "Render", "Bring")
        for which in ("the", "this")
        for word, said in zip(WORDS, translations, strict=True)
    ]


def model(folder: Path) -> None:
    """Trained on every prompt with its answer and the end of the text."""
    texts = [f"{row['instruction']} {row['input']} -> {row['output']} <end>" for row in prompts()]
    known = {word for text in [*texts, *CONTINENTS.values()] for word in text.split()}
    tokenizer = word_tokenizer(sorted(known))
    tokenizer.eos_token = "<end>"
    shape = {"width": 32, "feed_forward": 64, "layers": 2, "heads": 2, "positions": 32, "dropout": 0, "pad": 0}
    network = gpt2(vocabulary=len(tokenizer), seed=1, **shape)
    network.config.eos_token_id = network.generation_config.eos_token_id = tokenizer.eos_token_id
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(500):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 500)  # at a constant rate a late spike may undo a word
        labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
        network(**{name: rows[name] for name in ("input_ids", "attention_mask")}, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_network(network.eval(), tokenizer, folder)


def test_the_guide_to_redirecting_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "my-model")
    files: dict[str, Any] = {
        "prompts.jsonl": pl.DataFrame(prompts()),
        "continents.csv": pl.DataFrame({"input": list(CONTINENTS), "output": list(CONTINENTS.values())}),
    }
    files["prompts.jsonl"].write_ndjson("prompts.jsonl")
    files["continents.csv"].write_csv("continents.csv")
    found, said = dict[str, Any](), ""
    for block in BLOCK.finditer(GUIDE):
        if block["file"]:  # what is shown are rows of what is there
            read = pl.read_ndjson if block["file"].endswith("jsonl") else pl.read_csv
            shown = read(block["text"].encode())
            assert len(shown.join(files[block["file"]], on=shown.columns)) == len(shown) > 0
        elif block["language"] == "python":
            exec(compile(block["text"], "align.md", "exec"), found)
        else:
            for line in block["text"].splitlines():
                program, *words = shlex.split(line)
                assert program == "nucleate"
                said += capsys.readouterr().out
                assert main(words) == (3 if "--want" in words else 0)  # of unseen countries it knows no continent
                assert ("million parameters" in capsys.readouterr().out) == ("--estimate" in words)
    said += capsys.readouterr().out
    assert "Name the capital of the country. Japan -> Asia <end>\n" in said
    assert "tensor([True])" in said
    assert "house ->maison" in said.replace("-> ", "->")  # not switched
    assert "Japan -> Tokyo" in said  # turned off
    assert len(load_switched("runs/both/model").switches) == 2
    assert (tmp_path / "runs" / "spanish" / "model" / "network" / "config.json").is_file()

    model_, settings = found["model"], RedirectSettings("capital", outputs="continents.csv")
    ended = []
    for one in study_of("prompts.jsonl", settings).dealt.sides["test"]:
        inputs = model_.tokenizer(f"{one.instruction} {one.input} ->", return_tensors="pt")
        ended.append(
            model_.tokenizer.decode(model_.generate(**inputs, max_new_tokens=5)[0]).endswith(f"-> {one.output} <end>")
        )
    run = load_run("runs/continent")
    table = run.metrics.filter(arm=saved_arm(run), measure="source_accuracy_ended")
    assert sum(ended) / len(ended) == pytest.approx(table["value"].item())


def test_the_guide_explains_every_option_and_file_of_a_redirection():
    for name in ("others.parquet", "switch.safetensors", "switched.json"):
        assert name in GUIDE
    options = options_of("align") - options_of("learn") | {
        "--out",
        "--resume",
    }  # those of the paper's networks are others
    assert {"--source", "--outputs", "--copy"} <= options
    assert not [option for option in options if not re.search(rf"{option}\b(?!-)", GUIDE)]


@pytest.mark.parametrize("words", ["--source captial --outputs continents.csv", "--source french --target spansh"])
def test_the_guides_command_with_a_misspelt_name_suggests_the_nearest(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame(prompts()).write_ndjson("prompts.jsonl")
    pl.DataFrame({"input": list(CONTINENTS), "output": list(CONTINENTS.values())}).write_csv("continents.csv")
    given = ["align", "--model", "my-model", "--data", "prompts.jsonl", *words.split(), "--out", "run"]
    assert main(given) == 2
    assert "did you mean" in capsys.readouterr().err
    assert not Path("run").exists()
