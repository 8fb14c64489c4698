"""The paper at one size by one command, and its applications over seeds: folders, ledger, page, and what is kept."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from scipy import stats

import fake_run
from nucleate.claims.table import CLAIMS
from nucleate.cli import main
from nucleate.long_table import METHODS
from nucleate.model.networks import gpt2, save_network, word_tokenizer
from nucleate.probing import probe as door
from nucleate.report.application_tables import PAPER, over_seeds
from nucleate.report.figures import draw_svg, figures_of
from nucleate.report.page import _caption
from nucleate.report.seeds import curve_over, series_of
from nucleate.runs import load_run

SHORT = ["--epochs", "1", "--set", "measure.dense_until=0", "--set", "measure.every=9", "--set", "measure.repeats=1"]
SHORT += ["--set", "pretrain.epochs=1", "--set", "pretrain.unseen=no", "--set", "align.epochs=1"]
COMMAND = ["reproduce", "--size", "micro", "--seed", "3", *SHORT]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Everything at size micro, made by the one command."""
    folder = tmp_path_factory.mktemp("reproduced") / "whole"
    assert main([*COMMAND, "--out", str(folder)]) == 0
    return folder


def state(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_one_command_leaves_a_run_for_each_experiment_one_ledger_and_one_page(whole):
    assert {path.name for path in whole.iterdir() if path.is_dir()} == {"learn", "pretrain", "align", "figures"}
    for name in ("learn", "pretrain", "align"):
        assert load_run(whole / name).manifest["status"] == "done"
    judged = {row["claim"] for row in json.loads((whole / "claims.json").read_text())}
    assert judged == {claim.id for claim in CLAIMS} - {"C14", "C15"}  # C14 is about two other widths
    ledger = (whole / "claims.md").read_text()
    assert "C15. Open language models" in ledger.split("## Not run")[1]
    assert "`nucleate probe MODEL natural --seed 0 --out RUN && nucleate claims RUN`" in ledger
    page = (whole / "page.html").read_text()
    for said in ("The claims of the paper", "C18a. Every alignment fixes", ">Table 2<", ">Pre-training<", "Figure 5a"):
        assert said in page, said
    for figure in ("pretrain/figures/figure_5a_pretraining", "pretrain/figures/figure_5b_finetuning"):
        assert (whole / f"{figure}.png").is_file()


def test_resume_on_what_is_finished_computes_and_draws_nothing(whole, capsys):
    before = state(whole)
    assert main([*COMMAND, "--out", str(whole), "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert state(whole) == before


def test_resume_makes_what_is_missing_adds_a_model_and_leaves_the_rest_as_it_was(whole, tmp_path, monkeypatch, capsys):
    again = tmp_path / "whole"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "align")
    kept = {
        path: seen for path, seen in state(again).items() if path.relative_to(again).parts[0] in ("learn", "pretrain")
    }
    tokenizer = word_tokenizer(["capital", "of", "Japan", "France"])
    shape = {"width": 16, "feed_forward": 32, "layers": 1, "heads": 2, "positions": 64, "dropout": 0, "pad": 0}
    save_network(gpt2(vocabulary=len(tokenizer), seed=0, **shape), tokenizer, tmp_path / "model")
    probe_into = door.probe_into

    def limited(folder, model, data, settings, **further):
        return probe_into(folder, model, data, replace(settings, limit=64), **further)

    monkeypatch.setattr(door, "probe_into", limited)
    words = [*COMMAND, "--out", str(again), "--resume", "--model"]
    assert main([*words, str(tmp_path / "nothing")]) == 2
    assert not (again / "align").exists()
    assert main([*words, str(tmp_path / "model")]) == 0
    after = state(again)
    assert {path: after.get(path) for path in kept} == kept  # neither computed nor drawn again
    assert (again / "align" / "metrics.parquet").read_bytes() == (whole / "align" / "metrics.parquet").read_bytes()
    assert (again / "align" / "figures" / "figure_alignment.png").is_file()
    assert "not run: C14\n" in capsys.readouterr().out
    assert "C15" in {row["claim"] for row in json.loads((again / "claims.json").read_text())}
    assert ">Table 1<" in (again / "page.html").read_text()


def test_what_a_later_experiment_would_refuse_is_refused_before_the_first(tmp_path, capsys):
    cases = {
        "leaves no position": ["data.max_length=61"],  # of the alignment
        "two validation tasks": ["data.validation_tasks=1", "data.validation_distributions=2"],  # of the pre-training
    }
    for says, settings in cases.items():
        words = [word for setting in settings for word in ("--set", setting)]
        assert main(["reproduce", "--size", "micro", *words, "--out", str(tmp_path / "x")]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_folder_that_holds_a_run_is_refused_before_the_first_experiment(whole, tmp_path, capsys):
    shutil.copytree(whole / "align", tmp_path / "x" / "align")
    assert main([*COMMAND, "--out", str(tmp_path / "x")]) == 2
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "x" / "learn").exists()


# --- over seeds -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Both applications swept over two seeds, each run in a process of its own."""
    folder = tmp_path_factory.mktemp("seeds")
    for verb in ("pretrain", "align"):
        words = ["sweep", verb, "--size", "micro", "--seed", "0..1", *SHORT, "--workers", "2"]
        assert main([*words, "--out", str(folder / verb)]) == 0
    return folder


def test_the_ledger_takes_c16_to_c18_from_a_sweep_with_intervals(seeds, tmp_path):
    runs = [str(seeds / verb / f"seed{seed}") for verb in ("pretrain", "align") for seed in (0, 1)]
    assert main(["claims", *runs, "--out", str(tmp_path)]) == 0
    rows = {row["claim"]: row for row in json.loads((tmp_path / "claims.json").read_text())}
    assert set(rows) == {"C16", "C17", "C18a", "C18b", "C18c", "C18d"}
    for row in rows.values():
        assert row["seeds"] == [0, 1] and row["verdict"] == "undecided"
        assert row["low"] <= row["estimate"] <= row["high"]
    assert "nucleate sweep pretrain --size micro" in rows["C16"]["command"]
    assert "--seed 0..1" in rows["C18a"]["command"]


def test_table_2_over_seeds_is_printed_and_on_the_page_beside_the_papers(seeds, tmp_path, capsys):
    folders = [seeds / "align" / f"seed{seed}" for seed in (0, 1)]
    assert main(["report", *map(str, folders), "--out", str(tmp_path)]) == 0
    said, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    (series,) = series_of([load_run(folder) for folder in folders])
    title, (_, rows) = over_seeds(series)
    assert title in said and title in page and "seeds 0, 1" in title
    shown = {row[0]: row[1:] for row in rows}
    saved = (tmp_path / "figures" / "align-micro" / "over_seeds.md").read_text(encoding="utf-8")
    assert all(str(cell).replace("[", "\\[").replace("]", "\\]") in saved for row in rows for cell in row)
    tables = [load_run(folder).metrics.filter(pl.col("epoch").is_null(), split="test") for folder in folders]
    one = {arm: [table.filter(arm=arm, measure="accuracy_drop")["value"].item() for table in tables] for arm in METHODS}
    drops = {arm: np.array(values) for arm, values in one.items()}
    for arm, cell in zip(METHODS, shown["all other tasks: accuracy drop"], strict=True):
        assert numbers(cell) == pytest.approx((np.mean(drops[arm]), *wanted_interval(drops[arm])), abs=6e-4)
    assert (tmp_path / "figures" / "align-micro" / "figure_table_2.png").is_file()
    steps = shown["all other tasks: drop less than the one before by"][1:]
    for (worse, better), cell in zip(pairwise(METHODS), steps, strict=True):
        apart = drops[worse] - drops[better]
        assert numbers(cell) == pytest.approx((apart.mean(), *wanted_interval(apart)), abs=6e-4)
    papers = [row[1:] for row in rows if "(paper)" in row[0]]
    assert papers == [tuple(f"{value:.3f}" for value in PAPER[measure]) for measure in PAPER]


def numbers(cell):
    """Mean, low and high, as a cell tells them."""
    return tuple(float(part.strip("[,]")) for part in cell.split())


def wanted_interval(values):
    return stats.ttest_1samp(values, 0).confidence_interval() if np.ptp(values) else [np.mean(values)] * 2


def test_figure_5_over_seeds_pairs_the_arms_seed_by_seed_and_leaves_the_runs_as_they_are(seeds, tmp_path, capsys):
    folders = [seeds / "pretrain" / f"seed{seed}" for seed in (0, 1)]
    before = [state(folder) for folder in folders]
    assert main(["report", *map(str, folders), "--out", str(tmp_path)]) == 0
    assert [state(folder) for folder in folders] == before
    drawn = {path.name for path in (tmp_path / "figures" / "pretrain-micro").iterdir()}
    assert {"figure_5a_pretraining.png", "figure_5b_finetuning.svg"} <= drawn
    page = (tmp_path / "page.html").read_text()
    assert page.count("Figure 5b. ") == 3  # one picture: its label, its text for who does not see it, its caption
    (series,) = series_of([load_run(folder) for folder in folders])
    title, (header, rows) = over_seeds(series)
    assert title in capsys.readouterr().out and "Over seeds: pretrain, size micro, seeds 0, 1" in page
    shown = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    areas = {
        arm: np.array([run.metrics.filter(arm=arm, measure="area_under_curve")["value"].item() for run in series.runs])
        for arm in ("task_id", "none")
    }
    mean, low, high = numbers(shown["task_id less none"]["area under curve"])
    apart = areas["task_id"] - areas["none"]
    assert (mean, low, high) == pytest.approx((apart.mean(), *wanted_interval(apart)), abs=6e-4)
    assert numbers(shown["task_id"]["area under curve"])[0] == pytest.approx(areas["task_id"].mean(), abs=6e-4)


def test_a_curve_over_seeds_is_the_mean_between_the_lowest_and_the_highest_where_all_were_measured():
    frames = [
        pl.DataFrame({"epoch": [1, 2, 3], "value": [0.0, 0.2, 0.9]}),
        pl.DataFrame({"epoch": [2, 1], "value": [0.4, 0.1]}),
    ]
    found = curve_over(frames)
    assert found.epochs.tolist() == [1, 2]
    assert (found.mean.tolist(), found.low.tolist(), found.high.tolist()) == (
        [0.05, pytest.approx(0.3)],
        [0.0, 0.2],
        [0.1, 0.4],
    )
    alone = curve_over(frames[:1])
    assert alone.mean.tolist() == alone.low.tolist() == alone.high.tolist() == [0.0, 0.2, 0.9]


def test_learning_over_seeds_is_drawn_as_means_in_bands_without_the_pictures_of_one_run(tmp_path, capsys):
    folders = [fake_run.build(tmp_path / f"seed{seed}", epochs=6, layers=2, seed=seed) for seed in (4, 7)]
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "out")]) == 0
    drawn = tmp_path / "out" / "figures" / "learn-small"
    names = {path.stem for path in drawn.iterdir()}
    assert names == {
        *("figure_2_clustering_f1", "figure_3_learning"),
        *("figure_4_neighbours", "figure_6_clustering_all"),
    }
    for name in names:
        svg = (drawn / f"{name}.svg").read_text()
        assert "Lines: mean of seeds 4, 7; bands in their colour" in svg
        assert "opacity: 0.15" in svg  # a band
    page = (tmp_path / "out" / "page.html").read_text()
    assert "Over seeds: learn, size small, seeds 4, 7" in page and page.count("Figure 2. ") == 3
    alone = draw_svg(load_run(folders[0]))["figure_3_learning"][0].decode()
    assert "opacity: 0.15" not in alone and "Lines: mean" not in alone


def test_what_is_not_finished_or_there_twice_stands_alone(tmp_path):
    folders = [fake_run.build(tmp_path / f"seed{seed}", epochs=6, layers=2, seed=seed) for seed in (4, 7)]
    folders.append(fake_run.build(tmp_path / "begun", epochs=6, layers=2, seed=8, finished=False))
    runs = [load_run(folder) for folder in folders]
    assert [(one.name, len(one.runs)) for one in series_of(runs)] == [("learn-small", 2), ("learn-small-seed8", 1)]
    twice = series_of([runs[0], runs[1], load_run(folders[1])])
    assert [one.name for one in twice] == ["learn-small-seed4", "learn-small-seed7", "learn-small-seed7~2"]


def test_a_series_stays_inside_the_folder_it_is_drawn_in(tmp_path):
    runs = [load_run(fake_run.build(tmp_path / f"{seed}", epochs=6, layers=2, seed=seed)) for seed in (4, 7)]
    for run in runs:
        run.config["size"] = "x/../../../evil"
    (series,) = series_of(runs)
    assert "/" not in series.name and (tmp_path / series.name).resolve().parent == tmp_path.resolve()


def test_every_figure_has_a_caption_of_its_own(tmp_path):
    names = set(figures_of(load_run(fake_run.build(tmp_path / "run", epochs=6, layers=2))))
    captions = {_caption(name) for name in names}
    assert len(captions) == len(names) and all(len(caption) > 50 for caption in captions)


def test_two_series_of_one_size_have_names_that_say_what_sets_them_apart(seeds):
    runs = [load_run(seeds / "align" / f"seed{seed}") for seed in (0, 1)]
    others = [load_run(run.folder) for run in runs]
    for other in others:
        other.config["training"] = {**other.config["training"], "packing": "tree"}
    rows, tree = series_of([runs[0], *others, runs[1]])
    assert (tree.name, rows.name) == ("align-micro-packing=tree", "align-micro-packing=rows")
    assert rows.words == "size micro, packing=rows, seeds 0, 1"
    assert [series.name for series in series_of(runs)] == ["align-micro"]
    assert [series.words for series in series_of(others)] == ["size micro, packing=tree, seeds 0, 1"]


def test_runs_that_differ_in_more_than_their_seed_are_not_averaged(seeds, whole):
    first, other = load_run(seeds / "align" / "seed0"), load_run(whole / "align")
    other.config["align"] = {**other.config["align"], "epochs": 7}
    assert [len(series.runs) for series in series_of([first, other])] == [1, 1]
    assert all(over_seeds(series) is None for series in series_of([first, other]))
