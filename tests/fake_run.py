"""A synthetic run folder that keeps the contract of the design: curves that rise with layers, no network behind them.

`build(folder)` writes config.toml, manifest.json, data/, metrics.parquet (parts/ where unfinished) and layouts/.
"""

import json
import math
import random
from pathlib import Path

import numpy as np
import polars as pl

COLUMNS = (
    "experiment", "model", "arm", "control", "seed", "epoch", "step", "split", "layer", "read", "labels", "space",
    "measure", "value",
)  # fmt: skip
SCHEMA = {
    name: pl.Int32 if name in ("seed", "epoch", "step", "layer") else pl.Float64 if name == "value" else pl.String
    for name in COLUMNS
}
KINDS = ("task", "distribution", "distribution_mapping")
INPUTS = "ABCDE"
ALPHABET = "abcdefghijαβγδεζηθбгджз"


def build(
    folder: Path,
    *,
    width: int = 256,
    layers: int = 6,
    epochs: int = 60,
    finished: bool = True,
    controls: tuple[str, ...] = ("shuffled", "regrouped", "surface_instruction", "surface_prompt"),
    splits: tuple[str, ...] = ("subset", "validation", "test"),
    names: dict[str, str] | None = None,
    long_prompt: bool = False,
    seed: int = 100,
) -> Path:
    """`names` renames tasks (hostile names come in here); `long_prompt` makes an instruction of 10,000 characters."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = [epoch for epoch in range(epochs + 1) if epoch <= 20 or epoch % 5 == 0 or epoch == epochs]
    (folder / "config.toml").write_text(
        f'verb = "learn"\nsize = "small"\nseed = {seed}\ndevice = "cpu"\ndtype = "float32"\n\n'
        '[data]\ntasks = 50\nsubset = "narrow"\n\n'
        f"[model]\nwidth = {width}\nlayers = {layers}\nheads = 8\n\n"
        f'[training]\nepochs = {epochs}\nbatch = 65\nlearning_rate = 1e-4\npacking = "rows"\n\n'
        "[measure]\nperplexity = 10.0\n",
        encoding="utf-8",
    )
    manifest = {
        "versions": {"python": "3.11", "torch": "2.13", "transformers": "5.23"},
        "machine": "two cores",
        "threads": 2,
        "device": "cpu",
        "seeds": {"run": seed},
        "data_hash": "sha256:0123",
        "checkpoints": {"best": "ab12", "last": "cd34"},
        "seconds": {"train": 900.0, "read": 60.0, "measure": 240.0, "total": 1210.5},
        "status": "done" if finished else "interrupted",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    frame = write_dataset(folder / "data", names=names or {}, long_prompt=long_prompt)
    rows = _rows(measured, layers=layers, epochs=epochs, controls=controls, splits=splits, seed=seed)
    metrics = pl.DataFrame(rows, schema=SCHEMA, orient="row").sort(COLUMNS[:-1], nulls_last=False)
    if finished:
        metrics.write_parquet(folder / "metrics.parquet")
    else:
        (folder / "parts").mkdir(exist_ok=True)
        kept = metrics.filter(pl.col("epoch").fill_null(0) <= epochs // 2)
        for (epoch,), part in kept.group_by(pl.col("epoch").fill_null(0), maintain_order=True):
            part.write_parquet(folder / "parts" / f"epoch-{epoch:04d}.parquet")
    _layouts(folder / "layouts", frame, measured if finished else measured[: len(measured) // 2], layers=layers)
    return folder


def write_dataset(folder: Path, *, names: dict[str, str], long_prompt: bool) -> pl.DataFrame:
    """Six ordinary tasks of three distributions and two hard ones, five instances per instruction."""
    rng = random.Random(7)
    rows: list[dict] = []
    patterns, mappings = {}, {}

    def add(split, in_subset, instruction, source, output, task, distribution, hard=False, origin=None):
        rows.append(
            {
                "instance": len(rows), "split": split, "in_subset": in_subset, "instruction": instruction,
                "input": source, "output": output, "task": task, "distribution": distribution,
                "mapping": f"{task}:{source}", "is_hard": hard, "origin": origin,
            }
        )  # fmt: skip

    for number in range(6):
        task = names.get(f"task-{number}", f"task-{number}")
        mappings[task] = {
            symbol: INPUTS[(place + number) % 5] + "Ω"[: number % 2] for place, symbol in enumerate(INPUTS)
        }
        for letter in "abc":
            distribution = f"{number}{letter}"
            symbols = rng.sample(ALPHABET, 6)
            patterns[distribution] = f"[{''.join(symbols[:3])}]{{3,8}}({symbols[3]}|{symbols[4]}{symbols[5]})+"
            for place in range(16):
                split = "train" if place < 10 else "validation" if place < 13 else "test"
                text = " ".join(rng.choice(symbols) for _ in range(rng.randint(4, 18)))
                if long_prompt and number == 0 and letter == "a" and place in (0, 10):
                    text = " ".join("x<b>$_^\\frac{" for _ in range(800))[:10_000]
                in_subset = number < 2 and split == "train" and place < 3
                for source in INPUTS:
                    add(split, in_subset, text, source, mappings[task][source], task, distribution)
    for number in range(2):  # hard ones: the first symbol of three originals per distribution replaced
        task = names.get(f"task-{number}-hard", f"task-{number}-hard")
        original_task = names.get(f"task-{number}", f"task-{number}")
        turned = list(mappings[original_task].values())
        mappings[task] = dict(zip(INPUTS, turned[1:] + turned[:1], strict=True))
        for row in [row for row in rows if row["task"] == original_task and row["in_subset"] and not row["is_hard"]]:
            symbols = row["instruction"].split(" ")
            symbols[len(symbols) // 2] = "ж" if symbols[len(symbols) // 2] != "ж" else "a"
            add("train", True, " ".join(symbols), row["input"], mappings[task][row["input"]], task,
                f"{row['distribution']}-hard", hard=True, origin=row["instance"])  # fmt: skip
    frame = pl.DataFrame(rows, infer_schema_length=None).cast({"instance": pl.Int32, "origin": pl.Int32})
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(folder / "dataset.parquet")
    content = {
        "settings": {"kind": "main", "tasks": 6},
        "vocabulary": {"instruction": list(ALPHABET), "task": [*INPUTS, "Ω"]},
        "patterns": patterns,
        "mappings": mappings,
        "counts": {"instances": len(rows), "train": sum(row["split"] == "train" for row in rows)},
    }
    (folder / "dataset.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return frame


def _rows(measured, *, layers, epochs, controls, splits, seed):
    noise = np.random.default_rng(seed)
    rows = []

    def add(value, *, measure, split, epoch=None, layer=None, labels=None, space=None, control="none", read="input"):
        rows.append(
            (
                "learn",
                "small",
                "main",
                control,
                seed,
                epoch,
                None,
                split,
                layer,
                read,
                labels,
                space,
                measure,
                float(value),
            )
        )

    def grown(epoch, layer, low, high, delay=0.12):
        """Rises like a sigmoid of time, more so in higher layers; layer 0 stays."""
        time = 1 / (1 + math.exp(-(epoch / epochs - delay * (1.6 - layer / layers)) * 14)) if epoch else 0.02
        return low + (high - low) * (layer / layers) ** 0.8 * time + noise.normal(0, 0.008)

    for epoch in range(epochs + 1):
        if epoch:
            add(3.4 * math.exp(-3 * epoch / epochs) + 0.9, measure="loss", split="train", epoch=epoch, read=None)
        for split in splits:
            ceiling = 0.97 if split == "subset" else 0.86
            late = max(0.0, epoch / epochs - 0.12)
            accuracy = min(1, ceiling * (1 - math.exp(-4 * late)) + abs(noise.normal(0, 0.004)))
            add(accuracy, measure="accuracy", split=split, epoch=epoch, read=None)
    ends = {"task": (0.30, 0.96), "distribution": (0.45, 0.80), "distribution_mapping": (0.25, 0.90)}
    for split in splits:
        drop = 0.0 if split == "subset" else 0.06
        for labels in KINDS:
            low, high = ends[labels]
            for epoch in measured:
                for layer in range(layers + 1):
                    for space in ("raw", "tsne"):
                        gain = 0.05 if (space == "tsne") == (labels != "task") else 0.0
                        f1 = grown(epoch, layer, low, high - drop - 0.05) + gain
                        where = {"split": split, "epoch": epoch, "layer": layer, "labels": labels, "space": space}
                        for measure, value in (("f1", f1), ("ari", f1 * 1.2 - 0.28), ("ami", f1 * 1.1 - 0.16)):
                            add(value, measure=measure, **where)
                            if "shuffled" in controls:
                                floor = 0.22 if measure == "f1" else 0.0
                                add(floor + noise.normal(0, 0.01), measure=measure, control="shuffled", **where)
                            if "regrouped" in controls and labels == "task":
                                add(0.75 * value * 0.5 + 0.1, measure=measure, control="regrouped", **where)
            for control in ("surface_instruction", "surface_prompt"):
                if control in controls:
                    for space in ("raw", "tsne"):
                        base = (0.52 if control == "surface_instruction" else 0.41) + (0.03 if space == "tsne" else 0)
                        for measure, shift in (("f1", 0.0), ("ari", -0.2), ("ami", -0.1)):
                            add(base + shift, measure=measure, split=split, labels=labels, space=space, control=control)
        if split == "subset":
            continue
        for epoch in measured:
            for layer in range(layers + 1):
                where = {"split": split, "epoch": epoch, "layer": layer, "labels": "task", "space": "raw"}
                share = grown(epoch, layer, 0.17, 0.84)
                add(share, measure="knn_share", **where)
                add(grown(epoch, layer, 0.30, 0.89), measure="knn_accuracy", **where)
                for control, part in (("shuffled", 0.03), ("regrouped", 0.3 * share)):
                    if control in controls:
                        add(part, measure="knn_share", control=control, **where)
                        add(part + 0.15, measure="knn_accuracy", control=control, **where)
        for control, value in (("surface_instruction", 0.38), ("surface_prompt", 0.29)):
            if control in controls:
                add(value, measure="knn_share", split=split, labels="task", space="raw", control=control)
                add(value + 0.2, measure="knn_accuracy", split=split, labels="task", space="raw", control=control)
    return rows


def _layouts(folder, frame, measured, *, layers):
    """Points drift from one cloud to their task's place, faster in higher layers; subset and validation apart."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(3)
    shown = frame.filter(pl.col("in_subset") | (pl.col("split") != "train"))
    tasks = shown["task"].unique(maintain_order=True).to_list()
    centres = noise.normal(0, 14, (len(tasks), 3))
    place = np.array([tasks.index(task) for task in shown["task"]])
    cloud = noise.normal(0, 6, (len(shown), 3))
    for epoch in measured:
        parts = []
        for layer in range(layers + 1):
            gathered = (layer / layers) * (1 - math.exp(-4 * epoch / max(measured[-1], 1)))
            points = (cloud * (1 - 0.6 * gathered) + centres[place] * gathered).astype(np.float32)
            at = pl.DataFrame(points, schema=["x", "y", "z"]).with_columns(
                instance=shown["instance"].cast(pl.Int32), layer=pl.lit(layer, dtype=pl.Int32)
            )
            parts += [at.with_columns(view=pl.lit(view)) for view in ("pca", "tsne", "display")]
        layout = pl.concat(parts).select("instance", "layer", "view", "x", "y", "z")
        layout.write_parquet(folder / f"epoch-{epoch:04d}.parquet")
        wrong = pl.col("instance") % 7 == 0
        given = shown.select(
            pl.col("instance").cast(pl.Int32), pl.when(wrong).then(pl.lit("A")).otherwise("output").alias("output")
        )
        given.write_parquet(folder / f"predictions-{epoch:04d}.parquet")
