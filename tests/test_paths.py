"""Paths are names, never patterns: what a folder is called changes nothing, and no other file is read for it."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from nucleate.cli import main
from nucleate.data.dataset import load_dataset
from nucleate.data.prompts import read_prompts
from nucleate.files import write_table
from nucleate.model.networks import load_network
from nucleate.probing.probe import probe_into
from nucleate.probing.result import load_probe
from nucleate.probing.settings import ProbeSettings
from nucleate.reading import read_parquet
from nucleate.refusal import Refused
from nucleate.report.pack import Chunks
from nucleate.report.scenes import scenes_of
from nucleate.runs import find_runs, load_run
from test_damage import ROWS, a_model

NAMES = (
    "width[32]",
    "a*",
    "what?",
    "{one,two}",
    "two words ",
    'it\'s "quoted"',
    "two\nlines",
    "mark\u202e\u200fed",
    "n" * 255,
    "CON",
    "-dash",
    "~",
    "$HOME",
    "%41;&|",
    "file:",
)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:12]))
def test_a_finished_run_is_listed_judged_and_drawn_under_any_name(name, micro_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nucleate.report.drawing.encoded", lambda figure, ending: b"<svg/>")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(micro_run, name)
    (Path(name) / "page.html").unlink()
    for command in ("report", "claims", "runs"):
        assert main([command, "--", name if command != "runs" else "."]) == 0
    assert (Path(name) / "page.html").is_file()
    assert load_run(Path(name)).metrics.equals(load_run(micro_run).metrics)
    assert len(find_runs(tmp_path)) == 1
    assert load_dataset(Path(name) / "data").instances == load_dataset(micro_run / "data").instances
    assert load_network(Path(name).absolute() / "checkpoints" / "best")[1] is not None


@pytest.mark.parametrize("name", ["a*", "[ab]", "what?", "{a,b}", "~", "-dash"])
def test_a_table_is_read_from_the_file_of_that_name_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, other in enumerate(("a", "b", "ab", "what!", "home")):
        write_table(Path(f"{other}.parquet"), pl.DataFrame({"number": [number]}))
    with pytest.raises(Refused, match="cannot be read"):
        read_parquet(Path(f"{name}.parquet"))
    write_table(Path(f"{name}.parquet"), pl.DataFrame({"number": [99]}))
    assert read_parquet(Path(f"{name}.parquet"))["number"].to_list() == [99]
    assert (tmp_path / f"{name}.parquet").is_file()


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize("stem", ["a*", "[ab]", "what?", "{a,b}"])
def test_prompts_come_from_the_file_of_that_name_alone(stem, suffix, tmp_path):
    frame = pl.DataFrame(ROWS)
    write = {
        "parquet": frame.write_parquet,
        "csv": frame.write_csv,
        "tsv": lambda path: frame.write_csv(path, separator="\t"),
        "jsonl": frame.write_ndjson,
    }[suffix]
    write(tmp_path / f"ab.{suffix}")
    (tmp_path / f"ab.{suffix}").rename(tmp_path / f"a.{suffix}")
    with pytest.raises(Refused, match="does not exist"):
        read_prompts(tmp_path / f"{stem}.{suffix}")
    shutil.copy(tmp_path / f"a.{suffix}", tmp_path / f"{stem}.{suffix}")
    for other in ("a", "b", "what!"):
        (tmp_path / f"{other}.{suffix}").write_bytes(b"nothing of the kind")
    assert len(read_prompts(tmp_path / f"{stem}.{suffix}").instances) == len(ROWS)


@pytest.mark.parametrize("name", ["width[32]", "{a,b}*?", "two\nlines", "n" * 255], ids=lambda name: ascii(name[:9]))
def test_a_run_is_written_resumed_and_read_under_such_a_name_and_so_is_its_model(name, tmp_path):
    a_model(tmp_path)
    model = (tmp_path / "model").rename(tmp_path / name)
    rows = [{"prompt": f"{one} {two}", "task": one} for one in "abcd" for two in "abcd"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out" / name
    assert probe_into(out, model, tmp_path / "p.jsonl", ProbeSettings())
    assert not probe_into(out, model, tmp_path / "p.jsonl", ProbeSettings(), resume=True)
    assert len(load_probe(out).tasks)
    assert scenes_of(load_run(out), Chunks())[0]["views"]


def test_a_sweep_and_a_dataset_are_written_where_they_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("below").mkdir()
    monkeypatch.chdir("below")
    assert main(["data", "--size", "micro", "--out", "../data[1]*"]) == 0
    assert load_dataset(tmp_path / "data[1]*").counts["train"]
