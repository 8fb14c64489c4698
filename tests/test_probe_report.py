"""What is drawn of a probe: from tables alone, the shipped ones and made-up ones with many tasks or a single layer."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from nucleate.parts import LAYOUT, metrics_frame
from nucleate.report.drawing import style
from nucleate.report.page_tables import table_1
from nucleate.report.probe_figures import confusion_figure, layers_figure, main_read, tasks_figure
from nucleate.report.scenes import scenes_of
from nucleate.report.tables import answers_table
from nucleate.runs import Run, load_run

SENTENCES = Path(__file__).parents[1] / "results" / "probe-smollm2" / "sentences"
MANY = 100


@pytest.fixture(scope="module")
def sentences() -> Run:
    return load_run(SENTENCES)


@pytest.fixture
def metrics() -> pl.DataFrame:
    """One model, one layer."""
    chosen = {"experiment": "probe", "model": "m", "control": "none", "split": "validation", "read": "input"}
    place = {"experiment": "probe", "model": "m", "split": "test", "layer": 3, "read": "input", "labels": "task"}
    rows = [{**chosen, "measure": name, "value": 3.0} for name in ("best_layer", "best_readable_layer")]
    for measure in ("linear_accuracy", "knn_share", "f1"):
        for control, value in (("none", 0.8), ("untrained", 0.3), ("shuffled", 0.2)):
            rows.append({**place, "space": "raw", "control": control, "measure": measure, "value": value})
    for end, value in (("low", 0.7), ("high", 0.9)):
        rows.append({**place, "space": "raw", "control": "none", "measure": f"knn_share_{end}", "value": value})
    return metrics_frame(rows)


def test_table_1_is_of_the_token_that_the_layers_were_chosen_by(sentences):
    kept = main_read(sentences.metrics).filter(split="all", control="none", labels="task", measure="f1")
    assert set(kept["read"]) == {"input"} < set(sentences.metrics["read"].drop_nulls())
    header, (row,) = table_1(sentences)
    assert dict(zip(header, row, strict=True))["task f1"] == kept["value"].max()
    best = kept.sort("value", descending=True).row(0, named=True)
    assert row[header.index("layer")] == best["layer"]


def test_of_many_tasks_the_least_separate_are_drawn_and_the_figure_says_so(metrics):
    names = [f"task-{number:03d}" for number in range(MANY)]
    shares = [((37 * number) % MANY) / MANY for number in range(MANY)]  # in no order
    least = [name for name, share in zip(names, shares, strict=True) if share < 0.4]
    place = {"model": "m", "epoch": None, "step": None, "layer": 3}
    tasks = pl.DataFrame(
        [{**place, "task": t, "measure": "linear_accuracy", "value": s} for t, s in zip(names, shares, strict=True)]
    )
    confusion = pl.DataFrame(
        [{**place, "task": t, "other": t, "share": s} for t, s in zip(names, shares, strict=True)]
        + [{**place, "task": t, "other": names[0], "share": 1 - s} for t, s in zip(names[1:], shares[1:], strict=True)]
    )
    with style():
        drawn = (tasks_figure(metrics, tasks), confusion_figure(metrics, confusion))
    for figure in drawn:
        axis = figure.axes[0]
        assert [label.get_text() for label in axis.get_yticklabels()] == least
        assert "of 100 tasks" in axis.get_xlabel()


def test_one_layer_alone_is_drawn_with_its_controls_and_its_interval(metrics):
    left = layers_figure(metrics).axes[1]
    seen = {line.get_label(): line for line in left.lines}
    for control in ("untrained network", "shuffled labels"):
        assert len(seen[control].get_xdata()) == 1 and seen[control].get_marker() not in (None, "None", "")
    assert any(len(path.vertices) == 2 for one in left.collections for path in one.get_paths())


def test_a_matrix_of_many_tasks_has_the_most_confused_and_how_many_there_are(sentences, tmp_path):
    from nucleate.report.pack import Chunks

    folder = Path(shutil.copytree(SENTENCES, tmp_path / "run"))
    frame = pl.read_parquet(folder / "confusion.parquet")
    model, layer = frame.row(0, named=True)["model"], frame["layer"].max()
    rows = [
        {"model": model, "epoch": None, "step": None, "layer": layer, "task": f"t{a}", "other": f"t{b}", "share": share}
        for a in range(MANY)
        for b, share in ((a, a / MANY), ((a + 1) % MANY, 1 - a / MANY))
    ]
    pl.DataFrame(rows, schema=frame.schema).write_parquet(folder / "confusion.parquet")
    kept: list[dict] = []
    chunks = Chunks()
    chunks.json = lambda content: (kept.append(content), "chunk")[1]  # type: ignore[method-assign, assignment]
    scenes_of(load_run(folder), chunks)
    (told,) = (one for one in kept if "count" in one)
    assert told["count"] == MANY and sorted(told["tasks"]) == sorted(f"t{a}" for a in range(80))
    place = told["tasks"].index("t50"), told["tasks"].index("t51")
    matrix = told["at"][f"0 {layer}"]
    assert matrix[place[0] * 80 + place[0]] == 500 and matrix[place[0] * 80 + place[1]] == 500


def test_a_model_called_after_an_epoch_is_no_epoch(tmp_path):
    folder = Path(shutil.copytree(SENTENCES, tmp_path / "run"))
    (folder / "layouts").mkdir()
    for name in ("epoch-3", "epoch-3-lr1e5", "epoch-x", "epoch-0012"):
        pl.DataFrame(schema=LAYOUT).write_parquet(folder / "layouts" / f"{name}.parquet")
    run = load_run(folder)
    assert run.layout_epochs == [12]
    assert answers_table(run).rows == []
