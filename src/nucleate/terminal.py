"""What a terminal shows: what a run has come to, its tables, and how far a computation is."""

import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nucleate.progress import TimeLeft
from nucleate.reading import shown
from nucleate.refusal import Refused
from nucleate.text_table import WIDTH, text_table

_NARROWEST = 80  # columns; a narrower terminal breaks the lines itself
_EVERY, _GAIN = 15, 0.1  # where no bar can be drawn, a line after so many seconds or so much of the whole


def list_runs(folder: Path) -> None:
    """A line for each run in and below a folder; one that is damaged hides no other."""
    from nucleate.runs import load_run, run_folders

    places = run_folders(folder)
    for place in places:
        try:
            with shown([place]):
                run = load_run(place)
                models = ", ".join(Path(model).name for model in run.config.get("models", ()))
                what = f"{run.config['verb']} {run.config['size']} seed {run.config['seed']}"
                told = f"{what:28} {run.state:12} {run.size_bytes / 2**20:9.1f} MiB  {models}"
        except Refused as refusal:
            told = f"damaged: {refusal}"
        print(f"{place!s:40} {told}".rstrip())
    if not places:
        print(f"no run folders in {folder}")


def print_summary(run: Any) -> None:
    """What a run has come to: sentences, then one small table."""
    from nucleate.report.sentences import sentences_of

    title, header, rows = table_of(run)
    print(f"\n{run.folder}")
    for sentence in [*sentences_of(run), *_doubts(run)]:
        print(sentence)
    if rows:
        print_table(title, header, rows)


def table_of(run: Any) -> tuple[str, Sequence[str], Sequence[Sequence[object]]]:
    """The one table that a verb ends with; without rows where the run is not far enough for it."""
    from nucleate.report import application_tables, tables

    if run.config["verb"] == "probe":
        return _of_a_probe(run)
    if run.config["verb"] == "transfer":
        from nucleate.report.transfer_table import transfer_table

        title = "Answers that become another task's, by layer, on test; controls at their best strength"
        return title, *transfer_table(run)
    if run.config["verb"] == "pretrain":
        header, rows = application_tables.pretraining_table(run)
        return "Every arm while it is fine-tuned, and its pre-training", [words(name) for name in header], rows
    if run.config["verb"] == "align":
        title = "One behaviour redirected" if "network" in run.config else "Table 2 and what goes beyond it"
        return title, *application_tables.alignment_table(run)
    epoch, split = tables.last_measured_epoch(run), tables.summary_split(run)
    title = f"Epoch {epoch}, {split}, from 0 to 1: the first layer, the last, and the controls of the last"
    return title, *tables.first_and_last(run)


def _of_a_probe(run: Any) -> tuple[str, Sequence[str], Sequence[Sequence[object]]]:
    """Task by task for one model, with its base or alone; of more, each model at its best layer."""
    from nucleate.probing import findings

    models, base = run.config["models"], run.config.get("base")
    if sum(one != base for one in models) <= 1 and _is_whole(run):
        tasks, confusion = (run.table(name) for name in ("tasks", "confusion"))
        main = findings.main_model(run.metrics, models)
        header, *rows = findings.task_lines(run.metrics, tasks, confusion, main)
        return f"Task by task: {main}", header, rows
    if "best_readable_layer" not in run.metrics["measure"]:
        return "made by an earlier version, without linear readings: probe again", (), ()
    header, *rows = findings.summary_lines(run.metrics)
    return findings.models_title(run.metrics), header, rows


def _doubts(run: Any) -> list[str]:
    """Which rows of a probe's data look mislabelled."""
    from nucleate.probing import findings

    if run.config["verb"] != "probe" or not _is_whole(run):
        return []
    return findings.doubts_told(run.table("suspicious"), findings.main_model(run.metrics, run.config["models"]))


def _is_whole(run: Any) -> bool:
    """Finished, and not made by an earlier version."""
    finished = (run.folder / "dropped.parquet").is_file()
    return bool(finished and "best_readable_layer" in run.metrics["measure"])


def words(name: str) -> str:
    """A column's name in words."""
    return name.replace("_", " ")


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """As wide as the terminal, within reason; elsewhere always the same."""
    width = shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
    print(f"\n{text_table(header, rows, title=title, width=min(max(width, _NARROWEST), WIDTH))}\n")


class ProgressBar:
    """A bar with the time gone and the time left on a terminal; a line now and then elsewhere. Call it with (text,
    fraction or None)."""

    def __enter__(self) -> "ProgressBar":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            Task,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.text import Text

        left = self.left = TimeLeft()

        class Left(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(str(left))

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), Left())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.task = self.bar.add_task("", total=1.0)
        self.console = console
        self.next_line, self.next_gain = 0.0, 0.0
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, text: str, fraction: float | None = None) -> None:
        if fraction is None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
            return
        self.left.tell(fraction)
        if self.console.is_terminal:
            self.bar.update(self.task, description=text, completed=fraction)
        elif time.monotonic() >= self.next_line or fraction >= min(1, self.next_gain):
            left = f"; {self.left}" if fraction < 1 and str(self.left) else ""
            self.console.print(f"{fraction:4.0%}  {text}{left}", highlight=False, markup=False, soft_wrap=True)
            self.next_line, self.next_gain = time.monotonic() + _EVERY, fraction + _GAIN
