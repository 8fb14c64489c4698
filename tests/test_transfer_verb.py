"""`nucleate transfer` end to end: a network that has learnt its tasks, one that has not, what is refused and drawn."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import nucleate
from nucleate.cli import main
from nucleate.data.dataset import Dataset
from nucleate.long_table import STRENGTHS
from nucleate.model.networks import gpt2, save_network
from nucleate.model.states import instances_as_groups
from nucleate.model.training import make_optimizer, train
from nucleate.parts import METRICS
from nucleate.probing.settings import TransferSettings
from nucleate.probing.transfer import transfer_into
from nucleate.refusal import Refused
from nucleate.report.figures import draw_figures
from nucleate.report.sentences import sentences_of
from nucleate.report.transfer_figure import transfer_figure
from nucleate.report.transfer_table import CONTROLS, transfer_table
from nucleate.runs import load_run
from test_families import tiny, words
from test_guides import options_of
from test_transfer import SPLITS, TOKENIZER, instances


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small GPT-2 that has learnt the tasks of `test_transfer.py` from their training instructions."""
    size = {"width": 32, "feed_forward": 64, "layers": 3, "heads": 4, "positions": 60}
    network = gpt2(vocabulary=len(TOKENIZER), dropout=0.0, pad=0, seed=1, **size)
    groups, _ = instances_as_groups(TOKENIZER, [one for one in instances() if one.split == "train"])
    optimizer = make_optimizer(network, learning_rate=4e-3, weight_decay=0.01)
    for _ in train(network, optimizer, groups, epochs=80, batch=20, learning_rate=4e-3, packing="tree", seed=1):
        pass
    folder = tmp_path_factory.mktemp("model") / "learnt"
    save_network(network.eval(), TOKENIZER, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    Dataset(tuple(instances()), {}, {}, {}, {}).frame().drop("origin").write_ndjson(file)
    return file


@pytest.fixture(scope="module")
def moved(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "moved"
    assert main(["transfer", str(model), str(data), "--out", str(folder), "--seed", "5"]) == 0
    return folder


def shares(run, measure="transfer_target", **wanted):
    return run.metrics.filter(measure=measure, **wanted)


def test_the_run_folder_holds_the_rows_that_the_design_promises(moved):
    run = load_run(moved)
    assert run.manifest["status"] == "done"
    table = run.metrics
    assert table.schema == METRICS
    assert set(table["experiment"]) == {"transfer"} and set(table["model"]) == {"learnt"}
    assert set(table["split"]) == set(SPLITS) and set(table["read"]) == {"input"} and set(table["labels"]) == {"task"}
    counted = table.filter(pl.col("layer").is_not_null())
    assert set(counted["layer"]) == {0, 1, 2}
    places = set(counted.select("arm", "control", "space").rows())
    means = [(arm, c, "centred") for arm in ("mean", "mean_x2", "mean_x3") for c in ("none", "random", "untrained")]
    means += [(arm, c, "centred") for arm in ("mean", "mean_x2", "mean_x3") for c in ("regrouped", "answers")]
    assert places == {*means, *(("state", c, "raw") for c in ("none", "random", "untrained"))}
    parts = ("transfer_target", "transfer_source", "transfer_neither")
    sums = (
        counted.filter(pl.col("measure").is_in(parts)).group_by("arm", "control", "split", "layer").agg(pl.sum("value"))
    )
    assert np.allclose(sums["value"], 1)
    for name in ("config.toml", "page.html", "figures/figure_transfer.png", "data/dataset.parquet"):
        assert (moved / name).is_file(), name
    assert not (moved / "spill").exists()


def test_a_network_that_has_learnt_follows_a_whole_state_and_no_random_direction(moved):
    run = load_run(moved)
    for split in SPLITS:
        assert shares(run, "transfer_kept", split=split)["value"].item() > 0.7
        best = {c: shares(run, split=split, control=c)["value"].max() for c in ("none", "random", "untrained")}
        assert best["none"] > 0.8 and best["random"] < 0.4 and best["untrained"] < 0.4, best
        assert shares(run, split=split, control="none", arm="mean", layer=0)["value"].item() < 0.05


def test_the_table_by_pair_of_tasks_agrees_with_the_long_one(moved):
    run, by_tasks = load_run(moved), pl.read_parquet(moved / "transfer.parquet")
    assert by_tasks.columns == ["model", "split", "layer", "arm", "control", "source", "target", "measure", "value"]
    here = by_tasks.filter(split="test", layer=2, arm="mean_x2", control="none")
    wide = here.pivot("measure", index=["source", "target"], values="value")
    assert wide.height == 12
    mean = (wide["transfer_target"] * wide["transfer_pairs"]).sum() / wide["transfer_pairs"].sum()
    assert mean == pytest.approx(shares(run, split="test", layer=2, arm="mean_x2", control="none")["value"].item())
    assert by_tasks.filter(measure="transfer_kept", split="test").height == 12


def test_the_same_command_gives_the_same_bytes_and_a_finished_run_is_left_alone(model, data, moved, tmp_path, capsys):
    words = ["transfer", str(model), str(data), "--seed", "5"]
    assert main([*words, "--out", str(tmp_path / "again")]) == 0
    for name in ("metrics.parquet", "transfer.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (moved / name).read_bytes()
    before = (moved / "metrics.parquet").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*words, "--out", str(moved), "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert (moved / "metrics.parquet").stat().st_mtime_ns == before
    assert main([*words, "--out", str(moved)]) == 2
    assert main([*words, "--out", str(moved), "--resume", "--pairs", "40"]) == 2


def test_a_killed_run_begins_again_and_gives_the_same_bytes(model, data, moved, tmp_path, monkeypatch):
    from nucleate import transferring

    def broken(*arguments, **named):
        raise KeyboardInterrupt

    words = ["transfer", str(model), str(data), "--seed", "5", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(transferring, "outcomes", broken)
        assert main(words) == 130
    assert load_run(tmp_path / "run").manifest["status"] == "interrupted"
    assert main([*words, "--resume"]) == 0
    assert (tmp_path / "run" / "metrics.parquet").read_bytes() == (moved / "metrics.parquet").read_bytes()


def test_data_without_splits_are_halved_and_options_reach_what_they_name(model, tmp_path):
    rows = [{"instruction": o.instruction, "input": o.input, "output": o.output, "label": o.task} for o in instances()]
    asked = {"columns": {"task": "label"}, "layers": (1,), "pairs": 50, "seed": 2}
    assert transfer_into(tmp_path / "run", model, rows, TransferSettings(**asked))
    run = load_run(tmp_path / "run")
    assert set(run.metrics["split"]) == set(SPLITS)
    assert set(run.metrics["layer"].drop_nulls()) == {1}
    assert shares(run, "transfer_pairs", control="none")["value"].to_list() == [50, 50]
    assert "regrouped" not in set(run.metrics["control"])  # no distribution is known
    assert any("50 of" in note for note in run.manifest["notes"])
    assert shares(run, control="none", arm="state")["value"].min() > 0.3


def test_a_run_of_ours_is_asked_at_its_best_checkpoint_and_too_few_right_answers_are_told(micro_run, tmp_path, capsys):
    words = ["transfer", str(micro_run), str(micro_run / "data"), "--out", str(tmp_path / "run")]
    assert main(words) == 0
    run = load_run(tmp_path / "run")
    assert set(run.metrics["measure"]) == {"transfer_kept", "transfer_pairs", "transfer_instructions"}
    assert set(run.metrics["epoch"]) == {load_run(micro_run).manifest["best_epoch"]}
    assert set(run.metrics["model"]) == {micro_run.name}
    assert "cannot be told" in capsys.readouterr().out
    for name, epoch in (("best", load_run(micro_run).manifest["best_epoch"]), ("epoch-0004", 4), ("last", None)):
        place, out = micro_run / "checkpoints" / name, tmp_path / name
        assert transfer_into(out, place, micro_run / "data", TransferSettings(layers=(1,)))
        assert set(load_run(out).metrics["epoch"]) == {epoch}
    own = load_run(micro_run).metrics.filter(experiment="transfer")
    for split in SPLITS:  # the same question, so the same answer as at the end of `learn`
        kept = [one.filter(measure="transfer_kept", split=split)["value"].item() for one in (own, run.metrics)]
        assert kept[0] == kept[1]


def test_what_is_printed_is_chosen_where_validation_sees_most_above_the_controls_and_told_on_test(moved):
    run = load_run(moved)
    leads = {}
    for layer in sorted(set(shares(run)["layer"].drop_nulls()) - {0}):
        for arm in ("mean", "mean_x2", "mean_x3"):
            here = run.metrics.filter(measure="transfer_target", layer=layer, arm=arm)
            on = {
                split: dict(here.filter(split=split).select("control", "value").rows())
                for split in ("validation", "test")
            }
            seen = on["validation"].pop("none")
            leads[layer, arm] = seen - max(on["validation"].values()), on["test"]
    told = max(leads.values(), key=lambda one: one[0])[1]
    (sentence, *_) = sentences_of(run)
    own = told.pop("none")
    pairs, high = shares(run, "transfer_pairs", split="test", control="none")["value"].item(), max(told.values())
    seen = own - high > 2 * ((own * (1 - own) + high * (1 - high)) / pairs) ** 0.5
    assert sentence.startswith("Seen: " if seen else "Not seen beyond the controls: ")
    assert (
        f"{100 * own:.0f} % of the answers become the other task's" in sentence and "chosen on validation" in sentence
    )
    assert f"gives {100 * max(told.values()):.0f} %" in sentence
    for value in told.values():
        assert f" {100 * value:.0f} %" in sentence
    table = transfer_table(load_run(moved))
    assert [row[0] for row in table.rows] == [0, 1, 2]
    assert table.header[1:5] == ("mean", "x 2", "x 3", "state")
    layer = load_run(moved).metrics.filter(measure="transfer_target", split="test", layer=2, arm="mean", control="none")
    assert table.rows[2][1] == layer["value"].item()


def test_the_figure_shows_every_arm_and_control_and_the_number_that_was_kept(moved, tmp_path):
    run = load_run(moved)
    drawn = draw_figures(run, tmp_path)
    assert list(drawn) == ["figure_transfer"]
    text = drawn["figure_transfer"][0].decode()
    for label in ("twice the mean", "a whole state", "a random direction", "untrained network", "of the pairs"):
        assert label in text
    pairs = shares(run, "transfer_pairs", split="test", control="none")["value"].item()
    assert f"{pairs:,.0f} are moved" in text
    (figure, twice) = transfer_figure([run]), transfer_figure([run, run])
    lines = [len(axis.lines) for axis in figure.axes]
    assert lines == [6, 6, 6, 3] and [len(axis.lines) for axis in twice.axes] == lines


def test_what_cannot_be_moved_is_refused_before_anything_is_written(model, data, tmp_path, capsys):
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    encoder = tmp_path / "encoder"
    save_network(tiny("bert"), words(), encoder)

    def refused(asked=model, given=rows, **settings):
        with pytest.raises(Refused) as refusal:
            transfer_into(tmp_path / "run", asked, given, TransferSettings(**settings))
        assert not (tmp_path / "run").exists()
        return str(refusal.value)

    assert "no outputs" in refused(given=[{**row, "output": None} for row in rows])
    assert "no inputs" in refused(given=[{"prompt": row["instruction"], "task": row["task"]} for row in rows])
    apart = [{**row, "input": f"{row['input']} {row['task']}"} for row in rows]
    assert "whose tasks share inputs" in refused(given=apart)
    assert "no causal language model" in refused(asked=encoder)
    assert "layer 3 is the last one" in refused(layers=(3,))
    assert "layer 9 does not exist" in refused(layers=(9,))
    assert "does not exist" in refused(asked=tmp_path / "nowhere")
    chats = [{"messages": [{"role": "user", "content": row["instruction"]}], "task": row["task"]} for row in rows]
    assert "chats have no inputs" in refused(given=chats)
    (tmp_path / "series").mkdir()
    for number, seed in enumerate((1, 2)):
        network = gpt2(
            vocabulary=9, width=8, feed_forward=8, layers=1, heads=1, positions=8, dropout=0.0, pad=0, seed=seed
        )
        save_network(network, TOKENIZER, tmp_path / "series" / f"epoch-{number}")
    assert "stands for 2 models" in refused(asked=tmp_path / "series")
    assert main(["transfer", str(model), str(data), "--out", str(tmp_path / "run"), "--pairs", "3"]) == 2
    assert "--pairs" in capsys.readouterr().err


def test_natural_prompts_come_with_shared_inputs(model, tmp_path):
    """The words are unknown to this network: none is answered, and that is told."""
    assert transfer_into(tmp_path / "run", model, "natural-shared", TransferSettings(limit=120, layers=(1,))) is True
    run = nucleate.load_run(tmp_path / "run")
    assert (
        set(run.metrics["measure"]) == {"transfer_pairs", "transfer_instructions"} and run.metrics["value"].sum() == 0
    )
    (sentence, *notes) = sentences_of(run)
    assert "none is answered as their own task" in sentence
    assert any("begin with the same token" in note for note in notes)


def test_a_share_that_a_few_pairs_make_is_not_called_seen(moved):
    run = load_run(moved)
    is_target = pl.col("measure").eq("transfer_target") & pl.col("control").eq("none") & pl.col("arm").ne("state")
    for share, beginning in ((0.02, "Not seen beyond the controls: 2 %"), (0.9, "Seen: 90 %")):
        changed = pl.when(is_target).then(share).when(pl.col("measure") == "transfer_target").then(0.0)
        run.__dict__["metrics"] = load_run(moved).metrics.with_columns(value=changed.otherwise(pl.col("value")))
        assert sentences_of(run)[0].startswith(beginning)


def test_the_guide_tells_every_option_arm_and_control():
    guide = (Path(__file__).parents[1] / "docs" / "guides" / "transfer.md").read_text(encoding="utf-8")
    told = {*STRENGTHS, "state", *CONTROLS, "transfer_kept", "transfer_likelier", "transfer_others_unchanged"}
    assert [name for name in sorted(told) if f"`{name}`" not in guide] == []
    own = {"--help", "-h", "--out"}
    assert [option for option in sorted(options_of("transfer") - own) if option not in guide] == []
