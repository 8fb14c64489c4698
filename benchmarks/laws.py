"""Whole instructions in a step against instances drawn one by one: what the law of batches changes, seed by seed.

    python benchmarks/laws.py results/judged/* > results/packing.md

Pairs finished runs that differ in `training.packing` alone, and prints Markdown, a section for each size: the mean of
each law, the mean of the paired differences (rows minus tree) with its 95 % t-interval, and both laws' verdicts.
"""

import json
import sys

from nucleate.claims.verdicts import Judgement, judge
from nucleate.intervals import t_interval
from nucleate.long_table import ACCURACY, LAST, Score, best_epoch, curve_of, f1, level_of, settings_but_seed
from nucleate.runs import Run, load_run

LAWS = ("tree", "rows")


def quantities(run: Run) -> dict[str, float]:
    """Accuracies at the best epoch and late in training, when that was, and the last layer's scores late."""
    table, best = run.metrics, best_epoch(run.metrics)
    assert best is not None, f"{run.folder}: no best epoch"
    found: dict[str, float | None] = {"best epoch": best.epoch}
    for split, score in ACCURACY.items():
        curve = curve_of(table, score, layer=None)
        found[f"accuracy, {split}, best epoch"] = curve[best.epoch]
        found[f"accuracy, {split}, late"] = level_of(table, score, layer=None)
    for split in ("subset", "validation"):
        for space in ("raw", "tsne"):
            found[f"F1, {split}, {space}"] = level_of(table, f1(split, (space,)), LAST)
            found[f"ARI, {split}, {space}"] = level_of(table, Score("ari", split, "task", (space,)), LAST)
    for measure in ("knn_share", "knn_share_other_distributions"):
        found[f"{measure}, validation"] = level_of(table, Score(measure, "validation"), LAST)
    found["knn_accuracy, validation"] = level_of(table, Score("knn_accuracy", "validation"), LAST)
    return {name: float(value) for name, value in found.items() if value is not None}


def main(folders: list[str]) -> None:
    if not folders:
        print(__doc__)
        return
    found: dict[str, dict[str, dict[int, Run]]] = {}
    for run in map(load_run, folders):
        if run.manifest["status"] != "done":
            raise SystemExit(f"laws.py: {run.folder} is not finished")
        settings = settings_but_seed(run.config)
        law = settings.pop("training.packing")
        same = found.setdefault(json.dumps(settings, sort_keys=True), {law: {} for law in LAWS})[law]
        if run.config["seed"] in same:
            raise SystemExit(f"laws.py: {run.folder} and {same[run.config['seed']].folder} are the same run")
        same[run.config["seed"]] = run
    paired = [pairs for laws in found.values() if len((pairs := pairs_of(laws))["tree"]) > 1]
    if not paired:
        raise SystemExit("laws.py: two seeds of both laws at least, to compare them in pairs")
    print("# Whole instructions in a step (`tree`) against instances drawn one by one (`rows`)\n")
    print("Seeds are paired; last layer; *late* is the last tenth of the training. What each claim measures:")
    print("[claims.md](claims.md). Made by `python benchmarks/laws.py results/judged/*`.")
    for laws in paired:
        compare(laws)


def pairs_of(laws: dict[str, dict[int, Run]]) -> dict[str, dict[int, Run]]:
    """The runs whose seed was run by both laws, by rising seed."""
    seeds = sorted(laws["tree"].keys() & laws["rows"].keys())
    return {law: {seed: runs[seed] for seed in seeds} for law, runs in laws.items()}


def compare(runs: dict[str, dict[int, Run]]) -> None:
    """A section: quantities in pairs, then the verdicts of both laws."""
    seeds = list(runs["tree"])
    print(f"\n## Size {runs['tree'][seeds[0]].config['size']}, seeds {', '.join(map(str, seeds))}\n")
    measured = {law: [quantities(runs[law][seed]) for seed in seeds] for law in LAWS}
    print("| quantity | tree | rows | rows - tree | 95 % |\n|---|---|---|---|---|")
    for name in measured["tree"][0]:
        if not all(name in one for law in LAWS for one in measured[law]):
            continue  # of some seed it could not be told
        tree, rows = ([one[name] for one in measured[law]] for law in LAWS)
        apart = t_interval([b - a for a, b in zip(tree, rows, strict=True)])
        means = " | ".join(f"{sum(values) / len(values):.3f}" for values in (tree, rows))
        print(f"| {name} | {means} | {apart.mean:+.3f} | {apart.low:.3f} to {apart.high:.3f} |")
    judged = {law: {one.claim: one for one in judge([runs[law][seed] for seed in seeds])} for law in LAWS}
    print("\n| claim | tree | rows |\n|---|---|---|")
    for claim in judged["tree"]:
        print(f"| {claim} | {' | '.join(told(judged[law][claim]) for law in LAWS)} |")


def told(one: Judgement) -> str:
    if one.estimate is None:
        return one.verdict
    interval = "" if one.low is None else f" [{one.low:.3f}, {one.high:.3f}]"
    return f"{one.verdict}: {one.estimate:.3f}{interval}"


if __name__ == "__main__":
    main(sys.argv[1:])
