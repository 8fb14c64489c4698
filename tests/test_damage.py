"""One battery over every reader: whatever happened to a file, it is read right or refused in one line that names it.

Each reader is given a folder that it reads; the battery damages one file of it in every way at a time.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import polars as pl
import pytest

from fake_run import build
from nucleate.cli import main
from nucleate.config import configure
from nucleate.data.dataset import load_dataset
from nucleate.data.prompts import read_prompts
from nucleate.data.synthetic import generate
from nucleate.engines.sweep import _read_plan
from nucleate.model.networks import gpt2, load_network, save_network, word_tokenizer
from nucleate.model.switch import Head, Switch
from nucleate.model.training import load_state, make_optimizer, save_state
from nucleate.parts import METRICS, metrics_frame
from nucleate.redirecting.loading import load_switched
from nucleate.redirecting.switched import SwitchedModel
from nucleate.refusal import Refused
from nucleate.runs import load_run
from test_networks import write_gguf

SEED = 20
SHAPE = {"width": 8, "feed_forward": 8, "layers": 1, "heads": 2, "positions": 8, "dropout": 0.0, "pad": 0}
ROWS = [{"prompt": f"say {word} again", "task": word} for word in ("one", "two", "three", "four")] * 3


# --- the ways ---------------------------------------------------------------------------------------------------------


def damages(content: bytes, flips: int) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """A name, and what is done to the file that held this."""

    def put(new: bytes) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(new)

    def a_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def a_loop(path: Path) -> None:
        path.unlink()
        path.symlink_to(path.name)

    yield "gone", Path.unlink
    yield "a folder", a_folder
    yield "a loop", a_loop
    for size in sorted({0, 1, 4, 10, len(content) // 2, len(content) - 9, len(content) - 1} & set(range(len(content)))):
        yield f"cut to {size}", put(content[:size])
    yield "no UTF-8", put(b"\xff\xfe" + content)
    yield "zeros", put(bytes(len(content)))
    yield "a zero inside", put(content[: len(content) // 2] + b"\0" + content[len(content) // 2 :])
    yield "nested too deep", put(b"[" * 100_000)
    yield "deep objects", put(b'{"a":' * 50_000)
    for other in (b"[]", b"{}", b"null", b"3", b'"text"', b"[[1]]", b"[1]\n", b"a = [1]\n", b"PAR1PAR1PAR1"):
        yield f"{other!r}", put(other)
    rng = random.Random(SEED)
    for number in range(flips):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        yield f"flip {number}", put(bytes(changed))
    lines = content.splitlines(keepends=True) if b" = " in content.partition(b"\n")[0] else []
    for number, line in enumerate(lines):  # of TOML
        yield f"without line {number}", put(b"".join(lines[:number] + lines[number + 1 :]))
        for wrong in (b"7", b'"text"', b"[]", b"{}", b"-1e9"):
            changed_line = line.partition(b" = ")[0] + b" = " + wrong + b"\n"
            yield f"line {number} is {wrong!r}", put(b"".join([*lines[:number], changed_line, *lines[number + 1 :]]))
    try:
        told = json.loads(content)
    except ValueError:
        return
    if isinstance(told, dict):
        for key in told:
            yield f"without {key}", put(json.dumps({one: told[one] for one in told if one != key}).encode())
            for wrong in (None, 7, "text", [], {}, -1e9)[: None if len(told) < 20 else 1]:
                yield f"{key} is {wrong!r}", put(json.dumps({**told, key: wrong}).encode())


# --- the readers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    make: Callable[[Path], Any]  # writes the folder
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    flips: int = 60  # of each file
    names: Callable[[Path, str], tuple[str, ...]] = lambda folder, file: (Path(file).name,)  # one is in the refusal


def small(seed: int = 0) -> Any:
    return gpt2(vocabulary=6, seed=seed, **SHAPE)


def words() -> Any:
    return word_tokenizer(["a", "b", "c", "d"])


def a_model(folder: Path) -> None:
    save_network(small(), words(), folder / "model")


def sharded(folder: Path) -> None:
    small().save_pretrained(folder / "model", max_shard_size="1KB")
    words().save_pretrained(folder / "model")


def an_adapter(folder: Path) -> None:
    save_network(small(), words(), folder / "base")
    made = peft.get_peft_model(small(), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=2))
    made.save_pretrained(folder / "model")
    told = json.loads((folder / "model" / "adapter_config.json").read_text())
    told["base_model_name_or_path"] = str(folder / "base")
    (folder / "model" / "adapter_config.json").write_text(json.dumps(told))


def a_switched(folder: Path) -> None:
    save_network(small(), words(), folder / "base")
    network, tokenizer = load_network(folder / "base")
    made = SwitchedModel(network, tokenizer, Switch(8, "linear"), Head(8, 6, rank=2))
    made.save(folder / "model", network=folder / "base", copy=True)


def jsonl(folder: Path) -> None:
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def arrow(folder: Path) -> None:
    pl.DataFrame(ROWS).write_ipc_stream(folder / "data.arrow", compat_level=pl.CompatLevel.oldest())
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"prompt": {"_type": "Value"}, "task": {}}}))


def a_state(folder: Path) -> None:
    network = small()
    save_state(folder / "s.safetensors", network, make_optimizer(network, learning_rate=1e-3), epoch=3)


def read_state_back(folder: Path) -> None:
    network = small(1)
    load_state(folder / "s.safetensors", network, make_optimizer(network, learning_rate=1e-3))


def a_run(folder: Path) -> None:
    build(folder / "run", layers=1, epochs=2, controls=("shuffled",), splits=("subset", "validation"))


def read_run(folder: Path) -> None:
    """All that a run holds."""
    run = load_run(folder / "run")
    str(run)
    assert run.metrics.schema == METRICS
    assert run.dataset is None or len(run.dataset)
    assert run.dataset_facts is None or isinstance(run.dataset_facts, dict)
    for epoch in run.layout_epochs:
        run.layout(epoch)
        run.predictions(epoch)


def a_part(folder: Path) -> None:
    a_run(folder)
    (folder / "run" / "manifest.json").write_text('{"status": "interrupted"}')
    (folder / "run" / "metrics.parquet").unlink()
    (folder / "run" / "parts").mkdir()
    row = {"experiment": "learn", "control": "none", "measure": "accuracy", "value": 0.5, "epoch": 0}
    metrics_frame([row]).write_parquet(folder / "run" / "parts" / "epoch-0000.parquet")


def a_plan(folder: Path) -> None:
    (folder / "sweep.json").write_text(json.dumps({"runs": {"seed-1": "seed = 1\n"}}))


def anything(folder: Path, file: str) -> tuple[str, ...]:
    """A model is refused by its own name: which of its files is at fault, its libraries do not always tell."""
    return (Path(file).name, str(folder))


RUN = ("manifest.json", "config.toml", "metrics.parquet", "data/dataset.parquet", "data/dataset.json")
LAYOUTS = ("layouts/epoch-0001.parquet", "layouts/predictions-0001.parquet")
READERS = {
    "dataset": Reader(
        lambda folder: generate(configure("micro", seed=3).data, seed=3).save(folder),
        load_dataset,
        ("dataset.parquet", "dataset.json"),
        flips=15,
        names=lambda folder, file: ("dataset.",),
    ),
    "prompts.jsonl": Reader(jsonl, lambda f: read_prompts(f / "p.jsonl"), ("p.jsonl",)),
    "prompts.csv": Reader(
        lambda f: pl.DataFrame(ROWS).write_csv(f / "p.csv"), lambda f: read_prompts(f / "p.csv"), ("p.csv",)
    ),
    "prompts.parquet": Reader(
        lambda f: pl.DataFrame(ROWS).write_parquet(f / "p.parquet"),
        lambda f: read_prompts(f / "p.parquet"),
        ("p.parquet",),
        flips=300,
    ),
    "datasets": Reader(
        arrow, read_prompts, ("data.arrow", "state.json", "dataset_info.json"), names=lambda f, file: (f.name,)
    ),
    "run": Reader(a_run, read_run, tuple(f"run/{file}" for file in (*RUN, *LAYOUTS)), flips=12),
    "part": Reader(
        a_part,
        read_run,
        ("run/parts/epoch-0000.parquet",),
        names=lambda f, file: (Path(file).name, str(f / "run/parts")),
    ),
    "sweep": Reader(a_plan, _read_plan, ("sweep.json",)),
    "state": Reader(a_state, read_state_back, ("s.safetensors",)),
    "model": Reader(
        a_model,
        lambda f: load_network(f / "model"),
        tuple(f"model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")),
        flips=10,
        names=anything,
    ),
    "gguf": Reader(
        lambda f: write_gguf(f / "tiny.gguf"), lambda f: load_network(f / "tiny.gguf"), ("tiny.gguf",), flips=15
    ),
    "shards": Reader(
        sharded, lambda f: load_network(f / "model"), ("model/model.safetensors.index.json",), flips=15, names=anything
    ),
    "adapter": Reader(
        an_adapter, lambda f: load_network(f / "model"), ("model/adapter_config.json",), flips=10, names=anything
    ),
    "switched": Reader(
        a_switched,
        lambda f: load_switched(f / "model"),
        ("model/switched.json", "model/switch.safetensors"),
        flips=15,
        names=anything,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_right_or_refused_in_one_line_that_names_it(name, tmp_path):
    reader = READERS[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    reader.make(whole)
    reader.read(whole)  # which is what is damaged next
    failures, refused = [], 0
    for file in reader.files:
        content = (whole / file).read_bytes()
        for way, damage in damages(content, reader.flips):
            damage(whole / file)
            try:
                reader.read(whole)
            except Refused as refusal:
                refused += 1
                said = str(refusal)
                if "\n" in said or not any(one in said for one in reader.names(whole, file)):
                    failures.append(f"{file}, {way}: {said}")
            except BaseException as error:
                failures.append(f"{file}, {way}: {type(error).__name__}: {error}")
            finally:
                path = whole / file
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
                path.write_bytes(content)
    assert not failures, f"{len(failures)}\n" + "\n".join(one[:300] for one in failures[:40])
    assert refused > 15, "it can fail"
    reader.read(whole)


# --- a run folder that is shown ---------------------------------------------------------------------------------------


def rows(run: Path, change: Callable[[pl.DataFrame], pl.DataFrame], file: str = "metrics.parquet") -> None:
    change(pl.read_parquet(run / file)).write_parquet(run / file)


ODD_RUNS = {
    "no rows": lambda run: rows(run, lambda frame: frame.head(0)),
    "no accuracy": lambda run: rows(run, lambda frame: frame.filter(pl.col("measure") != "accuracy")),
    "no measure": lambda run: rows(run, lambda frame: frame.with_columns(measure=pl.lit(None, pl.String))),
    "no layers": lambda run: rows(run, lambda frame: frame.with_columns(layer=pl.lit(None, pl.Int32))),
    "a negative layer": lambda run: rows(run, lambda frame: frame.with_columns(layer=-1 - pl.col("layer"))),
    "values beyond all": lambda run: rows(run, lambda frame: frame.with_columns(value=pl.lit(1e308))),
    "no number": lambda run: rows(run, lambda frame: frame.with_columns(value=pl.lit(float("nan")))),
    "other columns": lambda run: rows(run, lambda frame: frame.rename({"measure": "measures"})),
    "no instruction": lambda run: rows(run, lambda frame: frame.drop("instruction"), "data/dataset.parquet"),
    "no task": lambda run: rows(
        run, lambda frame: frame.with_columns(task=pl.lit(None, pl.String)), "data/dataset.parquet"
    ),
    "tasks in numbers": lambda run: rows(run, lambda frame: frame.with_columns(task=pl.lit(3)), "data/dataset.parquet"),
    "strange points": lambda run: rows(
        run, lambda frame: frame.with_columns(x=pl.lit(float("inf"), pl.Float32)), "layouts/epoch-0001.parquet"
    ),
    "fewer points": lambda run: rows(run, lambda frame: frame.head(7), "layouts/epoch-0001.parquet"),
    "a model that is a number": lambda run: (run / "config.toml").write_text('verb = "learn"\nseed = 1\nmodel = 3\n'),
    "a probe": lambda run: (run / "config.toml").write_text('verb = "probe"\nsize = 3\nseed = 1\nmodels = 7\n'),
    "mappings of nothing": lambda run: (run / "data" / "dataset.json").write_text('{"mappings": [], "patterns": 3}'),
    "claims that are none": lambda run: (run / "claims.json").write_text('[{"claim": 3, "threshold": "high"}]'),
    "claims of another kind": lambda run: (run / "claims.json").write_text('{"claim": 3}'),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD_RUNS)
def test_a_run_folder_of_a_stranger_is_shown_or_refused_in_one_line(name, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("nucleate.report.drawing.encoded", lambda figure, ending: b"<svg/>")  # made, but not drawn
    run = build(tmp_path / "run", layers=1, epochs=1, controls=("shuffled",), splits=("subset", "validation"))
    ODD_RUNS[name](run)
    for command in (["report", str(run)], ["claims", str(run)], ["runs", str(tmp_path)]):
        code = main(command)
        told = capfd.readouterr().err
        assert code in (0, 2) and "Traceback" not in told
        assert code == 0 or (told.count("\n") == 1 and str(run) in told)
