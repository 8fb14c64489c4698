"""The main experiment end to end, small but whole: the files it leaves behind, its table, and the same bytes again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import nucleate
from nucleate.config import configure, describe
from nucleate.files import file_hash
from nucleate.paper.learning import learn
from nucleate.parts import METRICS
from nucleate.refusal import Refused
from nucleate.runs import load_run

MEASURED = [0, 1, 2, 4, 6]
SPACES = {"raw", "tsne", "centred", "averaged"}
SCORES = {"f1", "f1_purity", "f1_matched", "f1_pairwise", "f1_bcubed", "ari", "ami"}


def test_the_run_folder_holds_what_the_design_promises(micro_run):
    run = load_run(micro_run)
    assert run.manifest["status"] == "done"
    assert set(run.manifest["seconds"]) == {"train", "read", "measure", "total"}
    assert run.manifest["seconds"]["train"] <= run.manifest["seconds"]["total"]
    assert run.manifest["data_hash"] == nucleate.load_dataset(micro_run / "data").content_hash()
    assert run.layout_epochs == MEASURED
    wanted = {"best", "last", *(f"epoch-{epoch:04d}" for epoch in range(7))}
    assert {path.name for path in (micro_run / "checkpoints").iterdir()} == wanted
    assert set(run.manifest["checkpoints"]) == wanted
    for name, digest in run.manifest["checkpoints"].items():
        assert file_hash(micro_run / "checkpoints" / name / "model.safetensors") == digest
    left_over = {"resume.safetensors", "states"} & {path.name for path in micro_run.iterdir()}
    assert not left_over
    events = [json.loads(line)["event"] for line in (micro_run / "log.jsonl").read_text().splitlines()]
    assert events == ["begun", "done"]


def test_the_long_table_holds_every_measure_of_the_main_experiment(micro_run):
    table = load_run(micro_run).metrics
    assert table.schema == METRICS
    assert set(table["experiment"]) == {"learn", "transfer"}
    moved = table.filter(experiment="transfer")  # of so few answers that are right, none can be moved
    assert moved.select("split", "measure").rows() == [
        (split, measure)
        for split in ("test", "validation")
        for measure in ("transfer_instructions", "transfer_kept", "transfer_pairs")
    ]
    assert set(moved["epoch"]) == {load_run(micro_run).manifest["best_epoch"]} and moved["layer"].null_count() == 6
    texts = {"surface_instruction", "surface_prompt", "answers"}
    assert set(table["control"]) == {"none", "shuffled", "regrouped", *texts}
    scores = table.filter(pl.col("measure").is_in(list(SCORES)), pl.col("control") == "none")
    for split in ("subset", "validation", "test"):
        for epoch in MEASURED:
            here = scores.filter(pl.col("split") == split, pl.col("epoch") == epoch)
            assert set(here["space"]) == SPACES
            assert set(here["labels"]) == {"task", "distribution", "distribution_mapping"}
            assert set(here["measure"]) == SCORES
            assert set(here["layer"]) == {0, 1, 2}
    every_epoch = table.filter(pl.col("measure") == "accuracy", pl.col("split") == "validation")
    assert every_epoch["epoch"].to_list() == list(range(7))
    measures = set(table["measure"])
    assert {"hard_separated", "hard_share_origin", "hard_share_own", "ari_within_tasks", "centred_kept"} <= measures
    assert {"knn_share", "knn_share_k1", "knn_share_other_inputs", "knn_share_other_distributions"} <= measures
    assert {"knn_accuracy", "linear_accuracy", "variance_input", "variance_task", "variance_output"} <= measures
    assert {"accuracy_restricted", "loss", "area_under_curve"} <= measures
    surface = table.filter(pl.col("control").is_in(texts))
    assert surface["epoch"].null_count() == surface["layer"].null_count() == surface.height


def test_shares_and_scores_lie_in_their_range_and_shuffled_labels_score_near_nothing(micro_run):
    table = load_run(micro_run).metrics
    unbounded = pl.col("measure").is_in(
        ["loss", "transfer_pairs", "transfer_instructions", "epochs_to_50", "epochs_to_80", "epochs_to_90"]
    )
    bounded = table.filter(~unbounded)["value"]
    assert bounded.min() >= -1
    assert bounded.max() <= 1 + 1e-12
    shuffled = table.filter(pl.col("control") == "shuffled", pl.col("measure") == "ari", pl.col("space") == "raw")
    assert abs(shuffled["value"].mean()) < 0.1


def test_reported_accuracy_is_that_of_the_saved_network_asked_prompt_by_prompt(micro_run):
    run = load_run(micro_run)
    model = AutoModelForCausalLM.from_pretrained(micro_run / "checkpoints" / "epoch-0006")
    tokenizer = AutoTokenizer.from_pretrained(micro_run / "checkpoints" / "epoch-0006")
    rows = run.dataset.filter(pl.col("split") == "validation").to_dicts()
    answers = {}
    for row in rows:
        tokens = tokenizer(f"{row['instruction']} {row['input']}", return_tensors="pt")
        with torch.inference_mode():
            answers[row["instance"]] = tokenizer.decode(model(**tokens).logits[0, -1].argmax()).strip()
    share = np.mean([answers[row["instance"]] == row["output"] for row in rows])
    reported = run.metrics.filter(
        pl.col("measure") == "accuracy", pl.col("split") == "validation", pl.col("epoch") == 6
    )["value"].item()
    assert share == pytest.approx(reported)
    recorded = dict(run.predictions(6).iter_rows())
    assert {instance: recorded[instance] for instance in answers} == answers


def test_the_best_checkpoint_is_the_earliest_epoch_of_the_highest_validation_accuracy(micro_run):
    run = load_run(micro_run)
    curve = run.metrics.filter(pl.col("measure") == "accuracy", pl.col("split") == "validation", pl.col("epoch") > 0)
    best = curve.sort(["value", "epoch"], descending=[True, False])["epoch"][0]
    assert run.manifest["best_epoch"] == best
    assert run.manifest["checkpoints"]["best"] == run.manifest["checkpoints"][f"epoch-{best:04d}"]


def test_layouts_show_each_shown_instance_once_per_layer_and_view(micro_run):
    run = load_run(micro_run)
    shown = run.dataset.filter(pl.col("in_subset") | (pl.col("split") == "validation")).height
    for epoch in MEASURED:
        layout = run.layout(epoch)
        assert set(layout["view"]) == {"pca", "tsne", "display"}
        assert layout.height == 3 * 3 * shown
        assert not layout.select("instance", "layer", "view").is_duplicated().any()
        assert layout.select(pl.col("x", "y", "z").is_finite().all()).row(0) == (True, True, True)


def test_the_fixed_view_is_the_projection_of_the_saved_networks_states(micro_run):
    """The pca view of the last epoch, rebuilt from its checkpoint: same distances between points, layer by layer."""
    run = load_run(micro_run)
    model = AutoModelForCausalLM.from_pretrained(micro_run / "checkpoints" / "last")
    tokenizer = AutoTokenizer.from_pretrained(micro_run / "checkpoints" / "last")
    rows = run.dataset.filter(pl.col("in_subset") | (pl.col("split") == "validation")).sort("instance")
    states = nucleate.read_states(model, tokenizer, list(rows.select("instruction", "input").iter_rows()))
    for layer in range(3):
        centred = states[layer].astype(np.float64) - states[layer].astype(np.float64).mean(axis=0)
        wanted = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
        found = run.layout(6).filter(pl.col("view") == "pca", pl.col("layer") == layer).sort("instance")
        placed = found.select("x", "y", "z").to_numpy()
        scale = np.abs(wanted).max()
        assert np.allclose(np.abs(placed), np.abs(wanted), atol=0.01 * scale)  # kept at half precision


def test_two_runs_of_one_seed_give_the_same_bytes_and_another_seed_gives_others(micro_run, tmp_path):
    assert learn(configure("micro", seed=3), tmp_path / "again")
    assert (tmp_path / "again" / "metrics.parquet").read_bytes() == (micro_run / "metrics.parquet").read_bytes()
    assert learn(configure("micro", seed=4), tmp_path / "other")
    assert (tmp_path / "other" / "metrics.parquet").read_bytes() != (micro_run / "metrics.parquet").read_bytes()


@pytest.mark.timeout(600)
def test_a_run_killed_at_twenty_moments_and_resumed_gives_the_bytes_of_an_unbroken_one(tmp_path):
    script = Path(__file__).with_name("killed_run.py")
    result = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("killed True, resumed True, same bytes True") == 20


def test_every_setting_of_the_main_experiment_reaches_what_it_names(tmp_path):
    """A changed setting changes the table; a setting that changed nothing would be an option that does nothing."""
    base = {"training.epochs": "1", "measure.dense_until": "1"}

    def table(name, **changes):
        learn(configure("micro", seed=3, changes={**base, **changes}), tmp_path / name)
        return (tmp_path / name / "metrics.parquet").read_bytes()

    plain = table("plain")
    changed = {
        "training.batch": "6",
        "training.packing": "tree",
        "training.learning_rate": "1e-2",
        "training.weight_decay": "0.9",
        "training.max_gradient_norm": "0.01",
        "model.width": "8",
        "model.feed_forward": "16",
        "model.layers": "1",
        "model.dropout": "0.5",
        "model.heads": "4",
        "model.architecture": "opt",
        "model.initial_scale": "0.1",
        "measure.components": "2",
        "measure.perplexity": "8",
        "measure.iterations": "300",
        "measure.initialisations": "1",
        "measure.repeats": "5",
        "measure.last_layer": "plain",
        "measure.state": "attention",
        "measure.clusters": "all",
        "data.inputs": "shared",
    }
    seen_elsewhere = {"training.epochs", "measure.dense_until", "measure.every", "measure.display_iterations"}
    sections = ("model.", "training.", "measure.")
    settings = {key for key, _, _ in describe(configure("micro")) if key.startswith(sections)}
    assert set(changed) == settings - seen_elsewhere | {"data.inputs"}
    more = {"data.inputs": {"data.task_symbols": "20"}}
    for key, value in changed.items():
        assert table(key, **{key: value}, **more.get(key, {})) != plain, key


def test_what_only_fails_together_is_refused_before_anything_is_written(tmp_path):
    cases = {
        "measure.perplexity": ("30", "split 'subset' has"),
        "model.heads": ("3", "not a multiple of model.heads"),
        "model.dropout": ("1.0", "must be below 1"),
    }
    for key, (value, says) in cases.items():
        with pytest.raises(Refused, match=says):
            learn(configure("micro", changes={key: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bfloat16_training_runs_and_differs(micro_run, tmp_path):
    assert learn(configure("micro", seed=3, dtype="bfloat16"), tmp_path / "run")
    losses = [
        load_run(folder).metrics.filter(pl.col("measure") == "loss", pl.col("split") == "train")["value"].to_numpy()
        for folder in (micro_run, tmp_path / "run")
    ]
    assert not np.array_equal(*losses)
    assert np.allclose(*losses, rtol=0.05)
