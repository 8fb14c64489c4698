"""The command line, in-process: exit codes, one line of refusal, and what is left on disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nucleate.cli import main
from nucleate.data.columns import NAMES
from nucleate.probing.settings import ProbeSettings
from nucleate.runs import load_run
from nucleate.settings import fields_of


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_data_writes_the_dataset_and_its_picture_and_says_how_many(tmp_path, capsys):
    assert main(["data", "--size", "micro", "--seed", "5", "--out", str(tmp_path / "data")]) == 0
    printed = capsys.readouterr().out
    assert "validation" in printed
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert {"dataset.parquet", "dataset.json", "figure_1_dataset.png", "figure_1_dataset.svg"} <= names


def test_data_of_the_alignment_kind_comes_from_the_same_command(tmp_path):
    assert main(["data", "--size", "micro", "--kind", "alignment", "--out", str(tmp_path / "data")]) == 0
    assert '"source_targets"' in (tmp_path / "data" / "dataset.json").read_text()


def test_report_draws_figures_and_page_again_from_the_run_folder_alone(micro_run, capsys):
    page = micro_run / "page.html"
    before = page.read_bytes()
    page.unlink()
    for figure in (micro_run / "figures").iterdir():
        figure.unlink()
    assert main(["report", str(micro_run)]) == 0
    assert page.read_bytes() == before
    names = {path.name for path in (micro_run / "figures").iterdir()}
    wanted = {"figure_1_dataset", "figure_2_clustering_f1", "figure_3_learning", "figure_4_neighbours"}
    assert {f"{name}.{ending}" for name in wanted for ending in ("png", "svg")} <= names
    printed = capsys.readouterr().out.splitlines()
    sentences = [number for number, line in enumerate(printed) if line.startswith(("Seen", "Not seen"))]
    (table,) = [number for number, line in enumerate(printed) if line.startswith("same-task neighbours")]
    assert len(sentences) >= 4 and max(sentences) < table < printed.index(f"page: {page}") == len(printed) - 1


def test_runs_lists_what_state_and_size(micro_run, capsys):
    assert main(["runs", str(micro_run.parent)]) == 0
    assert "learn micro seed 3" in capsys.readouterr().out


def test_settings_show_every_key_with_its_meaning(capsys):
    assert main(["settings", "--size", "paper", "--set", "training.batch=16"]) == 0
    printed = capsys.readouterr().out
    assert "training.batch                   16" in printed
    assert "hidden dimension" in printed


def test_fast_asks_for_the_packed_law_which_is_said_and_marked_on_the_page(micro_run, tmp_path, capsys, monkeypatch):
    assert main(["settings", "--size", "micro", "--fast", "--set", "training.packing=tree"]) == 0
    assert "training.packing                 tree" in capsys.readouterr().out
    short = ["learn", "--size", "micro", "--epochs", "1", "--set", "measure.repeats=1"]
    assert main([*short, "--fast", "--out", str(tmp_path / "fast")]) == 0
    assert "packed law (--fast)" in capsys.readouterr().err
    monkeypatch.setattr("nucleate.verbs._redraw", lambda folders: None)
    assert main([*short, "--out", str(tmp_path / "rows")]) == 0
    assert "packed law" not in capsys.readouterr().err
    assert load_run(tmp_path / "fast").is_packed and not load_run(tmp_path / "rows").is_packed
    assert "packed law (--fast)" in (tmp_path / "fast" / "page.html").read_text()
    assert "packed law" not in (micro_run / "page.html").read_text()


def test_resume_on_a_finished_run_changes_nothing_and_says_so(micro_run, capsys):
    before = contents(micro_run)
    assert main(["learn", "--size", "micro", "--seed", "3", "--out", str(micro_run), "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert contents(micro_run) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["learn", "--size", "micro"], "--out"),
        (["lern"], "did you mean 'learn'"),
        (["xyz"], "there are: align, claims"),
        (["learn", "--sede", "3", "--out", "{tmp}/x"], "did you mean '--seed'"),
        (["sweep", "learn", "--sede", "3", "--out", "{tmp}/x"], "did you mean '--seed'"),
        (["learn", "--size", "smal", "--out", "{tmp}/x"], "did you mean 'small'"),
        (["learn", "--size", "micro", "--set", "data.task=3", "--out", "{tmp}/x"], "did you mean 'data.tasks'"),
        (["learn", "--size", "micro", "--set", "data.tasks", "--out", "{tmp}/x"], "section.key=value"),
        (["learn", "--size", "micro", "--set", "data.mappings=99", "--out", "{tmp}/x"], "data.task_symbols"),
        (["learn", "--size", "micro", "--set", "measure.perplexity=30", "--out", "{tmp}/x"], "perplexity=30"),
        (["learn", "--size", "micro", "--device", "cuda", "--out", "{tmp}/x"], "no GPU"),
        (["learn", "--fast", "--set", "training.packing=rows", "--out", "{tmp}/x"], "training.packing=tree"),
        (["sweep", "align", "--fast", "--set", "training.packing=tree,rows", "--out", "{tmp}/x"], "leave one of them"),
        (["align", "--fast", "--model", "m", "--data", "d", "--out", "{tmp}/x"], "--fast belongs to the paper's own"),
        (["data", "--fast", "--out", "{tmp}/x"], "--fast is unknown"),
        (["learn", "--size", "micro", "--out", "{tmp}/full"], "not a run folder"),
        (["data", "--size", "micro", "--out", "{tmp}/full"], "--overwrite"),
        (["data", "--size", "micro", "--width", "32", "--out", "{tmp}/x"], "--width is unknown"),
        (["sweep", "learn", "--size", "micro", "--width", "16,31", "--out", "{tmp}/x"], "model.width=31"),
        (
            ["sweep", "learn", "--size", "micro", "--set", "measure.perplexity=2,30", "--out", "{tmp}/x"],
            "perplexity=30",
        ),
        (["sweep", "align", "--size", "micro", "--source", "a", "--out", "{tmp}/x"], "--source belongs to a model"),
        (["sweep", "learn", "--size", "micro", "--device", "cuda", "--out", "{tmp}/x"], "no GPU"),
        (["data", "--size", "micro", "--out", "{tmp}/full/thesis.tex"], "is a file"),
        (["data", "--size", "micro", "--out", "{tmp}/full/thesis.tex/x"], "cannot be written into"),
        (["learn", "--size", "micro", "--out", "{tmp}/full/thesis.tex/x"], "cannot be written into"),
        (["sweep", "learn", "--size", "micro", "--out", "{tmp}/full/thesis.tex/x"], "cannot be written into"),
        (["report", "{tmp}/nothing"], "does not exist"),
        (["report", "{tmp}/full"], "not a run folder"),
        (["runs", "{tmp}/nothing"], "not a folder"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_and_changes_nothing(arguments, says, tmp_path, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    assert main([text.replace("{tmp}", str(tmp_path)) for text in arguments]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert contents(tmp_path) == {"full/thesis.tex": b"years of work"}


@pytest.mark.parametrize("verb", ["report", "claims"])
def test_what_is_drawn_needs_a_folder_that_can_be_written_into(verb, micro_run, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main([verb, str(micro_run), "--out", str(tmp_path / "thesis.tex")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_failure_while_running_exits_with_1_and_is_written_into_the_log(tmp_path, capsys, monkeypatch):
    from nucleate.paper import learning

    def broken(*_, **__):
        raise RuntimeError("the loss is no longer finite")

    monkeypatch.setattr(learning, "survey_of", broken)
    assert main(["learn", "--size", "micro", "--out", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().err
    assert "no longer finite" in printed and f"last line of {tmp_path / 'run' / 'log.jsonl'}" in printed
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "failed" and "in broken" in last["traceback"] and "no longer finite" in last["error"]
    assert '"failed"' in (tmp_path / "run" / "manifest.json").read_text()


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "nucleate.cli", "learn", "--size", "tiny", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "resume.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "--resume" in printed.splitlines()[-1]
    assert '"interrupted"' in (tmp_path / "run" / "manifest.json").read_text()


REFUSED_AT_ONCE = {
    "probe ./nowhere {prompts} --out {tmp}/x": "model ./nowhere: does not exist",
    "probe {tmp}/hollow {prompts} --out {tmp}/x": "hollow: holds no *.safetensors",
    "probe {tmp}/pickled natural --out {tmp}/x": "only as a pickle",
    "probe {prompts} {prompts} --out {tmp}/x": "models come first, the prompts last",
    "probe gpt2 {prompts} --base ./nowhere --out {tmp}/x": "model ./nowhere: does not exist",
    "probe gpt2 natural-shared --out {tmp}/x": "gpt2: is no folder here, and the hub does not give it",
    "probe gpt2 {tmp}/no.csv --out {tmp}/x": "no.csv does not exist",
    "probe gpt2 {prompts} --out {tmp}/x": "try --columns task=kind,prompt=said",
    "probe gpt2 {prompts} --columns task=knd,prompt=said --out {tmp}/x": "did you mean 'kind'?",
    "probe gpt2 {prompts} --columns task=kind,prompt=said --limit 2 --out {tmp}/x": "limit 2 is too small",
    "probe gpt2 {prompts} --device cudda --out {tmp}/x": "did you mean 'cuda'?",
    "probe gpt2 {prompts} --dtype flaot32 --out {tmp}/x": "did you mean 'float32'?",
    "probe ./nowhere {prompts} --estimate": "model ./nowhere: does not exist",
    "transfer ./nowhere {prompts} --out {tmp}/x": "model ./nowhere: does not exist",
    "transfer gpt2 {prompts} --out {tmp}/x": "try --columns task=kind,prompt=said",
    "align --model ./nowhere --data {prompts} --source a --target b --out {tmp}/x": "model ./nowhere: does not exist",
    "align --model gpt2 --data {prompts} --source a --target b --out {tmp}/x": "try --columns task=kind,prompt=said",
    "align --model gpt2 --data {prompts} --columns task=kind,prompt=said --source c --target b --out {tmp}/x": (
        "--source 'c' is neither a distribution nor a task"
    ),
    "reproduce --size micro --model ./nowhere --out {tmp}/x": "model ./nowhere: does not exist",
}


def test_data_and_names_are_refused_before_torch_is_loaded(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"said": f"this is prompt number {number}", "kind": "ab"[number % 2]} for number in range(8)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, files in (("hollow", ["config.json"]), ("pickled", ["config.json", "pytorch_model.bin"])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
    asked = [one.format(prompts=prompts, tmp=tmp_path).split() for one in REFUSED_AT_ONCE]
    script = (
        "import json, sys\nfrom nucleate.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    assert main(words) == 2, words\n"
        "    assert not {'torch', 'transformers', 'numba'} & set(sys.modules), words\n"
    )
    command = [sys.executable, "-c", script, json.dumps(asked)]
    nothing = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "nothing")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=nothing)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(asked)
    for line, fragment in zip(said, REFUSED_AT_ONCE.values(), strict=True):
        assert fragment in line, line
    assert not (tmp_path / "x").exists()


def test_the_help_of_a_probe_names_every_column_there_is():
    meaning = fields_of(ProbeSettings)["columns"].metadata["meaning"]
    assert sorted(meaning.partition("ours are ")[2].split(", ")) == sorted(NAMES)


def test_help_answers_without_loading_the_heavy_rooms():
    check = "import sys; from nucleate.cli import _parser; _parser().format_help(); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
