"""What a power cut, a full disk, a signal or a moved folder leaves behind: one clear line, and a run that goes on to
the same bytes."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from nucleate import files
from nucleate.cli import main
from nucleate.config import configure
from nucleate.files import write_text, write_whole
from nucleate.model.training import previous_of
from nucleate.paper import learning
from nucleate.paper.learning import learn
from nucleate.probing import probe
from nucleate.probing.probe import probe_into
from nucleate.probing.settings import ProbeSettings
from nucleate.redirecting.study import SavedParts
from nucleate.refusal import Refused
from nucleate.runs import load_run, open_run
from test_damage import a_model

CONFIG = configure("micro", seed=3)


class Unplugged(BaseException):
    """The process is gone, as far as a test in the same process can tell."""


@pytest.fixture(scope="module")
def stopped(micro_run, tmp_path_factory) -> Path:
    """A micro run that ended, without a word, when all was done but the end."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "_finish", lambda *arguments: (_ for _ in ()).throw(Unplugged()))
        with pytest.raises(Unplugged):
            learn(CONFIG, folder)
    return folder


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def goes_on(run: Path, whole: Path) -> list[str]:
    """What is said on the way to the bytes of the unbroken run."""
    said: list[str] = []
    assert learn(CONFIG, run, resume=True, progress=lambda text, fraction: said.append(text))
    assert (run / "metrics.parquet").read_bytes() == (whole / "metrics.parquet").read_bytes()
    assert not list(run.glob("resume*"))
    return said


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# --- what a power cut leaves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10])
def test_a_part_that_was_cut_short_is_made_anew_and_said(size, run, micro_run):
    part = run / "parts" / "epoch-0002.parquet"
    os.truncate(part, size)
    said = goes_on(run, micro_run)
    assert any("made anew" in one and part.name in one for one in said)
    assert any(one["event"] == "note" and part.name in one["text"] for one in events(run))


def test_a_part_whose_numbers_changed_is_made_anew_though_it_is_a_whole_table(run, micro_run):
    part = run / "parts" / "epoch-0001.parquet"
    told = pl.read_parquet_metadata(part)["nucleate.sha256"]
    changed = pl.read_parquet(part).with_columns(value=pl.col("value") + 1)
    changed.write_parquet(part, metadata={"nucleate.sha256": told})
    assert any("its checksum does not fit" in one for one in goes_on(run, micro_run))


@pytest.mark.parametrize(
    "file",
    [
        "parts/surface.parquet",
        "layouts/epoch-0002.parquet",
        "layouts/predictions-0001.parquet",
        "states/epoch-0006.safetensors",
    ],
)
def test_whatever_else_was_cut_short_is_made_anew(file, run, micro_run):
    assert (run / file).is_file()
    os.truncate(run / file, 10)
    goes_on(run, micro_run)


def test_where_the_last_saved_state_is_torn_the_one_before_it_is_used_and_that_is_said(run, micro_run):
    state = run / "resume.safetensors"
    assert previous_of(state).is_file()
    os.truncate(state, state.stat().st_size // 2)
    said = goes_on(run, micro_run)
    assert any("resume.safetensors is no whole safetensors file" in one for one in said)
    assert any(one.startswith("epoch 6 of 6") for one in said), "from an earlier epoch on"


def test_without_any_saved_state_a_run_begins_at_its_beginning(run, micro_run):
    for state in run.glob("resume*"):
        os.truncate(state, 10)
    goes_on(run, micro_run)


def test_a_torn_last_line_of_the_log_is_dropped_and_said(run, micro_run):
    with open(run / "log.jsonl", "a") as log:
        log.write('{"time": "2026-')
    assert any("its last line was cut short" in one for one in goes_on(run, micro_run))
    assert [one["event"] for one in events(run)][-3:] == ["resumed", "note", "done"]


@pytest.mark.parametrize("file", ["manifest.json", "config.toml"])
@pytest.mark.parametrize("size", [0, 30])
def test_settings_or_a_manifest_that_were_cut_short_are_refused_by_name_with_a_remedy_that_works(file, size, run):
    os.truncate(run / file, size)
    with pytest.raises(Refused, match=rf"{file} (is damaged|lacks).*--overwrite") as refusal:
        learn(CONFIG, run, resume=True)
    assert "\n" not in str(refusal.value)
    with open_run(run, settings='verb = "learn"\n', differing=lambda *two: [], overwrite=True) as fresh:
        assert fresh is not None and not (run / "parts").exists()


def test_a_strangers_manifest_beside_settings_that_are_not_ours_is_never_cleared(tmp_path):
    (tmp_path / "manifest.json").write_text("{ half")
    (tmp_path / "config.toml").write_text('title = "a site"\n')
    with pytest.raises(Refused, match="is damaged"):
        learn(CONFIG, tmp_path, overwrite=True)
    assert (tmp_path / "config.toml").read_text() == 'title = "a site"\n'


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    done = []
    replace, sync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    monkeypatch.setattr(os, "fsync", lambda place: (done.append(os.readlink(f"/proc/self/fd/{place}")), sync(place)))
    write_text(tmp_path / "a.txt", "text")
    assert done == [str(tmp_path / ".a.txt.part"), "rename", str(tmp_path)]


def test_a_new_folder_is_synced_into_the_one_that_holds_it_before_anything_is_written_into_it(tmp_path, monkeypatch):
    synced, sync = [], files.sync
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(path), sync(path)))
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert synced[:3] == [tmp_path, tmp_path / "a", tmp_path / "a" / "b" / ".c.txt.part"]


@pytest.mark.parametrize("damaged", ["parts/model-model.parquet", "pieces/model-model-tasks.parquet"])
def test_a_probe_measures_a_model_anew_whose_tables_were_cut_short(damaged, tmp_path, monkeypatch):
    a_model(tmp_path)
    rows = [{"prompt": f"{one} {two}", "task": one} for one in "abcd" for two in "abcd"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = (str(tmp_path / "model"), tmp_path / "p.jsonl", ProbeSettings())
    probe_into(tmp_path / "whole", *asked)
    with monkeypatch.context() as patch:
        patch.setattr(probe, "finish", lambda *arguments: (_ for _ in ()).throw(Unplugged()))
        with pytest.raises(Unplugged):
            probe_into(tmp_path / "run", *asked)
    os.truncate(tmp_path / "run" / damaged, 10)
    said: list[str] = []
    assert probe_into(tmp_path / "run", *asked, resume=True, progress=lambda text, fraction: said.append(text))
    assert any("made anew" in one and Path(damaged).name in one for one in said)
    for table in ("metrics", "tasks", "confusion", "coordinates"):
        assert pl.read_parquet(tmp_path / "run" / f"{table}.parquet").equals(
            pl.read_parquet(tmp_path / "whole" / f"{table}.parquet")
        ), table


def test_a_saved_part_of_a_redirection_that_was_cut_short_is_made_anew(tmp_path):
    said: list[str] = []
    saved, made = SavedParts(tmp_path, said.append), []

    def make():
        made.append(1)
        return {"states": torch.arange(6.0)}, "fact"

    for _ in range(2):
        tensors, fact = saved.part("others", "read", make)
    first = tensors["states"].clone()  # what was read lies in the file still
    os.truncate(tmp_path / "others.safetensors", 40)
    again, fact = saved.part("others", "read", make)
    assert len(made) == 2 and fact == "fact" and torch.equal(again["states"], first)
    assert len(said) == 1 and "others.safetensors" in said[0]


# --- a disk that refuses ----------------------------------------------------------------------------------------------


def full(path: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("also_the_manifest", [False, True])
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    also_the_manifest, tmp_path, capfd, monkeypatch
):
    out = tmp_path / "run"
    command = ["learn", "--size", "micro", "--seed", "3", "--out", str(out)]
    real, seen = files.sync, []

    def sync(path: Path) -> None:
        seen.append(path.name)
        if len(seen) > 12 and (also_the_manifest or path.name != ".manifest.json.part"):
            full(path)
        real(path)

    monkeypatch.setattr(files, "sync", sync)
    assert main(command) == 1
    told = [line for line in capfd.readouterr().err.splitlines() if not line.lstrip()[:4].rstrip("%").strip().isdigit()]
    (line,) = [one for one in told if one.startswith("nucleate:")]
    assert "No space left on device; make room, then go on with: " in line and "--resume" in line
    assert not any("Traceback" in one for one in told)
    assert load_run(out).state == ("killed" if also_the_manifest else "failed")
    assert not list(out.rglob("*.part"))
    monkeypatch.setattr(files, "sync", real)
    assert main([*command, "--resume"]) == 0


def test_what_a_library_in_rust_says_of_a_full_disk_is_an_error_of_the_system(tmp_path):
    def write(beside: Path) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError) as failure:
        write_whole(tmp_path / "a.safetensors", write)
    assert failure.value.errno == errno.ENOSPC and failure.value.filename == str(tmp_path / "a.safetensors")


def test_a_folder_that_is_moved_away_leaves_one_line_and_no_ghost_and_goes_on_where_it_is_now(
    tmp_path, micro_run, capfd, monkeypatch
):
    out, now = tmp_path / "run", tmp_path / "moved"
    moment = learning._moment

    def moving(study, record, epoch, **more):
        if epoch == 2:
            out.rename(now)
        moment(study, record, epoch, **more)

    monkeypatch.setattr(learning, "_moment", moving)
    assert main(["learn", "--size", "micro", "--seed", "3", "--out", str(out)]) == 1
    (line,) = [one for one in capfd.readouterr().err.splitlines() if one.startswith("nucleate:")]
    assert f"{out}: was moved or removed while a run wrote into it" in line
    assert not out.exists()
    monkeypatch.setattr(learning, "_moment", moment)
    goes_on(now, micro_run)


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_polite_end_is_that_of_ctrl_c(name, tmp_path):
    command = [
        sys.executable,
        "-m",
        "nucleate",
        "learn",
        "--size",
        "micro",
        "--seed",
        "3",
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "  0%" in line:
            break
    process.send_signal(getattr(signal, name))
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130 and "nucleate: stopped; to go on" in rest and "Traceback" not in rest
    assert load_run(tmp_path / "run").state == "interrupted"
