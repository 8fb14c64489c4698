"""A judged run's table is reduced to what is read of it, and never further."""

import runpy
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nucleate.runs import load_run

SCRIPT = Path(__file__).parents[1] / "results" / "reduce.py"


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def run(micro_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(micro_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "parts"))
    return tmp_path / "run"


def test_a_reduced_run_shows_the_same_claims_figures_and_summary_in_fewer_rows(run, script):
    whole, shown = load_run(run).metrics, script["shown_of"](load_run(run))
    before, after = script["reduce"](run)
    kept = load_run(run).metrics
    assert script["shown_of"](load_run(run)) == shown and all(shown)
    assert after < before and len(kept) < len(whole) / 2
    assert kept.equals(whole.join(kept, on=whole.columns, how="semi", nulls_equal=True, maintain_order="left"))
    assert not set(kept["measure"]) & {"f1_purity", "knn_share_k5"}


def test_what_a_figure_alone_reads_cannot_be_left_out(run, script):
    path = run / "metrics.parquet"
    before = path.read_bytes()
    script["reduce"].__globals__["LEFT_OUT"] = ((pl.col("measure") == "ami") & (pl.col("split") == "subset"),)
    with pytest.raises(SystemExit, match="would change"):
        script["reduce"](run)
    assert path.read_bytes() == before and not list(run.glob("*.part"))


def test_results_take_at_most_thirty_megabytes():
    sizes = [path.stat().st_size for path in SCRIPT.parent.rglob("*") if path.is_file()]
    assert len(sizes) > 100 and sum(sizes) <= 30_000_000
