"""Rows C1, C3, C6, C12, N1 and N3 of the ledger once more, from metrics.parquet alone:

    python recompute_claims.py RUN [RUN ...]

Written from the design's words, with polars and scipy only; nothing of the package is imported.
"""

import json
import sys
from pathlib import Path

import polars as pl
from scipy import stats

SURFACE = ["surface_instruction", "surface_prompt"]


def late(rows: pl.DataFrame) -> float:
    return rows.filter(pl.col("epoch") > 0.9 * rows["epoch"].max())["value"].mean()


def clusters(table: pl.DataFrame, control: str, layer: int) -> pl.DataFrame:
    """F1 on the subset, the better of raw and t-SNE at each epoch."""
    rows = table.filter(
        (pl.col("measure") == "f1") & (pl.col("split") == "subset") & (pl.col("labels") == "task"),
        pl.col("space").is_in(["raw", "tsne"]) & (pl.col("control") == control),
        (pl.col("layer") == layer) | pl.col("layer").is_null(),
    )
    return rows.group_by("epoch").agg(pl.col("value").max()).sort("epoch")


def neighbours(table: pl.DataFrame, control: str, layer: int) -> pl.DataFrame:
    return table.filter(
        (pl.col("measure") == "knn_share") & (pl.col("split") == "validation") & (pl.col("space") == "raw"),
        (pl.col("control") == control) & ((pl.col("layer") == layer) | pl.col("layer").is_null()),
    ).sort("epoch")


def point_and_controls(table: pl.DataFrame, rows) -> tuple[float, dict[str, float]]:
    last = table["layer"].max()
    trained = rows(table, "none", last)
    controls = {"untrained": trained.filter(pl.col("epoch") == 0)["value"][0]}
    labels = ("shuffled",) if rows is neighbours else ("shuffled", "regrouped")
    controls |= {name: late(rows(table, name, last)) for name in labels}
    controls |= {name: rows(table, name, last)["value"][0] for name in SURFACE}
    return late(trained), controls


def slope(table: pl.DataFrame) -> tuple[float, dict[str, float]]:
    layers = range(1, table["layer"].max() + 1)
    curves = {layer: clusters(table, "none", layer) for layer in layers}
    found = {
        "none": [late(curves[layer]) for layer in layers],
        "untrained": [curves[layer].filter(pl.col("epoch") == 0)["value"][0] for layer in layers],
        **{name: [late(clusters(table, name, layer)) for layer in layers] for name in ("shuffled", "regrouped")},
    }
    slopes = {name: stats.linregress(list(layers), values).slope for name, values in found.items()}
    return slopes.pop("none"), slopes


def centred(table: pl.DataFrame, measure: str, split: str, control: str) -> pl.DataFrame:
    return table.filter(
        (pl.col("measure") == measure) & (pl.col("split") == split) & (pl.col("space") == "centred"),
        (pl.col("labels") == "task") & (pl.col("control") == control),
    ).sort("epoch")


def told(table: pl.DataFrame, measure: str, control: str) -> float:
    """In the layer between the first and the last that is the highest on validation, the value on test."""
    if control in [*SURFACE, "answers"]:
        return centred(table, measure, "test", control)["value"][0]
    chosen, best = None, float("-inf")
    for layer in range(1, table["layer"].max()):
        on = {}
        for split in ("validation", "test"):
            rows = centred(table, measure, split, "none" if control == "untrained" else control)
            rows = rows.filter(pl.col("layer") == layer)
            on[split] = rows.filter(pl.col("epoch") == 0)["value"][0] if control == "untrained" else late(rows)
        if on["validation"] > best:
            best, chosen = on["validation"], on["test"]
    return chosen


def told_and_controls(measure: str):
    names = ["untrained", "shuffled", "regrouped", *SURFACE, "answers"]
    return lambda table: (told(table, measure, "none"), {name: told(table, measure, name) for name in names})


def lead(table: pl.DataFrame) -> tuple[float, dict[str, float]]:
    point, controls = told_and_controls("f1")(table)
    return point - max(controls.values()), {"nothing": 0.0}


def turned(table: pl.DataFrame) -> tuple[float, dict[str, float]]:
    """The middle layer and strength where validation sees most above the hardest control there, told on test."""
    rows = table.filter(
        (pl.col("measure") == "transfer_target") & (pl.col("layer") > 0),
        pl.col("arm").is_in(["mean", "mean_x2", "mean_x3"]),
    ).sort("layer", "arm")
    best, told = None, None
    for (_, _), here in rows.group_by("layer", "arm", maintain_order=True):
        on = {}
        for split in ("validation", "test"):
            some = here.filter(pl.col("split") == split)
            on[split] = dict(zip(some["control"], some["value"], strict=True))
        lead = on["validation"].pop("none") - max(on["validation"].values())
        if best is None or lead > best:
            best, told = lead, on["test"]
    return told.pop("none"), told


def interval(values: list[float]) -> list[float | None]:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return [mean, None, None]
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=stats.sem(values))
    return [mean, low, high]


def main(folders: list[str]) -> None:
    tables = [pl.read_parquet(Path(folder) / "metrics.parquet") for folder in folders]
    ways = {
        "C1": lambda table: point_and_controls(table, clusters),
        "C3": slope,
        "C6": told_and_controls("knn_share_other_both_by_task"),
        "N1": lead,
        "N3": turned,
        "C12": lambda table: point_and_controls(table, neighbours),
    }
    answer = {}
    for claim, way in ways.items():
        if claim == "N3" and any("transfer_target" not in table["measure"] for table in tables):
            continue  # too few pairs
        found = [way(table) for table in tables]
        points = [point for point, _ in found]
        differences = [point - max(controls.values()) for point, controls in found]
        answer[claim] = {"points": points, "estimate": interval(points), "difference": interval(differences)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
