"""Pre-training with task identities end to end, small but whole: what is taught, table, files, the same bytes."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from transformers import AutoModelForCausalLM

from nucleate.claims import applications
from nucleate.cli import main
from nucleate.config import configure
from nucleate.data.synthetic import generate
from nucleate.files import file_hash
from nucleate.paper import naming
from nucleate.paper.instances import Members, of_splits
from nucleate.paper.naming import TASK_TOKEN
from nucleate.paper.network import make_network
from nucleate.paper.pretraining import pretrain
from nucleate.parts import METRICS
from nucleate.refusal import Refused
from nucleate.report.application_tables import ARMS, pretraining_table
from nucleate.report.figures import draw_figures
from nucleate.runs import load_run

SHORT = {"training.epochs": "2", "pretrain.epochs": "2", "measure.dense_until": "1", "measure.every": "9"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A finished micro run, made through the command line."""
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    assert main(["pretrain", "--size", "micro", "--seed", "3", "--out", str(folder)]) == 0
    return load_run(folder)


# --- what is taught ---------------------------------------------------------------------------------------------------


def test_no_mapping_is_seen_in_either_pretraining():
    dataset = generate(configure("micro").data, seed=3)
    named = naming.named(dataset)
    _, tokenizer = make_network(
        configure("micro"), dataset, device="cpu", words=[TASK_TOKEN, *(f"<{task}>" for task in dataset.mappings)]
    )
    symbols = set(tokenizer.convert_tokens_to_ids(dataset.vocabulary["task"]))
    for form, ending in ((Members.of, 2), (naming.instructions_alone, 0)):
        members = form(tokenizer, of_splits(named, ("train", "validation", "test")))
        assert len(members.groups) == len({one.instruction for one in dataset.instances})
        for group, one in zip(members.groups, members.instances, strict=True):
            tokens = [*group.prefix, *group.branches[0], *group.target(0)]
            words = tokenizer.convert_ids_to_tokens(tokens)
            assert (
                words
                == [*one.instruction.split(), TASK_TOKEN, f"<{one.task}>"][: len(one.instruction.split()) + ending]
            )
            assert not symbols & set(tokens)


def test_every_instruction_is_one_point_and_hard_ones_keep_their_original():
    dataset = generate(configure("micro").data, seed=3)
    text = {one.instance: one.instruction for one in dataset.instances}
    named = naming.named(dataset)
    instructions = {one.instance: one for one in named.instances}
    assert sorted(one.instruction for one in named.instances) == sorted(set(text.values()))
    hard = [one for one in named.instances if one.is_hard]
    assert hard
    for one in hard:
        assert sum(a != b for a, b in zip(one.instruction, instructions[one.origin].instruction, strict=True)) == 1


def test_the_two_halves_share_no_task_and_keep_hard_examples_with_their_originals():
    dataset = generate(configure("micro").data, seed=3)
    first, second = naming.halves(dataset, seed=3)
    tasks = [{one.task for one in half.instances} for half in (first, second)]
    assert not tasks[0] & tasks[1]
    assert tasks[0] | tasks[1] == set(dataset.mappings)
    assert abs(len(tasks[0]) - len(tasks[1])) <= 2
    for half in (first, second):
        assert half.select("validation")
        present = {one.instance for one in half.instances}
        assert all(one.origin in present for one in half.instances if one.is_hard)
    assert naming.halves(dataset, seed=3) == (first, second)
    assert naming.halves(dataset, seed=4) != (first, second)


# --- the run ----------------------------------------------------------------------------------------------------------


def test_the_long_table_holds_both_stages_of_every_arm(pretrained):
    table = pretrained.metrics
    assert table.schema == METRICS
    assert set(table["experiment"]) == {"pretrain"}
    assert set(table["arm"]) == {arm + ending for arm in ARMS for ending in ("", "_unseen")}
    accuracy = table.filter(pl.col("measure") == "accuracy", pl.col("split") == "test")
    assert accuracy["read"].null_count() == accuracy.height
    for (arm,), rows in accuracy.group_by("arm"):
        assert rows.sort("epoch")["epoch"].to_list() == list(range(9 if arm.startswith("longer") else 7))
    first = table.filter(pl.col("read") == "task_token")
    assert set(first["arm"]) == {"instruction", "task_id", "instruction_unseen", "task_id_unseen"}
    assert set(first.filter(pl.col("arm").str.starts_with("instruction"))["measure"]) == {"pretraining_loss"}
    assert set(first.filter(pl.col("arm") == "task_id_unseen")["measure"]) == {"pretraining_loss", "task_id_accuracy"}
    states = first.filter(pl.col("arm") == "task_id", pl.col("layer").is_not_null())
    assert set(states["epoch"]) == {0, 1, 2, 3}
    assert set(states["labels"].drop_nulls()) == {"task", "distribution"}
    assert set(states["space"]) == {"raw", "tsne"}
    assert set(first["control"]) == {"none", "shuffled", "regrouped", "surface_instruction"}
    assert {"f1", "ari", "ami", "knn_share", "hard_separated", "linear_accuracy"} <= set(states["measure"])


def test_the_ledger_finds_its_quantities_in_the_table(pretrained):
    table = pretrained.metrics
    curves = table.filter(pl.col("measure") == "accuracy", pl.col("epoch") > 0, ~pl.col("arm").str.contains("_"))
    area = {
        arm: table.filter(
            pl.col("arm") == arm, pl.col("measure") == "accuracy", pl.col("split") == "validation", pl.col("epoch") > 0
        )["value"].mean()
        for arm in ARMS
    }
    assert applications.area_gain(table) == pytest.approx(area["task_id"] - max(area["none"], area["instruction"]))
    last = curves.filter(pl.col("split") == "test").group_by("arm").agg(pl.col("value").sort_by("epoch").last())
    final = dict(last.iter_rows()) | {"task_id": applications.final_accuracy(table, "task_id")}
    others = max(final[arm] for arm in ("none", "instruction"))
    assert applications.final_accuracy_gain(table) == pytest.approx(final["task_id"] - others)


def test_arms_begin_alike_and_only_the_pretrained_ones_begin_elsewhere(pretrained):
    """Before the first step of the fine-tuning; `longer` has the same first weights as `none`, and the same rows."""
    before = pretrained.metrics.filter(pl.col("epoch") == 0, pl.col("read").is_null())
    losses = {arm: rows["value"].to_list() for (arm,), rows in before.sort("split", "measure").group_by("arm")}
    assert losses["none"] == losses["longer"]
    assert len({tuple(losses[arm]) for arm in ("none", "instruction", "task_id")}) == 3


def test_the_chosen_network_is_the_earliest_best_on_validation(pretrained):
    first = pretrained.metrics.filter(pl.col("read") == "task_token", pl.col("split") == "validation")
    for arm, measure, descending in (("task_id", "task_id_accuracy", True), ("instruction", "pretraining_loss", False)):
        rows = first.filter(pl.col("arm") == arm, pl.col("measure") == measure, pl.col("epoch") > 0)
        chosen = rows.sort(["value", "epoch"], descending=[descending, False])["epoch"][0]
        assert pretrained.manifest["chosen_epochs"][arm] == chosen


def test_the_run_folder_holds_the_networks_and_nothing_that_only_a_resume_needs(pretrained):
    assert pretrained.manifest["status"] == "done"
    names = {arm + ending for arm in ARMS for ending in ("", "_unseen")}
    names |= {f"{arm}{ending}-pretraining" for arm in ("instruction", "task_id") for ending in ("", "_unseen")}
    assert set(pretrained.manifest["checkpoints"]) == names
    for name, digest in pretrained.manifest["checkpoints"].items():
        assert file_hash(pretrained.folder / "checkpoints" / name / "model.safetensors") == digest
    AutoModelForCausalLM.from_pretrained(pretrained.folder / "checkpoints" / "task_id-pretraining")
    assert not list(pretrained.folder.glob("resume*"))
    assert set(pretrained.manifest["seconds"]) == {"train", "read", "measure", "total"}


def test_figure_5_and_the_table_of_arms_come_from_the_folder_alone(pretrained, tmp_path):
    names = set(draw_figures(pretrained, tmp_path))
    assert {"figure_5a_pretraining", "figure_5b_finetuning"} <= names
    header, rows = pretraining_table(pretrained)
    assert [row[0] for row in rows] == [arm + ending for ending in ("", "_unseen") for arm in ARMS]
    assert {row[header.index("epochs")] for row in rows} == {6, 8}
    assert (pretrained.folder / "page.html").stat().st_size > 10_000


# --- again, killed, refused -------------------------------------------------------------------------------------------


def test_a_run_killed_at_many_moments_and_resumed_gives_the_bytes_of_an_unbroken_one(tmp_path):
    script = Path(__file__).with_name("killed_pretraining.py")
    result = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("same bytes") == 3


def test_what_only_fails_together_is_refused_before_anything_is_written(tmp_path):
    cases = {
        "two validation tasks": {"data.validation_tasks": "1", "data.validation_distributions": "2"},
        "clusters need at least 4": {"data.validation_instructions": "1", "data.validation_distributions": "3"},
        "not a multiple of model.heads": {"model.heads": "3"},
    }
    for says, changes in cases.items():
        with pytest.raises(Refused, match=says):
            pretrain(configure("micro", changes=changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_setting_of_the_pretraining_reaches_what_it_names(tmp_path):
    def table(name, **changes):
        pretrain(configure("micro", seed=3, changes={**SHORT, "pretrain.unseen": "no", **changes}), tmp_path / name)
        return load_run(tmp_path / name).metrics

    plain = table("plain")
    assert set(plain["arm"]) == set(ARMS)
    half = table("half", **{"pretrain.finetuning": "0.5", "pretrain.epochs": "1"})
    finetuned = half.filter(pl.col("arm") == "none")["epoch"].max()
    assert (finetuned, plain.filter(pl.col("arm") == "none")["epoch"].max()) == (1, 2)
    assert half.filter(pl.col("read") == "task_token")["epoch"].max() == 1
