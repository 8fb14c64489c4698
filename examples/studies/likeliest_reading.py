"""Which reading of the paper comes nearest to what it shows? One factor at a time, from two bases.

    python examples/studies/likeliest_reading.py DIR > study.sh && sh study.sh    # the sweeps, one a line; resumable
    python examples/studies/likeliest_reading.py DIR --table                      # the finished runs, nearest first

Width 128, learning rate 0.0005 and 60 epochs, where post-norm networks answer most of validation, so that a run takes
minutes. Exploratory: seeds 100 and 101. The distance was fixed before the first run.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nucleate.claims import quantities
from nucleate.long_table import best_epoch
from nucleate.runs import Run, load_run
from nucleate.text_table import text_table

ALL = "--size small --width 128 --seed 100,101 --set model.feed_forward=256 "
ALL += "--set training.learning_rate=5e-4 --set measure.dense_until=10 --set measure.every=10"
BASES = {"prenorm": "gpt2", "postnorm": "marian"}
FACTORS = {
    "base": "",
    "patterns": "data.patterns=short",
    "totals": "data.totals=free",
    "subset-several": "data.subset=several",
    "subset-broad": "data.subset=broad",
    "batch": "training.batch=8,16",
    "weight-decay": "training.weight_decay=0,0.1",
    "initial-scale": "model.initial_scale=0.01,0.1",
    "epochs": "training.epochs=200",
    "clusters": "measure.clusters=all",
    "before-norm": "measure.last_layer=plain",
    "attention": "measure.state=attention",
}
NOT_OF = {"postnorm": ("before-norm",)}  # it has no norm at the end that could be left out


def commands(folder: str) -> list[str]:
    """A sweep for each base and factor."""
    listed = []
    for base, architecture in BASES.items():
        for name, factor in FACTORS.items():
            if name not in NOT_OF.get(base, ()):
                settings = [f"model.architecture={architecture}", factor or "training.epochs=60"]
                settings += ["training.epochs=60"] if factor and not factor.startswith("training.epochs") else []
                sets = " ".join(f"--set {setting}" for setting in settings)
                listed.append(f"nucleate sweep learn {ALL} {sets} --out {folder}/{base}-{name} --resume")
    return listed


PAPER = {"train": 7300, "subset": 180, "validation": 315}  # Table 3
BEST = 51  # the paper's best epoch, of 200


def distance(run: Run) -> dict[str, float]:
    """How far a run is from what the paper shows, each part in units of what would still be near; 0 is there."""
    table, best = run.metrics, best_epoch(run.metrics)
    f1, flat, waiting = (
        quantity(table)
        for quantity in (quantities.late_f1_subset, quantities.change_of_layer_0, quantities.waiting_share)
    )
    counts = (run.dataset_facts or {}).get("counts", {})
    apart = [abs(counts.get(name, 0) / wanted - 1) for name, wanted in PAPER.items()]
    epochs = run.config["training"]["epochs"]
    return {
        "F1 above 0.9": max(0.0, 0.9 - (f1 or 0.0)) / 0.1,
        "layer 0 flat": max(0.0, (flat or 0.0) - 0.05) / 0.05,
        "accuracy waits": max(0.0, 0.1 - (waiting or 0.0)) / 0.1,
        "best epoch": 1.0 if best is None else abs(best.epoch / epochs - BEST / 200) / 0.25,
        "counts": float(np.mean(apart)) / 0.05,
    }


def rows(folders: Iterable[Path]) -> list[tuple[object, ...]]:
    """Nearest first: the run, its F1, each part of its distance, and their sum."""
    found = []
    for folder in folders:
        run = load_run(folder)
        if run.manifest["status"] == "done":
            parts = distance(run)
            f1 = quantities.late_f1_subset(run.metrics)
            found.append((f"{folder.parent.name}/{folder.name}", f1, *parts.values(), sum(parts.values())))
    return sorted(found, key=lambda row: row[-1])


def main(folder: str, *asked: str) -> None:
    if asked:
        listed = rows(sorted(path.parent for path in Path(folder).glob("*/*/manifest.json")))
        header = ("run", "F1", "F1 above 0.9", "layer 0 flat", "accuracy waits", "best epoch", "counts", "distance")
        print(text_table(header, listed))
    else:
        print("\n".join(commands(folder)))


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[2:] not in ([], ["--table"]):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
