"""A training loop of one's own that is watched: the looks are those that a Trainer's would be, and change nothing."""

import numpy as np
import polars as pl
import pytest
import torch

import nucleate
from nucleate.model.networks import save_network
from nucleate.refusal import Refused
from nucleate.runs import load_run
from test_callback import QUICK, network, rows, tokenizer


def loop(model, steps, after, *, begin=0):
    """Plain steps on all texts."""
    texts = torch.tensor(
        tokenizer()([f"{row['instruction']} {row['input']} {row['output']}" for row in rows()])["input_ids"]
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(begin, steps):
        torch.manual_seed(step)  # of the dropout
        model(input_ids=texts, labels=texts).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after(step + 1)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    place, model = tmp_path_factory.mktemp("watched"), network().train()
    looks = {}
    with nucleate.watch(model, rows(), tokenizer=tokenizer(), out=place / "run", every=2, **QUICK) as seen:

        def after(step):
            looks[step] = seen.step()
            assert model.training
            if step in (4, 5):
                save_network(model, tokenizer(), place / f"step-{step}")

        loop(model, 5, after)
    return place, model, looks, seen.result


def test_looks_are_taken_before_the_first_step_every_so_many_and_at_the_end(watched):
    place, _, looks, result = watched
    assert result.models == ("step-0", "step-2", "step-4", "step-5") and result.base == "step-0"
    assert [step for step, look in looks.items() if look is not None] == [2, 4]
    assert load_run(place / "run").state == "done" and (place / "run" / "page.html").is_file()
    here = result.metrics.filter(model="step-4", measure="linear_accuracy", split="test", control="none")
    read = here.filter(layer=looks[4].best_layer)["value"]
    assert looks[4].readable in read.to_list() and looks[4].words == result.verdicts["step-4"]


@pytest.mark.parametrize("step", [4, 5])
def test_a_look_is_a_probe_of_the_network_as_it_was_then(watched, step):
    place, _, _, result = watched
    alone = nucleate.probe(place / f"step-{step}", rows(), loading={"attn_implementation": "eager"}, **QUICK)
    columns = ["split", "layer", "labels", "space", "control", "measure", "read", "value"]
    moved = pl.col("experiment") == "transfer"  # which a look does without
    theirs = alone.metrics.filter(~moved, model=alone.main).select(columns)
    ours = result.metrics.filter(model=f"step-{step}").select(columns)
    assert len(ours) > 100 and ours.equals(theirs)


def test_a_look_under_autocast_reads_in_the_precision_of_the_weights(tmp_path):
    given = {"tokenizer": tokenizer(), "every": 1, **QUICK}
    results = []
    for name in ("plain", "mixed"):
        mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "mixed")
        with nucleate.watch(network().train(), rows(), out=tmp_path / name, **given) as seen, mixed:
            assert seen.step() is not None
        results.append(seen.result.metrics)
    assert results[0].equals(results[1])


def test_several_processes_that_train_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with (
        pytest.raises(Refused, match="several processes train together"),
        nucleate.watch(network(), rows(), tokenizer=tokenizer(), out=tmp_path / "run", **QUICK),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_watching_changes_nothing(watched):
    _, model, _, _ = watched
    alone = network().train()
    loop(alone, 5, lambda step: None)
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_after_an_error_the_folder_is_gone_on_with_and_ends_as_an_unbroken_one(watched, tmp_path):
    _, _, _, whole = watched
    given = {"tokenizer": tokenizer(), "out": tmp_path / "run", "every": 2, **QUICK}
    model = network().train()
    kept = {}
    with pytest.raises(MemoryError), nucleate.watch(model, rows(), **given) as seen:

        def after(step):
            seen.step()
            if step == 3:
                kept.update({name: weight.clone() for name, weight in model.state_dict().items()})
            if step == 4:
                raise MemoryError

        loop(model, 5, after)
    assert seen.result is None and load_run(tmp_path / "run").state == "interrupted"
    with pytest.raises(Refused, match="unfinished run: go on with begin=…"), nucleate.watch(model, rows(), **given):
        pass
    model.load_state_dict(kept)
    with nucleate.watch(model, rows(), begin=3, **given) as again:
        loop(model, 5, lambda step: again.step(), begin=3)
    assert again.result.metrics.equals(whole.metrics)


def test_a_look_that_fails_is_told_and_ends_no_loop(tmp_path, capsys):
    model = network().train()
    with nucleate.watch(model, rows(), tokenizer=tokenizer(), out=tmp_path / "run", every=1, **QUICK) as seen:
        weight = model.transformer.wte.weight.detach().clone()
        with torch.no_grad():
            model.transformer.wte.weight.fill_(np.nan)
        assert seen.step() is None
        assert "step 1 was not probed" in capsys.readouterr().out
        with torch.no_grad():
            model.transformer.wte.weight.copy_(weight)
        assert seen.step() is not None
    assert seen.result.models == ("step-0", "step-2")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=0 is no whole number of steps from 1 on"),
        ({"every": 0.1}, "every=0.1 is no whole number"),
        ({"begin": -1}, "begin=-1 is no whole number of steps from 0 on"),
        ({"layers": "last"}, "layers='last' is not a list of whole numbers"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_opened(settings, message, tmp_path):
    with pytest.raises(Refused, match=message):
        nucleate.watch(network(), rows(), tokenizer=tokenizer(), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
