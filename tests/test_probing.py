"""Probing end to end on tiny networks whose embeddings know the tasks, beside ones that do not.

Every prompt has words of its own, random letters, so that n-grams say nothing: only a network that was given the tasks
can tell them apart.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import nucleate
from nucleate.cli import main
from nucleate.data.prompts import read_prompts
from nucleate.model import blocks
from nucleate.model.networks import gpt2, save_network, word_tokenizer
from nucleate.parts import METRICS
from nucleate.probing import controls, layers, one_model, study
from nucleate.probing import probe as door
from nucleate.probing.findings import summary_lines
from nucleate.probing.settings import ProbeSettings
from nucleate.refusal import Refused
from nucleate.runs import RunWriter

TASKS, PROMPTS, WORDS = 4, 16, 3
QUICK = {"iterations": 250, "repeats": 2, "initialisations": 2}
WRONG = {3: "t1", 20: "t2", 50: "t0"}  # planted: their true tasks are t0, t1, t3


def words() -> list[list[str]]:
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return [["".join(rng.choice(letters, 6)) for _ in range(WORDS)] for _ in range(TASKS * PROMPTS)]


def tokenizer():
    return word_tokenizer(["Answer:", *(word for prompt in words() for word in prompt)])


def network(*, strength: float, tasks: int = TASKS, seed: int = 0):
    """A random GPT-2 whose embedding of a word leans towards the word's task, for the first so many tasks."""
    model = gpt2(
        vocabulary=len(tokenizer()),
        width=32,
        feed_forward=64,
        layers=2,
        heads=2,
        positions=16,
        dropout=0,
        pad=0,
        seed=seed,
    )
    rng = np.random.default_rng(7)
    book = tokenizer().get_vocab()
    with torch.no_grad():
        for task in range(tasks):
            lean = torch.from_numpy(rng.normal(size=32).astype(np.float32)) * 0.02 * strength
            for prompt in words()[task * PROMPTS : (task + 1) * PROMPTS]:
                model.transformer.wte.weight[[book[word] for word in prompt]] += lean
    return model


def rows(**renamed: str) -> list[dict[str, str]]:
    task, text = renamed.get("task", "task"), renamed.get("text", "text")
    listed = [{text: " ".join(prompt), task: f"t{number // PROMPTS}"} for number, prompt in enumerate(words())]
    for number, wrong in WRONG.items():
        listed[number][task] = wrong
    return listed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two models, their data, and the run of the command line that compares them."""
    folder = tmp_path_factory.mktemp("probing")
    save_network(network(strength=6), tokenizer(), folder / "tuned")
    save_network(network(strength=6, tasks=1), tokenizer(), folder / "base")
    listed = "\n".join(json.dumps(row) for row in rows(task="label"))
    (folder / "prompts.jsonl").write_text(listed + "\n", encoding="utf-8")
    asked = [str(folder / "tuned"), str(folder / "prompts.jsonl"), "--columns", "task=label"]
    assert main(["probe", *asked, "--base", str(folder / "base"), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture(scope="module")
def result(folder) -> nucleate.probing.result.ProbeResult:
    return door.load_probe(folder / "run")


def test_the_command_answers_in_words_and_leaves_every_table_and_figure(folder, result, capsys):
    assert result.verdict.startswith("clustered: at layer ") and "3 prompts look mislabelled" in result.verdict
    assert "all 4 tasks are clustered" in result.verdict and "labels are read off layer " in result.verdict
    assert "compared with base, the model made 't" in result.verdict and "→" in result.verdict
    assert "1 clustered ('t0')" in result.verdicts["base"] and "look mislabelled (" in result.verdicts["base"]
    run = folder / "run"
    for name in ("metrics", "tasks", "confusion", "suspicious", "coordinates", "layouts/tuned", "data/dataset"):
        assert (run / f"{name}.parquet").is_file()
    assert len(list((run / "figures").glob("figure_probe_*.svg"))) == 3
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["verdict"]["tuned"] == result.verdict and set(manifest["checkpoints"]) == {"tuned", "base"}
    seconds = manifest["seconds"]
    assert 0 < seconds["read"] < seconds["total"] == pytest.approx(seconds["read"] + seconds["measure"], abs=0.01)
    drawn = (run / "figures" / "figure_probe_layers.svg").read_text(encoding="utf-8")
    assert "labels read" in drawn and "neighbours that share the label" in drawn
    asked = [str(folder / "tuned"), str(folder / "prompts.jsonl"), "--columns", "task=label"]
    before = (run / "metrics.parquet").read_bytes()
    assert main(["probe", *asked, "--base", str(folder / "base"), "--out", str(run), "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out and (run / "metrics.parquet").read_bytes() == before


def test_rows_keep_the_contract_and_every_control_stands_beside_the_measurement(result):
    metrics = result.metrics
    assert metrics.schema == METRICS and metrics["value"].is_finite().all()
    keys = [name for name in METRICS if name != "value"]
    assert not metrics.select(keys).is_duplicated().any() and metrics.equals(metrics.sort(keys, nulls_last=False))
    assert set(metrics["experiment"]) == {"probe"} and set(metrics["read"]) == {None, "answer_start"}
    assert set(metrics["split"]) == {"all", "validation", "test"}
    tuned = metrics.filter(pl.col("model") == "tuned")
    assert set(tuned["control"]) == {"none", "untrained", "shuffled"}  # no distributions: nothing to regroup
    surface = metrics.filter(pl.col("control") == "surface_prompt")
    assert set(surface["model"]) == {None} and set(surface["layer"]) == {None}

    def share(control: str, model: str | None = "tuned") -> float:
        here = metrics.filter(
            pl.col("control") == control, pl.col("model").eq_missing(model), pl.col("split") == "test"
        )
        return here.filter(pl.col("measure") == "knn_share", pl.col("layer").is_null() | (pl.col("layer") == 2))[
            "value"
        ][0]

    assert share("none") > 0.65  # 0.8 at most: eight of ten neighbours can be of the task
    assert all(
        share(control, model) < 0.45
        for control, model in (("untrained", "tuned"), ("shuffled", "tuned"), ("surface_prompt", None))
    )
    assert share("none", "base") < 0.6


def test_tables_tell_task_by_task_what_is_separate_what_changed_and_which_prompts_are_wrong(result):
    best = result.best_layer
    tasks = result.tasks.filter(pl.col("model") == "tuned", pl.col("layer") == best)
    value = {(row["task"], row["measure"]): row["value"] for row in tasks.iter_rows(named=True)}
    for task in ("t0", "t1", "t2", "t3"):
        assert value[task, "clustered"] == value[task, "held_clustered"] == 1
        assert value[task, "knn_share_low"] <= value[task, "knn_share"]
        assert value[task, "linear_accuracy_low"] <= value[task, "linear_accuracy"] > 0.8
        assert 0 <= value[task, "f1"] <= 1
    assert value["t1", "knn_share_over_base"] > 0.3 > value["t0", "knn_share_over_base"]
    assert value["t1", "knn_share_over_base_low"] > 0
    compared = result.difference("base")
    assert compared.filter(pl.col("task") == "t1")["difference"][0] == pytest.approx(value["t1", "knn_share_over_base"])

    doubted = result.suspicious.filter(pl.col("model") == "tuned", pl.col("margin") > 0.5)
    assert set(doubted["instance"]) == set(WRONG)
    true = {number: f"t{number // PROMPTS}" for number in WRONG}
    assert {row["instance"]: row["nearest"] for row in doubted.iter_rows(named=True)} == true
    listed = result.suspicious.filter(pl.col("model") == "tuned").group_by("task").len()
    assert (listed["len"] == 10).all()

    confused = result.confusion.filter(pl.col("model") == "base", pl.col("layer") == best)
    sums = confused.group_by("task").agg(pl.col("share").sum())["share"].to_numpy()
    assert np.allclose(sums, 1)
    assert len(result.coordinates) == 2 * TASKS * PROMPTS and result.coordinates["x"].null_count() == 0
    assert result.coordinates.filter(pl.col("model") == "tuned")["split"].value_counts()["count"].min() >= 30


def test_the_answer_lists_tasks_and_doubtful_prompts_with_their_lines(result, folder, capsys):
    said = str(result)
    listed = [line.split() for line in said.splitlines()]
    for task in ("t0", "t1", "t2", "t3"):
        (line,) = [words for words in listed if words[:1] == [task]]
        assert line[1] == "clustered" and 0.8 < float(line[2]) <= 1 and line[4].startswith("+")
    doubted = result.suspicious.filter(pl.col("model") == "tuned", pl.col("counted"))
    assert set(doubted["row"]) == {number + 1 for number in WRONG}  # lines of a file count from 1
    for number, given in WRONG.items():
        (line,) = [words for words in listed if words[:1] == [str(number + 1)]]
        assert line[1:3] == [given, f"t{number // PROMPTS}"]
    assert said.splitlines()[0] == f"tuned: {result.verdict}."
    assert main(["report", str(folder / "run")]) == 0
    printed = capsys.readouterr().out
    answer, table = printed.index(f"tuned: {result.verdict}."), printed.index("Task by task: tuned")
    assert answer < printed.index("Rows that look mislabelled: ") < table < printed.index("page: ")
    assert printed[table:].split("\n\n")[0] in said  # one of its tables
    for number, given in WRONG.items():
        assert f"{number + 1} ({given}, looks like t{number // PROMPTS})" in printed


def test_prompts_that_were_left_out_are_a_table_with_their_lines(folder, tmp_path):
    listed = [*rows(), {"text": "a " * 40, "task": "t0"}, {"text": "", "task": "t1"}]
    listed.insert(0, {"text": "b", "task": ""})
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, listed)), encoding="utf-8")
    told = []
    seen = nucleate.probe(
        folder / "tuned", tmp_path / "some.jsonl", progress=lambda text, fraction: told.append(text), **QUICK
    )
    left_out = {(row["model"], row["row"]): row["why"] for row in seen.dropped.iter_rows(named=True)}
    assert left_out.keys() == {(None, 1), (None, len(listed)), ("tuned", len(listed) - 1)}
    assert left_out[None, 1] == "task is empty" and "40 tokens long" in left_out["tuned", len(listed) - 1]
    assert any("dropped.parquet" in text for text in told)


def test_tasks_with_too_few_prompts_are_named_before_anything_is_read(folder):
    few = [row for number, row in enumerate(rows()) if number >= PROMPTS - 5]
    told = []
    seen = nucleate.probe(folder / "tuned", few, progress=lambda text, fraction: told.append(text), **QUICK)
    (place,) = [n for n, text in enumerate(told) if "too few prompts to tell of 1 of 4 tasks: 't0' 3" in text]
    assert not any("reading" in text and "parameters" not in text for text in told[:place])
    assert "too few prompts to tell about 't0'" in seen.verdict and "too few" in str(seen).split("Task by task")[1]


def test_a_wrong_template_layer_or_tokenizer_is_refused_before_a_folder_is_made(folder, tmp_path):
    for options, why in (
        ({"template": "{input}"}, "its text is empty"),
        ({"chat": True}, "no chat template"),
        ({"layers": [7]}, "layer 7 does not exist"),
        ({"tokenizer": object()}, "tells no offsets"),
    ):
        with pytest.raises(Refused, match=why):
            given = {"tokenizer": options.pop("tokenizer", None)}
            settings = ProbeSettings(**{**QUICK, **options})
            door.probe_into(tmp_path / "run", folder / "tuned", rows(), settings, **given)
    assert not (tmp_path / "run").exists()


def test_what_transformers_is_told_when_it_loads_is_passed_on_and_kept(folder, tmp_path, capsys):
    asked = [str(folder / "tuned"), str(folder / "prompts.jsonl"), "--columns", "task=label", "--layers", "2"]
    out = tmp_path / "run"
    assert main(["probe", *asked, "--loading", "attn_implementation=sdpa", "--out", str(out)]) == 0
    assert 'loading = ["attn_implementation=sdpa"]' in (out / "config.toml").read_text(encoding="utf-8")
    assert main(["probe", *asked, "--loading", "attn_implementation=none-such", "--out", str(tmp_path / "no")]) == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_a_probe_killed_when_all_is_written_leaves_no_states_behind(folder, monkeypatch, tmp_path):
    asked = {"data": folder / "prompts.jsonl", "settings": ProbeSettings(columns={"task": "label"}, **QUICK)}
    monkeypatch.setattr(study, "total_memory", lambda: 0)  # with the states on disk
    log = RunWriter.log

    def killed(self, event, **facts):
        if event == "probed":
            raise KeyboardInterrupt
        log(self, event, **facts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunWriter, "log", killed)
        door.probe_into(tmp_path / "run", str(folder / "base"), **asked)
    assert (tmp_path / "run" / "spill").is_dir()
    monkeypatch.setattr(door.Subject, "load", lambda self: pytest.fail("read again"))
    assert door.probe_into(tmp_path / "run", str(folder / "base"), resume=True, **asked)
    assert not any((tmp_path / "run" / name).exists() for name in ("spill", "blocks", "pieces"))


def test_a_probe_killed_after_its_first_model_and_resumed_gives_the_same_bytes(folder, monkeypatch, tmp_path):
    models = [str(folder / "tuned"), str(folder / "base")]
    asked = {"data": folder / "prompts.jsonl", "settings": ProbeSettings(columns={"task": "label"}, **QUICK)}
    door.probe_into(tmp_path / "whole", models, **asked)
    loaded = door.Subject.load

    def killed(self):
        if self.name == "base":
            raise KeyboardInterrupt
        return loaded(self)

    monkeypatch.setattr(door.Subject, "load", killed)
    with pytest.raises(KeyboardInterrupt):
        door.probe_into(tmp_path / "killed", models, **asked)
    monkeypatch.setattr(
        door.Subject, "load", lambda self: pytest.fail("read again") if self.name == "tuned" else loaded(self)
    )
    monkeypatch.setattr(study, "total_memory", lambda: 0)  # and with the states on disk
    assert door.probe_into(tmp_path / "killed", models, resume=True, **asked)
    assert not (tmp_path / "killed" / "spill").exists()
    for name in ("metrics", "tasks", "confusion", "suspicious", "coordinates"):
        whole, again = (pl.read_parquet(tmp_path / one / f"{name}.parquet") for one in ("whole", "killed"))
        assert whole.equals(again)
    assert (tmp_path / "whole" / "metrics.parquet").read_bytes() == (
        tmp_path / "killed" / "metrics.parquet"
    ).read_bytes()


def test_the_stage_that_is_shown_is_the_one_that_runs(folder, monkeypatch):
    shown, seen = [""], set()

    def watched(room, name, *labels):
        own = getattr(room, name)

        def call(*arguments, **named):
            found = [label for label in labels if shown[0].endswith(label)]
            assert found, f"{name} runs while {shown[0]!r} is shown"
            seen.update(found)
            return own(*arguments, **named)

        monkeypatch.setattr(room, name, call)

    watched(door.Subject, "load", "tuned: loading the weights")
    watched(blocks, "evaluate", "tuned: reading the prompts", "untrained: reading the prompts")
    watched(controls, "surface_features", "n-grams of the text")
    watched(one_model, "interval_rows", "tuned: intervals")
    watched(one_model, "untrained", "untrained: drawing fresh weights")
    watched(one_model, "doubts", "tuned: margins and doubtful prompts")
    survey = layers.survey

    def surveyed(labelling, *arguments, **named):
        tsne = any(space == "tsne" for _, space in labelling.places)
        labels = ["t-SNE"] if tsne else ["measuring the layers", "n-grams of the text"]
        found = [label for label in labels if shown[0].endswith(label)]
        assert found, f"layers are measured while {shown[0]!r} is shown"
        seen.update(found)
        return survey(labelling, *arguments, **named)

    monkeypatch.setattr(layers, "survey", surveyed)
    fractions = []

    def progress(text, fraction):
        if fraction is not None:
            shown[0] = text
            fractions.append(fraction)

    asked = {"columns": {"task": "label"}, **QUICK}
    nucleate.probe(folder / "tuned", folder / "prompts.jsonl", progress=progress, **asked)
    assert len(seen) == 9 and fractions[-1] == 1


def test_two_models_of_which_none_is_the_base_are_lines_of_one_table(folder, tmp_path, capsys):
    asked = [str(folder / "tuned"), str(folder / "base"), str(folder / "prompts.jsonl"), "--columns", "task=label"]
    assert main(["probe", *asked, "--layers", "0,1", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    table = printed.partition("On held-out prompts")[2].splitlines()
    assert {line.split()[0] for line in table if line.startswith(("tuned", "base"))} == {"tuned", "base"}
    assert "Task by task" not in printed


def test_a_folder_of_checkpoints_is_a_series_and_its_curve_rises(folder, tmp_path):
    for step, strength in ((10, 0), (20, 1.5), (30, 6)):
        save_network(network(strength=strength), tokenizer(), tmp_path / "series" / f"checkpoint-{step}")
    seen = nucleate.probe(tmp_path / "series", folder / "prompts.jsonl", columns={"task": "label"}, **QUICK)
    best = seen.metrics.filter(pl.col("measure") == "knn_share", pl.col("control") == "none", pl.col("split") == "test")
    curve = best.group_by("step").agg(pl.col("value").max()).sort("step")
    assert curve["step"].to_list() == [10, 20, 30] and curve["value"][2] > 0.7 > 0.5 > curve["value"][0]
    figure = nucleate.report.probe_figures.series_figure(seen.metrics)
    assert figure is not None and figure.axes[0].get_xlabel() == "step"
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    assert lines["labels read"][2] > 0.7 > lines["labels read"][0] and len(lines["neighbours with the same task"]) == 3
    with pytest.raises(Refused, match="series stands for several"):
        nucleate.probe(tmp_path / "series", folder / "prompts.jsonl", base=folder / "base", columns={"task": "label"})


def test_prompts_with_inputs_are_judged_among_other_inputs_and_get_their_controls(tmp_path):
    """A loaded network, and a list of dicts with instruction, input, output, distribution, mapping and format."""
    listed = []
    for number, (first, second, _) in enumerate(words()):
        for given in (words()[k][2] for k in range(3)):  # the same inputs under every instruction
            task = f"t{number // PROMPTS}"
            rows = {"instruction": f"{first} {second}", "input": given, "output": words()[0][0], "task": task}
            form = f"form {number // 2 % 2}"
            listed.append({**rows, "distribution": f"{task}-{number % 2}", "mapping": given, "format": form})
    seen = nucleate.probe(network(strength=6), listed, tokenizer=tokenizer(), **QUICK)
    metrics = seen.metrics
    assert set(metrics["control"]) == {
        "none",
        "shuffled",
        "regrouped",
        "untrained",
        "neutral",
        "surface_prompt",
        "surface_instruction",
        "answers",
    }
    right = metrics.filter(pl.col("control") == "answers")
    assert right.select(pl.col("model", "epoch", "layer").is_null().all()).row(0) == (True, True, True)
    assert {"knn_share_other_inputs", "linear_accuracy", "f1"} <= set(right["measure"])
    assert right["value"].is_between(-1, 1).all()
    assert set(metrics["read"]) == {None, "input", "instruction_end"}
    assert set(metrics["space"]) == {None, "raw", "tsne", "centred", "averaged"}
    assert set(metrics["labels"]) == {None, "task", "distribution", "distribution_mapping"}
    assert_shape_of_layers(metrics)
    answers = metrics.filter(pl.col("measure").str.starts_with("accuracy"), pl.col("control") == "none")
    assert set(answers["measure"]) == {"accuracy", "accuracy_whole", "accuracy_restricted"}
    assert set(answers.filter(pl.col("measure") == "accuracy_restricted")["value"]) == {1.0}  # one output, one choice
    decided = seen.tasks.filter(pl.col("measure") == "knn_share_other_inputs_low")
    assert set(decided["layer"]) == {0, 1, 2}
    neutral = metrics.filter(
        pl.col("control") == "neutral", pl.col("measure") == "knn_share", pl.col("split") == "test"
    )
    assert (neutral["value"] < 0.35).all()  # the input alone tells no task
    lines = str(seen).splitlines()
    assert any(line.startswith("On held-out prompts") and "with other inputs" in line for line in lines)
    header, *table = summary_lines(metrics)
    assert [line[1] for line in table] == ["labels read", "neighbours", "F1 of k-means", "F1 by t-SNE", "answers right"]
    for control in ("untrained", "n-grams: prompt", "neutral instruction", "answers alone", "shuffled"):
        assert table[0][header.index(control)] and table[1][header.index(control)]
    assert len(seen.plot().axes) == 3
    kept = seen.save(tmp_path / "kept")
    assert door.load_probe(kept).verdict == seen.verdict
    with pytest.raises(Refused, match="exists; name a new folder"):
        seen.save(tmp_path / "kept")


def assert_shape_of_layers(metrics):
    """Of every layer its rank, its dimension and the parent's cosine, with the untrained network beside; in the
    embedding there are three states in all, one for each input, and neither dimension nor cosine."""
    for measure, at, labels, dealt in (
        ("effective_rank", {0, 1, 2}, None, set()),
        ("intrinsic_dimension", {1, 2}, None, set()),
        ("parent_cosine", {1, 2}, "distribution", {"shuffled", "regrouped"}),
    ):
        found = metrics.filter(pl.col("measure") == measure)
        assert set(found.select("split", "space", "read", "labels").rows()) == {("all", "raw", "input", labels)}
        assert set(found["control"]) == {"none", "untrained"} | dealt
        assert all(set(found.filter(control=control)["layer"]) == at for control in found["control"])
        assert (found["value"] >= 0).all() and (not dealt or (found["value"] <= 1).all())
    of_form = metrics.filter(pl.col("measure") == "knn_share_other_format", pl.col("split") == "test", space="raw")
    assert {"none", "untrained", "neutral", "shuffled", "surface_prompt"} <= set(of_form["control"])
    reached = {control: of_form.filter(control=control)["value"].max() for control in ("none", "untrained", "shuffled")}
    assert reached["none"] > 0.8 > 0.5 > max(reached["untrained"], reached["shuffled"])


def test_the_estimate_needs_no_weights_and_writes_nothing(folder, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((folder / "tuned" / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    asked = ["probe", str(bare), str(folder / "prompts.jsonl"), "--columns", "task=label", "--estimate"]
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert "64 prompts of about 380 tokens in all; about 1.0 GiB" in told  # guesses say so, and in two figures
    assert told.startswith("bare: ") and "64 prompts" in told and "1.0 GiB of memory" in told and "to read" in told
    assert list(tmp_path.iterdir()) == [bare]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "needs --out RUN"),
        (["--out", "{}/new", "--columns", "task"], "--columns 'task' is not of the form"),
        (["--out", "{}/new", "--columns", "task=label", "--layers", "0,x"], "--layers '0,x' is not of the form 0,8,…"),
        (["--out", "{}/new", "--columns", "task=label", "--layers", "9"], "layer 9 does not exist"),
        (["--out", "{}/new"], "column 'task' is missing"),
    ],
)
def test_bad_input_is_refused_in_one_line(folder, tmp_path, capsys, options, why):
    asked = [str(folder / "tuned"), str(folder / "prompts.jsonl"), *(option.format(tmp_path) for option in options)]
    assert main(["probe", *asked]) == 2
    told = capsys.readouterr().err.splitlines()
    assert why in told[-1] and told[-1].startswith("nucleate: ")


def test_prompts_too_few_to_be_halved_are_refused(folder):
    few = [row for number, row in enumerate(rows()) if number in (0, 1, 2, 17, 18, 19)]
    with pytest.raises(Refused, match="too few different prompts to measure"):
        nucleate.probe(folder / "tuned", few)


def test_a_misspelt_keyword_is_named_and_a_misspelt_option_gets_the_nearest(folder, capsys):
    with pytest.raises(TypeError, match="unexpected keyword argument 'thorogh'"):
        nucleate.probe(folder / "tuned", folder / "prompts.jsonl", thorogh=True)
    assert main(["probe", str(folder / "tuned"), str(folder / "prompts.jsonl"), "--thorogh"]) == 2
    assert "did you mean '--thorough'" in capsys.readouterr().err


def test_a_split_that_cannot_be_used_as_it_is_is_told():
    tasks, words = ("alpha", "beta"), ("x", "y", "z", "u")
    rows = [
        {"instruction": f"do {task} {k}", "input": word, "task": task, "split": "train" if k % 2 else "test"}
        for task in tasks
        for k in range(8)
        for word in words
    ]
    assert "halved anew" in study.ProbeStudy.of(read_prompts(rows), ProbeSettings()).notes[0]


def test_a_probe_that_was_killed_can_be_reported_as_far_as_it_got(folder, tmp_path, monkeypatch, capsys):
    loaded = door.Subject.load
    monkeypatch.setattr(door.Subject, "load", lambda self: loaded(self) if self.name == "tuned" else 1 / 0)
    models = [str(folder / "tuned"), str(folder / "base")]
    with pytest.raises(ZeroDivisionError):
        settings = ProbeSettings(columns={"task": "label"}, **QUICK)
        door.probe_into(tmp_path / "run", models, folder / "prompts.jsonl", settings)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "page:" in capsys.readouterr().out


def test_layers_may_be_an_array(folder, tmp_path):
    settings = ProbeSettings(columns={"task": "label"}, layers=np.arange(2, 3), **QUICK)
    door.probe_into(tmp_path / "run", folder / "tuned", folder / "prompts.jsonl", settings)
    assert "layers = [2]" in (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")


def test_where_no_layer_could_be_chosen_the_data_are_refused():
    rows = [
        {"instruction": f"{task} {number}", "input": given, "task": task}
        for task in "abcdefgh"
        for number in range(2)
        for given in ("x1", "x2", "x3")
    ]
    with pytest.raises(Refused, match=r"no layer can be chosen.*second instruction: give at least four of each task"):
        study.ProbeStudy.of(read_prompts(rows), ProbeSettings())
