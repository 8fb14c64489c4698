"""What a terminal shows: the tables of a run, and how far a computation is."""

import time
from collections.abc import Iterable, Sequence
from typing import Any


def print_summary(run: Any) -> None:
    """What a probe found; a pre-training's arms; else the last measured epoch beside its controls: all layers for the
    neighbours, first and last for the rest."""
    from nucleate.report.application_tables import alignment_table, pretraining_table
    from nucleate.report.tables import summary_table

    if run.config["verb"] == "probe":
        import polars as pl

        from nucleate.probing.findings import in_columns, in_full, summary_lines

        if not (run.folder / "dropped.parquet").is_file():  # not finished, or made by an earlier version
            print(f"\n{in_columns(summary_lines(run.metrics))}\n")
            return
        tasks, confusion, suspicious = (
            pl.read_parquet(run.folder / f"{name}.parquet") for name in ("tasks", "confusion", "suspicious")
        )
        print(f"\n{in_full(run.metrics, tasks, confusion, suspicious, run.manifest['verdict'])}\n")
        return
    if run.config["verb"] == "pretrain":
        header, rows = pretraining_table(run)
        title = f"{run.folder}: every arm while it is fine-tuned, and its pre-training"
        print_table(title, [name.replace("_", " ") for name in header], rows)
        return
    if run.config["verb"] == "align":
        header, rows = alignment_table(run)
        title = "one behaviour redirected" if "network" in run.config else "Table 2"
        print_table(f"{run.folder}: {title}", header, rows)
        return
    header, rows = summary_table(run)
    last = max((row[2] for row in rows if isinstance(row[2], int)), default=0)
    names = ("measure (space)", *(name.replace("surface_", "surface: ") for name in header[2:]))
    lines = [
        (f"{measure} ({space})", layer, *values)
        for measure, space, layer, *values in rows
        if measure == "knn_share" or layer in (0, last)
    ]
    title = f"{run.folder}: the last measured epoch beside its controls (margin: value less the highest)"
    print_table(title, names, lines)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> None:
    """Names to the left, numbers to the right with three decimals."""
    lines = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    print(f"\n{title}")
    for first, *others in lines:
        print("  ".join([first.ljust(widths[0]), *(one.rjust(w) for one, w in zip(others, widths[1:], strict=True))]))
    print()


def _cell(value: str | float | None) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


class ProgressBar:
    """A bar with the time gone on a terminal; a line now and then elsewhere. Call it with (text, fraction or None)."""

    def __enter__(self) -> "ProgressBar":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.task = self.bar.add_task("", total=1.0)
        self.console = console
        self.next_line = 0.0
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, text: str, fraction: float | None = None) -> None:
        if fraction is None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif self.console.is_terminal:
            self.bar.update(self.task, description=text, completed=fraction)
        elif time.monotonic() >= self.next_line or fraction >= 1:
            self.console.print(f"{fraction:4.0%}  {text}", highlight=False, markup=False, soft_wrap=True)
            self.next_line = time.monotonic() + 15
