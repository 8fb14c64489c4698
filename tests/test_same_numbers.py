"""What changes no number, or none beyond a stated tolerance: each row of the table in docs/tables.md is a test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import nucleate
from nucleate.model.adapter import Adapter, linear_layers, tune
from nucleate.model.prefix_tree import Group
from nucleate.model.states import read_states
from nucleate.model.switch import Head, SwitchTraining, learn_head, remember
from nucleate.parts import METRICS
from test_families import tiny
from test_probing import QUICK, network, rows, tokenizer

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8").partition("## What changes no number\n")[2]
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", TABLE)
KEYS = [name for name in METRICS if name != "value"]


def test_every_row_of_the_table_names_a_test_that_is_there():
    listed = [
        row for row in re.findall(r"^\| .*$", TABLE, flags=re.MULTILINE) if not row.startswith(("| what", "|---"))
    ]
    assert len(listed) >= 8 and all("::" in row for row in listed)
    for file, name in NAMED:
        assert re.search(rf"^def {name}\b", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_states_read_with_two_threads_are_those_of_one_to_a_hundred_thousandth(threads):
    prompts = [(" ".join(row["text"].split()[:2]), row["text"].split()[2]) for row in rows()]
    found = []
    for number in (1, 2):
        threads(number)
        found.append(read_states(network(strength=6), tokenizer(), prompts))
    np.testing.assert_allclose(found[1], found[0], atol=1e-5 * np.abs(found[0]).max())


def test_a_run_of_two_threads_has_the_numbers_of_one_to_a_thousandth(tmp_path):
    """At size micro; a longer training drifts apart, as it does between two machines."""
    asked = ["learn", "--size", "micro", "--seed", "3", "--out", str(tmp_path / "run")]
    found = []
    for number in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "nucleate", *asked, "--overwrite"],
            env={**os.environ, "OMP_NUM_THREADS": number},
            check=True,
            capture_output=True,
        )
        found.append(pl.read_parquet(tmp_path / "run" / "metrics.parquet"))
    one, two = found
    assert one.select(KEYS).equals(two.select(KEYS))
    for measure in ("loss", "accuracy", "f1", "knn_share"):
        some, others = (frame.filter(measure=measure)["value"].to_numpy() for frame in found)
        assert len(some) and np.abs(some - others).max() < 1e-3, measure


def test_a_layer_has_the_same_rows_whichever_others_are_read():
    """But for margins and what is said of them: controls are held against it at their own best layers."""
    found = [
        nucleate.probe(network(strength=6), rows(), tokenizer=tokenizer(), layers=layers, **QUICK).metrics
        for layers in (None, [1], [1, 2])
    ]
    chosen = "margin|clustered|readable"
    of_one = [frame.filter(pl.col("layer") == 1, ~pl.col("measure").str.contains(chosen)) for frame in found]
    told = [{row[:-1]: row[-1] for row in frame.select(*KEYS, "value").rows()} for frame in of_one]
    alike = set.intersection(*map(set, told))
    assert len(alike) > 20
    odd = [key for key in alike if len({one[key] for one in told}) > 1]
    assert [[key[KEYS.index("measure")], *(one[key] for one in told)] for key in odd] == []


# --- what ceases to be a number ---------------------------------------------------------------------------------------


def test_a_head_that_diverges_stops_with_its_step():
    model = tiny("gpt2")
    groups = [Group((n, 5, 6), ((7,), (8,)), ((20,), (22,))) for n in range(10, 18)]
    memory = remember(model, groups, answers_only=True)
    memory.states[3] = torch.inf
    width, vocabulary = memory.states.shape[1], memory.logits.shape[1]
    with pytest.raises(RuntimeError, match=r"epoch 1, step \d+: .* lower the learning rate"):
        list(learn_head(Head(width, vocabulary), memory, SwitchTraining(epochs=2, batch=4, learning_rate=1e-2, seed=1)))


def test_an_adapter_that_diverges_stops_with_its_step():
    made = tiny("llama")
    groups = [Group((n, 5, 6), ((7,), (8,)), ((20, 21), (22, 23))) for n in range(10, 18)]
    adapter = Adapter(linear_layers(made), rank=4, seed=1)
    with torch.no_grad():
        next(adapter.parameters())[0] = torch.nan
    with pytest.raises(RuntimeError, match=r"epoch 1, step 0: .* no longer finite"):
        list(tune(made, adapter, groups, steps=4, batch=4, learning_rate=1e-2, seed=1))


def test_a_probed_model_whose_weights_are_damaged_is_told_with_its_layer():
    model = network(strength=6)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match=r"layer 1: a hidden state is not finite; .*check the weights"):
        nucleate.probe(model, rows(), tokenizer=tokenizer(), **QUICK)
