"""The run folder: refusals that change nothing, locks that die with their process, tables that keep their law."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from nucleate.files import last_line
from nucleate.parts import LAYOUT, METRICS, metrics_frame
from nucleate.refusal import Refused
from nucleate.run_in_words import _example
from nucleate.runs import find_runs, load_run, open_run
from nucleate.threads import thread_count


def row(**columns):
    return {"experiment": "learn", "control": "none", "measure": "accuracy", "value": 0.5, **columns}


def names_differing(old: str, new: str) -> list[str]:
    return [] if old == new else ["size (a there, b now)"]


def opened(folder: Path, settings: str = 'verb = "learn"\nsize = "a"\nseed = 1\n', **flags):
    return open_run(folder, settings=settings, differing=names_differing, **flags)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def finished(folder: Path) -> Path:
    with opened(folder) as run:
        run.write_part("epoch-0000", [row(epoch=0)])
        run.write_part("epoch-0001", [row(epoch=1)])
        run.finish(["epoch-0000", "epoch-0001"])
    return folder


def test_the_long_table_is_sorted_by_its_columns_with_nulls_first():
    frame = metrics_frame([row(epoch=2), row(epoch=None), row(epoch=1, split="test"), row(epoch=1)])
    assert frame.schema == METRICS
    assert frame["epoch"].to_list() == [None, 1, 1, 2]
    assert frame["split"].to_list() == [None, None, "test", None]


def test_a_measurement_given_twice_or_without_a_finite_value_is_an_error():
    with pytest.raises(ValueError, match="twice"):
        metrics_frame([row(epoch=1), row(epoch=1, value=0.7)])
    with pytest.raises(ValueError, match="finite"):
        metrics_frame([row(value=float("nan"))])
    with pytest.raises(ValueError, match="no such column"):
        metrics_frame([row(epochs=1)])


def test_a_finished_run_reads_back_with_all_its_parts_joined(tmp_path):
    run = load_run(finished(tmp_path / "run"))
    assert run.manifest["status"] == run.state == "done"
    assert run.metrics["epoch"].to_list() == [0, 1]
    assert [found.folder.name for found in find_runs(tmp_path)] == ["run"]
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 2


def test_layouts_answers_and_data_are_read_back_and_are_none_where_nothing_was_recorded(tmp_path):
    folder = tmp_path / "run"
    with opened(folder) as run:
        for epoch in (1000, 2, 10):
            placed = {"instance": 0, "layer": 1, "view": "pca", "x": epoch, "y": 0, "z": 0, "task": "left out"}
            run.write_layout(epoch, pl.DataFrame(placed))
        run.write_predictions(10, [3], ["b"])
    run = load_run(folder)
    assert run.layout_epochs == [2, 10, 1000]
    assert run.layout(10).schema == LAYOUT and run.layout(10)["x"].item() == 10
    assert run.predictions(10).rows() == [(3, "b")] and run.predictions(2) is None
    assert run.dataset is run.dataset_facts is None
    (folder / "data").mkdir()
    pl.DataFrame({"instance": [3]}).write_parquet(folder / "data" / "dataset.parquet")
    (folder / "data" / "dataset.json").write_text('{"mappings": {}}')
    assert load_run(folder).dataset["instance"].to_list() == [3]
    assert load_run(folder).dataset_facts == {"mappings": {}}


def test_a_finished_run_is_refused_without_a_flag_left_alone_with_resume_and_replaced_with_overwrite(tmp_path):
    folder = finished(tmp_path / "run")
    before = contents(folder)
    with pytest.raises(Refused, match="holds a finished run; --overwrite replaces it"), opened(folder):
        pass
    with opened(folder, resume=True) as run:
        assert run is None
    assert contents(folder) == before
    with opened(folder, overwrite=True) as run:
        assert not run.resumed
        assert not (folder / "metrics.parquet").exists()


def test_an_unfinished_run_needs_resume_and_the_same_settings(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError), opened(folder) as run:
        run.write_part("epoch-0000", [row(epoch=0)])
        raise RuntimeError("out of luck")
    assert load_run(folder).manifest["status"] == "failed"
    assert "out of luck" in (folder / "log.jsonl").read_text()
    before = contents(folder)
    with pytest.raises(Refused, match="holds an unfinished run; --resume continues it"), opened(folder):
        pass
    with pytest.raises(Refused, match="other settings: size"), opened(folder, settings="size = 'b'", resume=True):
        pass
    assert contents(folder) == before
    with opened(folder, resume=True) as run:
        assert run.resumed
    assert load_run(folder).metrics.height == 1


def test_a_folder_that_is_not_a_run_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(Refused, match="not a run folder"), opened(tmp_path, **flags):
            pass
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(Refused, match="is a file"), opened(tmp_path / "thesis.tex"):
        pass


def test_resume_begins_where_the_folder_is_missing_or_empty(tmp_path):
    for folder in (tmp_path / "missing", tmp_path / "empty"):
        if folder.name == "empty":
            folder.mkdir()
        with opened(folder, resume=True) as run:
            assert not run.resumed


def test_a_run_in_use_is_refused_and_a_killed_holder_frees_it(tmp_path):
    folder = finished(tmp_path / "run")
    script = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-uc", script, str(folder / ".lock")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "1\n"
    with pytest.raises(Refused, match="in use"), opened(folder, overwrite=True):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with opened(folder, resume=True) as run:
        assert run is None


def test_a_run_says_killed_when_nobody_holds_its_lock_any_more(tmp_path):
    with opened(tmp_path / "run") as run:
        assert load_run(run.folder).state == "running"
        manifest = (run.folder / "manifest.json").read_text()
    (tmp_path / "run" / "manifest.json").write_text(manifest)
    assert load_run(tmp_path / "run").state == "killed"
    (tmp_path / "run" / ".lock").unlink()
    assert load_run(tmp_path / "run").state == "killed" and not (tmp_path / "run" / ".lock").exists(), "only looked at"


def test_a_kill_while_an_old_run_is_cleared_away_leaves_a_folder_that_can_be_used_again(tmp_path):
    folder = finished(tmp_path / "run")
    (folder / "manifest.json").write_text(json.dumps({"status": "cleared"}))
    (folder / "config.toml").unlink()
    with opened(folder, resume=True) as run:
        assert not run.resumed
        assert not (folder / "metrics.parquet").exists()


def test_damaged_folders_are_refused_by_name(tmp_path):
    with pytest.raises(Refused, match="does not exist"):
        load_run(tmp_path / "nowhere")
    folder = finished(tmp_path / "run")
    with pytest.raises(Refused, match="holds the runs run"):
        load_run(tmp_path)
    (folder / "manifest.json").write_text("{ half")
    with pytest.raises(Refused, match="damaged"):
        load_run(folder)


def test_the_same_rows_in_another_order_give_the_same_bytes(tmp_path):
    rows = [row(epoch=e, layer=n, value=e / 7) for e in range(5) for n in (None, 0, 1)]
    for name, ordered in (("a", rows), ("b", rows[::-1])):
        metrics_frame(ordered).write_parquet(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pl.read_parquet(tmp_path / "a").height == 15


def test_resume_and_overwrite_together_are_refused_and_the_run_stays(tmp_path):
    folder = finished(tmp_path / "run")
    before = contents(folder)
    with pytest.raises(Refused, match="give one of them"), opened(folder, resume=True, overwrite=True):
        pass
    assert contents(folder) == before


def test_a_strangers_manifest_makes_no_run_folder_and_a_cleared_run_is_not_listed(tmp_path):
    for text in ('{"status": "published"}', "[]", '{"name": "app"}'):
        (tmp_path / "manifest.json").write_text(text)
        for flags in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(Refused), opened(tmp_path, **flags):
                pass
        assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    (tmp_path / "config.toml").write_text('size = "a"')
    (tmp_path / "manifest.json").write_text('{"status": "cleared"}')
    assert find_runs(tmp_path) == []


def test_what_a_run_will_read_is_never_cleared_away(tmp_path):
    folder = finished(tmp_path / "run")
    model = folder / "checkpoints" / "best"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    before = contents(folder)
    for reads in ([model], [str(folder)], ["natural", model / "model.safetensors"]):
        with pytest.raises(Refused, match="would be cleared first"), opened(folder, overwrite=True, reads=reads):
            pass
        assert contents(folder) == before
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with opened(folder, overwrite=True, reads=[elsewhere, "natural", None]):
        pass


@pytest.mark.parametrize(("asked", "count"), [("3", 3), ("4,2", 4), ("", None), ("many", None), ("0", None)])
def test_threads_are_what_the_variable_begins_with_or_the_cores_one_may_use(asked, count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert thread_count() == (3 if count is None else count)


# --- print(run) -------------------------------------------------------------------------------------------------------


def test_a_run_prints_about_ten_lines_that_say_what_it_is_what_it_holds_and_how_to_pick_rows(micro_run):
    run = load_run(micro_run)
    lines = {line[:12].strip(): line[12:].strip() for line in str(run).splitlines()}
    assert 10 <= len(lines) <= 13 and max(map(len, str(run).splitlines())) < 250
    assert lines["run"] == f"{micro_run}: nucleate learn, size micro, seed 3"
    assert lines["state"].startswith("done, ") and time.strftime("%Y-%m-%d") in lines["state"]
    assert lines["settings"] == "those of size micro"
    assert lines["epochs"] == "0 to 6, states measured at 5 of them" and lines["layers"] == "0 to 2, 3 in all"
    assert lines["best epoch"] == str(run.manifest["best_epoch"])
    assert "best, epoch-0000" in lines["checkpoints"] and lines["page"] == str(micro_run / "page.html")
    assert lines["rows"].startswith(f"{len(run.metrics):,} of knn_share, f1, ")
    picked = eval(lines["to pick"], {"run": run})
    assert 0 < len(picked) < len(run.metrics) / 10


def test_a_run_prints_the_settings_in_which_it_differs_from_its_size_and_no_others(micro_run, tmp_path):
    other = Path(shutil.copytree(micro_run, tmp_path / "other"))
    config = (other / "config.toml").read_text(encoding="utf-8")
    (other / "config.toml").write_text(config.replace("dropout = 0.2", "dropout = 0.3"), encoding="utf-8")
    assert "dropout = 0.2" in config
    (line,) = [line for line in str(load_run(other)).splitlines() if line.startswith("settings")]
    assert line.split()[1:] == ["model.dropout=0.3"]


def test_a_run_that_has_hardly_begun_prints_too(tmp_path):
    with opened(tmp_path / "run"):
        pass
    (tmp_path / "run" / "log.jsonl").unlink()
    said = str(load_run(tmp_path / "run"))
    assert "rows         none so far" in said and "to pick" not in said and "page" not in said


@pytest.mark.parametrize("before", [0, 1, 5000])
@pytest.mark.parametrize("last", [b"", b"torn", b"whole\n", b"x" * 9000, b"x" * 9000 + b"\n"])
def test_the_last_line_is_found_without_reading_what_stands_before_it(before, last, tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"a line before\n" * before + last)
    wanted = last or (b"a line before\n" if before else b"")
    assert last_line(log) == wanted


def test_a_table_that_holds_controls_alone_is_told_in_words_too():
    row = {"measure": "knn_share", "control": "shuffled", "split": "test", "space": "raw", "layer": 1}
    assert _example(pl.DataFrame([row])).startswith("run.metrics.filter(measure='knn_share', control='shuffled'")
    own = _example(pl.DataFrame([row | {"control": "none"}, row]))
    assert "control='none'" in own and _example(pl.DataFrame([row]).clear()) == ""
