"""A probe by other hands: transformers and scikit-learn alone, as `benchmarks/independent.py` has them."""

import importlib
from pathlib import Path

import pytest

import nucleate
from nucleate.model.networks import save_network
from test_probing import QUICK, network, rows, tokenizer, words


@pytest.fixture
def scripts(monkeypatch):
    """name -> a script of `benchmarks/`, as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module


def crossed() -> list[dict[str, str]]:
    """The same six inputs under every instruction."""
    listed = []
    for number, (first, second, _) in enumerate(words()):
        for given in (words()[10 * k][2] for k in range(6)):
            listed.append({"instruction": f"{first} {second}", "input": given, "task": f"t{number // 16}"})
    return listed


@pytest.mark.parametrize("data", [rows(), crossed()], ids=["prompts", "instructions with inputs"])
def test_both_readings_agree_with_scikit_learn(scripts, data, tmp_path):
    save_network(network(strength=2), tokenizer(), tmp_path / "model")
    nucleate.probe(tmp_path / "model", data, **QUICK).save(tmp_path / "run")
    told = scripts("independent").beside(tmp_path / "run", str(tmp_path / "model"))
    for reading in ("readable", "clustered"):
        one = told[reading]
        assert 0.3 < one["value"] < 1 and one["value"] == pytest.approx(one["independent"], abs=0.06), (reading, one)
    page = scripts("independent").page({"model, data": told})
    assert told["sentence"] in page and f"{told['clustered']['independent']:.3f}" in page


def test_of_a_label_few_prompts_or_many_and_prompts_under_two_labels(scripts):
    sets = scripts("fetch_sets")
    labelled = [(f"a {n}", "many") for n in range(sets.MOST + 5)] + [(f"b {n}", "few") for n in range(sets.FEWEST)]
    labelled += [("B 0", "many"), ("  ", "few"), ("a 1", "many"), *((f"c {n}", "fewer") for n in range(3))]
    kept = list(sets.few_of_each(iter(labelled)))
    assert {label for _, label in kept} == {"many"}  # "b 0" stands under two labels, so that "few" has too few
    assert len(kept) == sets.MOST and len(dict.fromkeys(kept)) == sets.MOST
