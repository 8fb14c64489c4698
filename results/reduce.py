"""Leaves out of a judged run's table what no claim, figure or summary reads, so that many runs fit into a repository.

    python results/reduce.py RUN [RUN ...]

Rewrites `metrics.parquet` in place. A table whose claims, figures or summary would change is left as it was.
"""

import sys
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.claims.verdicts import judge
from nucleate.report.figures import draw_svg
from nucleate.report.tables import summary_table
from nucleate.runs import Run, load_run

_MEASURE, _SPACE, _LABELS = pl.col("measure"), pl.col("space"), pl.col("labels")
_IS_CLUSTERED = _MEASURE.is_in(["f1", "ari", "ami", "ari_within_tasks"])
LEFT_OUT: tuple[pl.Expr, ...] = (
    _MEASURE.is_in(["f1_purity", "f1_matched", "f1_pairwise", "f1_bcubed"]),  # other readings of F1
    _MEASURE.str.contains(r"^knn_.*(_k5|_kept|_(inputs|distributions)_k\d+|accuracy_k\d+)$")  # other values of K
    & (_MEASURE != "knn_share_other_both_kept"),
    _MEASURE.str.contains(r"^knn_share_k\d+$") & (pl.col("control") != "none"),
    _IS_CLUSTERED & (pl.col("split") == "test") & ((_MEASURE == "ami") | (_LABELS != "task")),
    _IS_CLUSTERED & _SPACE.is_in(["centred", "averaged"]) & ((_MEASURE == "ami") | (_LABELS != "task")),
    _IS_CLUSTERED & (_SPACE == "centred") & (_MEASURE != "f1"),
)


def main(folders: list[str]) -> None:
    if not folders:
        print(__doc__)
    for folder in map(Path, folders):
        before, after = reduce(folder)
        print(f"{folder}: {before:,} bytes, now {after:,}")


def reduce(folder: Path) -> tuple[int, int]:
    """Bytes of the table before and after."""
    run, path = load_run(folder), folder / "metrics.parquet"
    if run.manifest["status"] != "done":
        raise SystemExit(f"reduce.py: {folder} is not finished")
    shown, before = shown_of(run), path.stat().st_size
    kept = run.metrics.filter(~pl.any_horizontal(LEFT_OUT).fill_null(False))
    smaller = path.with_suffix(".part")
    kept.write_parquet(smaller, compression="zstd", compression_level=12)
    again = load_run(folder)
    again.__dict__["metrics"] = pl.read_parquet(smaller)  # in place of the cached reading of the file
    if shown_of(again) != shown:
        smaller.unlink()
        raise SystemExit(f"reduce.py: claims, figures or summary of {folder} would change; nothing was written")
    smaller.replace(path)
    return before, path.stat().st_size


def shown_of(run: Run) -> tuple[Any, ...]:
    """All that the repository shows of a run: its claims, its figures, its summary."""
    return judge([run]), draw_svg(run), summary_table(run)


if __name__ == "__main__":
    main(sys.argv[1:])
