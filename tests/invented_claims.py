"""Invented long tables in which every claim is plainly true, or plainly false; no network behind them."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.parts import metrics_frame

EPOCHS, LAYERS = 40, 3
SPLITS = ("subset", "validation", "test")
SURFACE = ("surface_instruction", "surface_prompt")
TIMELESS = (*SURFACE, "answers")


def write_run(
    folder: Path, rows: list[dict[str, Any]], *, verb: str, size: str = "small", seed: int, status: str = "done",
    settings: str = "",
) -> Path:  # fmt: skip
    """A run folder with no more than what the ledger reads."""
    folder.mkdir(parents=True)
    shared = {"experiment": verb, "model": "invented", "arm": "main", "control": "none", "seed": seed}
    metrics_frame({**shared, **row} for row in rows).write_parquet(folder / "metrics.parquet")
    top = f"verb = {json.dumps(verb)}\nsize = {json.dumps(size)}\nseed = {seed}\n"
    (folder / "config.toml").write_text(top + settings, encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps({"status": status}), encoding="utf-8")
    if status != "done":
        (folder / "parts").mkdir()
        (folder / "metrics.parquet").rename(folder / "parts" / "epoch-0000.parquet")
    return folder


def rows_of(verb: str, *, true: bool, shift: float = 0.0) -> list[dict[str, Any]]:
    """Rows of one run; `shift` is a little noise, so that seeds differ."""
    return {"learn": _learn, "probe": _probe, "pretrain": _pretrain, "align": _align}[verb](true, shift)


def without(rows: list[dict[str, Any]], control: str) -> list[dict[str, Any]]:
    """The rows less one control."""
    if control == "untrained":
        rows = [row for row in rows if row.get("epoch") != 0]  # which stands for it, but of transfer
    return [row for row in rows if row.get("control") != control]


def raised(rows: list[dict[str, Any]], control: str, value: float) -> list[dict[str, Any]]:
    """The rows with every number of one control replaced."""
    return [{**row, "value": value} if row.get("control") == control else row for row in rows]


def _learn(true: bool, shift: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for epoch in range(EPOCHS + 1):
        grown = min(1.0, epoch / 20)  # until epoch 20, then no more
        if epoch:
            rows.append({"measure": "loss", "split": "train", "epoch": epoch, "value": 4 - epoch / 20})
        if true:  # nothing for twelve epochs, then quickly up to the best at epoch 20
            accuracy = min(1.0, max(0.0, (epoch - 12) / 8)) - (0.02 if epoch > 20 else 0)
        else:  # a straight rise from the start, the best at epoch 12
            accuracy = min(0.9, epoch / 10) + (0.05 if epoch == 12 else 0)
        for split in SPLITS:
            rows.append({"measure": "accuracy", "split": split, "epoch": epoch, "value": accuracy})
            for layer in range(LAYERS + 1):
                rows += _states(true, shift, split, epoch, layer, grown)
    return rows + [row for split in SPLITS for row in _surface(split)] + _moved(true, shift)


def _states(true: bool, shift: float, split: str, epoch: int, layer: int, grown: float) -> list[dict[str, Any]]:
    here: dict[str, Any] = {"split": split, "epoch": epoch, "layer": layer, "read": "input"}
    share = grown * layer / LAYERS * (1 if true else 0)
    if true:
        f1 = 0.3 + 0.66 * share
    elif layer == 0:  # it changes after all
        f1 = 0.3 + 0.1 * grown
    else:  # up to the best epoch and down again
        f1 = 0.3 + 0.12 * max(0.0, 1 - abs(epoch - 12) / 12) + 0.02 * grown
    f1 += shift * (epoch > 0)
    rows = []
    for space, less in (("raw", 0.0), ("tsne", 0.02)):
        for labels in ("task", "distribution", "distribution_mapping"):
            scored = {**here, "measure": "f1", "labels": labels, "space": space}
            rows += [
                {**scored, "value": f1 - less},
                {**scored, "control": "shuffled", "value": 0.2 - less},
                {**scored, "control": "regrouped", "value": 0.25 - less},
            ]
        rows += [
            {**here, "measure": "ari_within_tasks", "labels": labels, "space": space, "value": 0.05 + 0.8 * share}
            for labels in ("distribution", "distribution_mapping")
        ]
    rows += _centred(true, shift, here, grown)
    last = grown * (layer == LAYERS) * true
    for name, control, value in (
        ("output", "none", 0.2 + 0.5 * last + shift),
        ("output", "shuffled", 0.2),
        ("task", "none", 0.4 - 0.2 * last),
    ):
        rows.append({**here, "measure": f"variance_{name}", "control": control, "space": "centred", "value": value})
    task = {**here, "labels": "task", "space": "raw"}
    for measure in ("knn_share", "knn_share_other_distributions"):
        rows.append({**task, "measure": measure, "value": 0.1 + 0.8 * share + shift})
        rows += [{**task, "measure": measure, "control": name, "value": 0.05} for name in ("shuffled", "regrouped")]
    return [
        *rows,
        {**task, "measure": "knn_accuracy", "value": 0.1 + 0.85 * share + shift},
        *(
            {**task, "measure": f"hard_share_{whose}{k}", "control": control, "value": value}
            for k in ("", "_k1", "_k2")
            for whose, own in (("own", 0.1 + 0.7 * share + shift), ("origin", 0.7 - 0.6 * share))
            for control, value in (("none", own), ("shuffled", 0.1))
        ),
    ]


def _centred(true: bool, shift: float, here: dict[str, Any], grown: float) -> list[dict[str, Any]]:
    """What a middle layer holds of the task; in the false world it comes long after the accuracy, and little of it."""
    middle = here["layer"] == LAYERS - 1
    f1 = 0.3 + 0.6 * grown * middle if true else 0.1 + 0.3 * (here["epoch"] > 30)
    share = 0.1 + 0.7 * grown * middle if true else 0.1
    task = {**here, "labels": "task", "space": "centred"}
    return [
        {**task, "measure": "f1", "value": f1 + shift},
        {**task, "measure": "f1", "control": "shuffled", "value": 0.2},
        {**task, "measure": "f1", "control": "regrouped", "value": 0.25},
        {**task, "measure": "knn_share_other_both_by_task", "value": share + shift},
        *(
            {**task, "measure": "knn_share_other_both_by_task", "control": control, "value": 0.05}
            for control in ("shuffled", "regrouped")
        ),
    ]


def _moved(true: bool, shift: float) -> list[dict[str, Any]]:
    """Of every layer but the last: what becomes of answers; the embedding, where it is highest, does not count."""
    rows: list[dict[str, Any]] = []
    for split in ("validation", "test"):
        shared = {"experiment": "transfer", "split": split, "labels": "task", "epoch": 20, "read": "input"}
        rows.append({**shared, "measure": "transfer_kept", "value": 0.9})
        rows.append({**shared, "measure": "transfer_pairs", "value": 300.0})
        rows.append({**shared, "measure": "transfer_instructions", "value": 60.0})
        for layer in range(LAYERS):
            for arm in ("mean", "mean_x2", "mean_x3"):
                here = {**shared, "measure": "transfer_target", "layer": layer, "arm": arm, "space": "centred"}
                best = layer == 2 and arm == "mean_x2"
                turned = 0.95 if layer == 0 else 0.05 + (0.6 + shift if true and best else 0)
                rows.append({**here, "value": 0.85 if layer == 1 and true else turned})
                for control in ("random", "regrouped", "answers", "untrained"):
                    told = 0.9 if layer == 1 and control == "answers" else 0.04  # as in late layers
                    rows.append({**here, "control": control, "value": told})
    return rows


def _surface(split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for control in TIMELESS:
        here = {"split": split, "control": control, "labels": "task"}
        for space in ("raw", "tsne"):
            rows += [
                {**here, "measure": "f1", "space": space, "labels": labels, "value": 0.45}
                for labels in ("task", "distribution", "distribution_mapping")
            ]
            rows += [
                {**here, "measure": "ari_within_tasks", "labels": labels, "space": space, "value": 0.1}
                for labels in ("distribution", "distribution_mapping")
            ]
        values = {"knn_share": 0.4, "knn_share_other_distributions": 0.0, "knn_accuracy": 0.5}
        rows += [{**here, "measure": measure, "space": "raw", "value": value} for measure, value in values.items()]
        values = {"f1": 0.35, "knn_share_other_both_by_task": 0.03}
        rows += [{**here, "measure": measure, "space": "centred", "value": value} for measure, value in values.items()]
    return rows


def _probe(true: bool, shift: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for model in ("LLaMA-7B", "GPT-J-6B"):
        for layer in range(LAYERS + 1):
            here: dict[str, Any] = {"model": model, "split": "all", "layer": layer, "read": "input", "measure": "f1"}
            for space in ("raw", "tsne"):
                f1 = (0.9 if true else 0.5) * (layer + 1) / (LAYERS + 1) + shift
                rows.append({**here, "labels": "task", "space": space, "value": f1})
                mapping = 0.9 if model.startswith("LLaMA") else 0.4
                rows.append({**here, "labels": "distribution_mapping", "space": space, "value": mapping})
                for control in ("untrained", "shuffled", "regrouped", "neutral"):
                    rows.append({**here, "labels": "task", "space": space, "control": control, "value": 0.45})
        for control in SURFACE:
            surface = {"model": model, "split": "all", "measure": "f1", "labels": "task", "space": "raw"}
            rows.append({**surface, "control": control, "value": 0.6})
    return rows


def _pretrain(true: bool, shift: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    levels = {"none": 0.7, "instruction": 0.75, "task_id": 0.9 if true else 0.6, "longer": 0.8}
    for arm, level in levels.items():
        ours = shift if arm == "task_id" else 0.0
        for epoch in range(1, 21):
            value = min(1.0, epoch / 10) * level + ours
            rows.append({"arm": arm, "measure": "accuracy", "split": "test", "epoch": epoch, "value": value})
        for measure in ("area_under_curve", "epochs_to_90"):
            rows.append({"arm": arm, "measure": measure, "split": "validation", "value": 0.8 * level + ours})
    rows.append(
        {"arm": "task_id", "measure": "accuracy", "split": "test", "epoch": 20, "read": "task_token", "value": 0.0}
    )
    return rows


def _align(true: bool, shift: float) -> list[dict[str, Any]]:
    drops = {"direct": 0.21, "head": 0.12, "linear_switch": 0.09, "mlp_switch": 0.08}
    rows: list[dict[str, Any]] = []
    for arm, drop in drops.items():
        value = drop + shift if true else 0.3 - drop - shift  # shifted alike, so that what is between them stays
        rows.append({"arm": arm, "measure": "source_accuracy", "split": "test", "value": 1.0 if true else 0.9})
        rows.append({"arm": arm, "measure": "accuracy_drop", "split": "test", "value": value})
    return rows


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """The long table of some rows."""
    return metrics_frame({"control": "none", **row} for row in rows)
