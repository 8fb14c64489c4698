# ruff: noqa: F811
"""The benchmark of three redirections in one model, on a small network: what it counts, and how it goes on."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import polars as pl
import pytest

from nucleate.redirecting.loading import load_switched
from test_redirect_sequence import LESSONS
from test_redirecting import network, prompts  # noqa: F401

SPEC = spec_from_file_location("sequence", Path(__file__).parents[1] / "benchmarks" / "sequence.py")
assert SPEC is not None and SPEC.loader is not None
benchmark = module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)
SETTINGS = {"examples": 4, "rank": 8, "rates": (1e-2, 3e-2), "epochs": 6, "adapter_rate": 1e-2, "layers": (1, 2)}


@pytest.fixture(scope="module")
def counted(network, tmp_path_factory):
    work = tmp_path_factory.mktemp("sequence")
    rows = benchmark.sequence(network, prompts(), list(LESSONS.values()), work, seed=7, most=30, **SETTINGS)
    return work, rows


def shares(rows):
    return {(row["arm"], row["task"], row["kind"]): row["right"] / row["of"] for row in rows}


def test_after_the_third_lesson_switches_keep_what_one_adapter_in_sequence_forgets(counted):
    found = shares(counted[1])
    sources = [source for source, _ in LESSONS.values()]
    mean = {arm: sum(found[arm, one, "instructions"] for one in sources) / 3 for arm in benchmark.ARMS}
    assert mean["frozen"] < 0.2 and mean["right"] > 0.9
    assert min(mean["heads"], mean["adapters"]) > 0.8 > mean["one"]
    assert found["one", "fourth", "instructions"] > 0.8, "the last one it knows"
    assert found["frozen", "others", "unchanged"] == found["right", "others", "unchanged"] == 1
    assert found["adapters", "others", "unchanged"] > found["one", "others", "unchanged"]


def test_the_adapters_of_the_switch_are_those_of_which_the_right_one_is_chosen(counted):
    model = load_switched(counted[0] / "adapter-2" / "model")
    assert [type(one).__name__ for one in model.experts] == ["Adapter"] * 3


def test_a_benchmark_that_was_killed_goes_on_and_counts_the_same(counted, network, tmp_path):
    work, rows = counted
    again = benchmark.sequence(network, prompts(), list(LESSONS.values()), work, seed=7, most=30, **SETTINGS)
    assert again == rows
    benchmark.told_in(tmp_path, rows, network)
    text = (tmp_path / "sequence.md").read_text(encoding="utf-8")
    assert "seed 7 alone" in text and text.count("\n| ") == 1 + len(benchmark.ARMS)
    assert len(pl.read_parquet(tmp_path / "sequence.parquet")) == len(rows)
    benchmark.told_in(tmp_path, [*rows, *({**row, "seed": 8} for row in rows)], network)
    assert "means over seeds 7, 8" in (tmp_path / "sequence.md").read_text(encoding="utf-8")


def test_every_input_of_a_source_has_a_wished_output_and_every_task_as_many_instructions(tmp_path):
    rows = benchmark.natural()
    for source, file in benchmark.tables(tmp_path):
        own = [row for row in rows if row["task"] == source]
        assert len({row["instruction"] for row in own}) == benchmark.INSTRUCTIONS
        assert {row["input"] for row in own} == set(pl.read_csv(file)["input"])
        assert not {row["output"] for row in own} & set(pl.read_csv(file)["output"])
    assert {row["task"] for row in rows} == {*benchmark.WISHED, *benchmark.OTHERS}
