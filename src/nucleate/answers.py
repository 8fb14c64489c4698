"""What a verb has come to as one object, for scripts: what `--json` prints.

`answer_of` is asked when the verb is done. Of a run: its folder, its sentences, its table by the names of the columns,
its page; of a probe the object of `probing/bars.py`; of the other verbs what their text says.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nucleate.config import describe
from nucleate.options import config_of
from nucleate.reading import read_json, read_json_rows, read_parquet
from nucleate.runs import find_runs, load_run
from nucleate.terminal import table_of


def answer_of(asked: argparse.Namespace) -> Any:
    """An object that JSON can hold."""
    if getattr(asked, "estimate", None):
        return {"estimate": asked.estimate}  # its sentences
    return _ANSWERS.get(asked.verb, _of_a_run)(asked)


def _of_a_run(asked: argparse.Namespace) -> dict[str, Any]:
    return _told(Path(asked.out))


def _told(folder: Path) -> dict[str, Any]:
    from nucleate.report.sentences import sentences_of

    run = load_run(folder)
    title, header, rows = table_of(run)
    table = [dict(zip(header, row, strict=True)) for row in rows]
    return {
        "run": str(folder),
        "sentences": sentences_of(run),
        "table": {"title": title, "rows": table},
        "page": str(folder / "page.html"),
    }


def _of_a_probe(asked: argparse.Namespace) -> dict[str, Any]:
    from nucleate.probing.bars import answer
    from nucleate.probing.result import load_probe

    found = load_probe(asked.out)
    return answer(found.metrics, found.tasks, found.verdicts)


def _of_data(asked: argparse.Namespace) -> dict[str, Any]:
    description = read_json(Path(asked.out) / "dataset.json")
    return {"dataset": str(Path(asked.out) / "dataset.parquet"), "counts": description["counts"]}


def _of_several(asked: argparse.Namespace) -> dict[str, Any]:
    folders = [Path(run) for run in asked.runs]
    page = folders[-1] if asked.out is None else Path(asked.out)
    return {"runs": [_told(folder) for folder in folders], "page": str(page / "page.html")}


def _of_claims(asked: argparse.Namespace) -> Any:
    return read_json_rows(Path(asked.out or asked.runs[0]) / "claims.json")


def _of_everything(asked: argparse.Namespace) -> dict[str, Any]:
    out = Path(asked.out)
    return {
        "runs": [_told(run.folder) for run in find_runs(out)],
        "claims": read_json_rows(out / "claims.json"),
        "page": str(out / "page.html"),
    }


def _of_a_sweep(asked: argparse.Namespace) -> dict[str, Any]:
    out = Path(asked.out)
    return {"runs": read_parquet(out / "runs.parquet").to_dicts(), "metrics": str(out / "metrics.parquet")}


def _of_settings(asked: argparse.Namespace) -> dict[str, Any]:
    return {key: {"value": value, "meaning": meaning} for key, value, meaning in describe(config_of(asked))}


def _of_folders(asked: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        {
            "run": str(run.folder),
            "verb": run.config["verb"],
            "size": run.config["size"],
            "seed": run.config["seed"],
            "state": run.state,
            "bytes": run.size_bytes,
        }
        for run in find_runs(Path(asked.folder))
    ]


_ANSWERS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "data": _of_data,
    "probe": _of_a_probe,
    "report": _of_several,
    "claims": _of_claims,
    "reproduce": _of_everything,
    "sweep": _of_a_sweep,
    "settings": _of_settings,
    "runs": _of_folders,
}
