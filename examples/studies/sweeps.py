"""The sweeps behind docs/study.md: one factor at a time, what it changes, and which reading comes nearest to the paper.

    python examples/studies/sweeps.py DIR > study.sh && sh study.sh    # the sweeps, one a line; resumable
    python examples/studies/sweeps.py DIR --effects                    # each factor against its base, seed by seed
    python examples/studies/sweeps.py DIR --distance                   # the finished runs, nearest to the paper first

Width 128, learning rate 0.0005 and 60 epochs, where post-norm networks answer most of validation, so that a run takes
minutes. Exploratory: seeds 100 and up. The distance was fixed before the first run.
"""

import re
import sys
from pathlib import Path

import numpy as np

from nucleate.claims import quantities
from nucleate.intervals import t_interval
from nucleate.long_table import best_epoch
from nucleate.runs import Run, load_run
from nucleate.text_table import text_table

BASES = {"prenorm": "gpt2", "postnorm": "marian"}
FACTORS = {  # of the likeliest reading, from either base
    "base": "",
    "patterns": "--set data.patterns=short",
    "totals": "--set data.totals=free",
    "subset-several": "--set data.subset=several",
    "subset-broad": "--set data.subset=broad",
    "batch": "--set training.batch=8,16",
    "weight-decay": "--set training.weight_decay=0,0.1",
    "initial-scale": "--set model.initial_scale=0.01,0.1",
    "epochs": "--epochs 200",
    "clusters": "--set measure.clusters=all",
    "before-norm": "--set measure.last_layer=plain",
    "attention": "--set measure.state=attention",
}
NOT_OF = {"postnorm": ("before-norm",)}  # it has no norm at the end that could be left out
QUESTIONS = {  # the paper's open questions and next checks, from the first base, at equal steps
    "width": "--width 32,64,256,512",
    "narrow": "--width 32 --epochs 500 --set training.learning_rate=1e-3,3e-3",
    "narrow-llama": "--width 32 --epochs 500 --set training.learning_rate=3e-3 --set model.architecture=llama",
    "tasks-25": "--epochs 120 --set data.tasks=25 --set data.total_distributions=72",
    "tasks-100": "--epochs 30 --set data.tasks=100 --set data.total_distributions=288",
    "tasks-200": "--epochs 15 --set data.tasks=200 --set data.total_distributions=576",
    "depth": "--seed 100 --set model.layers=12,24",
    "architecture": "--seed 100 --set model.architecture=opt,llama,bert",
    "architecture-mamba": "--seed 100 --set model.architecture=mamba --set model.dropout=0",  # it has none
    "stochastic": "--seed 100 --set data.likeliest=0.8",
    "inside": "--seed 100 --set data.input_place=inside",
}
UNSEEN = "--seed 100..102 --set pretrain.epochs=60"  # pre-training, then fine-tuning on other tasks
USUAL = {  # unless a sweep says otherwise
    "--seed": "--seed 100,101",
    "--width": "--width 128",
    "--epochs": "--epochs 60",
    "training.learning_rate": "--set training.learning_rate=5e-4",
    "measure.": "--set measure.dense_until=10 --set measure.every=10",
}


def commands(folder: str) -> list[str]:
    """A sweep for each factor and base, then one for each question."""
    learn = {
        f"{base}-{name}": f"--set model.architecture={architecture} {factor}"
        for name, factor in FACTORS.items()
        for base, architecture in BASES.items()
        if name not in NOT_OF.get(base, ())
    }
    learn |= {f"prenorm-{name}": options for name, options in QUESTIONS.items()}
    listed = [("learn", name, options) for name, options in learn.items()] + [("pretrain", "unseen-tasks", UNSEEN)]
    lines = []
    for verb, name, options in listed:
        usual = " ".join(text for key, text in USUAL.items() if key not in options or key == "measure.")
        lines.append(f"nucleate sweep {verb} --size small {usual} {options.strip()} --out {folder}/{name} --resume")
    return lines


# --- what each factor changes -----------------------------------------------------------------------------------------


def finished(folder: Path) -> list[tuple[str, Run]]:
    """`sweep/run`, and the run."""
    found = [(path.parent, load_run(path.parent)) for path in sorted(folder.glob("*/*/manifest.json"))]
    return [(f"{at.parent.name}/{at.name}", run) for at, run in found if run.manifest["status"] == "done"]


def effects(folder: Path) -> list[tuple[object, ...]]:
    """Each factor's runs: F1 (C1) and lead (N1), each less the base's of the same seed, the interval of the difference
    where there are several seeds, how many, and core-hours."""
    groups: dict[str, dict[int, Run]] = {}
    for name, run in finished(folder):
        if run.config["verb"] == "learn":
            sweep, _, rest = name.partition("/")
            value = re.sub(r"seed\d+-?|^learn$", "", rest)
            groups.setdefault(f"{sweep} {value}".strip(), {})[run.config["seed"]] = run
    rows = []
    for name, runs in groups.items():
        base = groups.get(f"{name.split('-')[0]}-base", {})
        row: list[object] = [name]
        for quantity in (quantities.late_f1_subset, quantities.lead_of_centred_f1):
            own = {seed: quantity(run.metrics) for seed, run in runs.items()}
            known = [value for value in own.values() if value is not None]
            row.append(float(np.mean(known)) if known else None)
            pairs = [
                (own[seed], quantity(base[seed].metrics)) for seed in own if seed in base and name not in BASE_NAMES
            ]
            gains = [mine - its for mine, its in pairs if mine is not None and its is not None]
            row.append(str(t_interval(gains)) if len(gains) > 1 else float(gains[0]) if gains else None)
        seconds = sum(run.manifest["seconds"]["total"] for run in runs.values())
        rows.append((*row, len(runs), f"{seconds / 3600:.1f}"))
    return rows


BASE_NAMES = tuple(f"{base}-base" for base in BASES)


# --- which reading is the likeliest -----------------------------------------------------------------------------------

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


def nearest(folder: Path) -> list[tuple[object, ...]]:
    """Of the likeliest reading's runs: F1, each part of the distance, and their sum; the nearest first."""
    factors = [f"{base}-{name}" for base in BASES for name in FACTORS]
    found = []
    for name, run in finished(folder):
        if name.split("/")[0] in factors:
            parts = distance(run)
            found.append((name, quantities.late_f1_subset(run.metrics), *parts.values(), sum(parts.values())))
    return sorted(found, key=lambda row: row[-1])


EFFECTS = ("factor", "F1", "less the base's", "lead (N1)", "less the base's", "seeds", "core-hours")
NEAREST = ("run", "F1", "F1 above 0.9", "layer 0 flat", "accuracy waits", "best epoch", "counts", "distance")


def main(folder: str, asked: str = "") -> None:
    if asked == "--effects":
        print(text_table(EFFECTS, effects(Path(folder))))
    elif asked == "--distance":
        print(text_table(NEAREST, nearest(Path(folder))))
    else:
        print("\n".join(commands(folder)))


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[2:] not in ([], ["--effects"], ["--distance"]):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
