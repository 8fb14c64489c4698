"""In which space do neighbours tell labels apart best, and does the last token or the mean over the prompt's tokens?

    python benchmarks/spaces.py --models MODEL … --sets SET … --out FOLDER

SET is a file of prompts or one of natural, natural-shared, natural-sentences; of each 2,400 prompts at most. Every
tenth of the depth is looked at. In every
space the quantity is that of `nucleate probe`: the share of a held-out prompt's ten nearest prompts that have its
label, told on test in the layer that is best on validation. What counts is by how much it exceeds the hardest of its
controls, which have the same choice of space and layer: the network with fresh weights, the n-grams of the prompt and
of the instruction. Spaces: raw; standardised (each dimension by the mean and deviation over the prompts among which
neighbours are sought); cosine (states of length 1); where inputs repeat, centred (less the input's mean state there).

The rule: neighbours stay raw states of the last token unless another choice exceeds the controls by 0.02 more in the
mean over all models and sets, and in two thirds of them. A control is taken in the space, and at the token, where it is
the hardest. (The first rule, fixed before the first run, took each control in the space of the states that it is held
against. Standardising would have won by it, not since states told labels better but since it blunts n-grams, whose
rarest features it weighs most: docs/notebook.md.) Sets that stand in FOLDER/spaces.csv are not read again.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from asking import parser_of
from plain_states import plain_states

import nucleate
from nucleate.data.prompts import read_prompts
from nucleate.measures.baselines import InputMeans, surface_features
from nucleate.measures.shares import TaskDeals, neighbour_shares
from nucleate.model.networks import load_network, untrained
from nucleate.probing.halves import Side
from nucleate.probing.separation import mean_interval
from nucleate.probing.settings import ProbeSettings
from nucleate.probing.study import ProbeStudy

LIMIT = 2400
SPACES = ("raw", "standardised", "cosine", "centred")
NEED, PART = 0.02, 2 / 3
COLUMNS = ("model", "set", "read", "space", "layer", "share", "control", "control_share", "lead", "low", "high")
Row = dict[str, Any]


def main() -> int:
    asked = parser_of(__doc__).parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    table = asked.out / "spaces.csv"
    rows: list[Row] = pl.read_csv(table).rows(named=True) if table.is_file() else []
    for model in asked.models:
        network, tokenizer = load_network(model)
        fresh, name = untrained(network, seed=1), Path(model).stem.split(".")[0]
        for one in asked.sets:
            if any(row["model"] == name and row["set"] == Path(one).stem for row in rows):
                continue
            began = time.perf_counter()
            rows += measured(network, fresh, tokenizer, one, name=name)
            pl.DataFrame([{name: row[name] for name in COLUMNS} for row in rows]).write_csv(table, float_precision=4)
            print(f"{name}, {one}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    verdict = json.dumps(decision(pl.read_csv(table)), indent=1)
    (asked.out / "spaces.json").write_text(verdict + "\n", encoding="utf-8")
    print(verdict)
    return 0


def measured(network: Any, fresh: Any, tokenizer: Any, data: str, *, name: str) -> Iterator[Row]:
    """A row for every token that is read and every space."""
    prompts = read_prompts(data, limit=LIMIT)
    study = ProbeStudy.of(prompts, ProbeSettings())
    pairs = [(one.instruction, one.input) for one in prompts.instances]
    texts = [" ".join(pair).strip() for pair in pairs]
    depth = network.config.get_text_config().num_hidden_layers
    layers = list(range(0, depth + 1, max(1, depth // 10)))
    states = {
        control: nucleate.read_states(one, tokenizer, pairs, layers=layers)[None]
        if prompts.has_inputs
        else np.stack([*plain_states(one, tokenizer, texts, layers).values()])
        for control, one in {"": network, "untrained": fresh}.items()
    }  # (read, layer, prompt, width)
    columns = {"n-grams of the prompt": texts}
    if prompts.has_inputs:
        columns["n-grams of the instruction"] = [one.instruction for one in prompts.instances]
    known = study.design.sides[1].members
    grams = {
        what: surface_features([column[place] for place in known], column)[None] for what, column in columns.items()
    }
    reads = ("last",) if prompts.has_inputs else ("last", "mean")
    for number, read in enumerate(reads):
        points = {control: one[number] for control, one in states.items()} | grams
        for space in SPACES if prompts.has_inputs else SPACES[:3]:
            told = {control: best_share(study, one, space) for control, one in points.items()}
            (place, own), others = told.pop(""), {control: shares for control, (_, shares) in told.items()}
            hardest = max(others, key=lambda control: np.nanmean(others[control]))
            sure = mean_interval(own - others[hardest], study.design.unit, seed=1)
            yield {
                "model": name,
                "set": Path(data).stem,
                "read": read,
                "space": space,
                "layer": layers[place],
                "share": float(np.nanmean(own)),
                "control": hardest,
                "control_share": float(np.nanmean(others[hardest])),
                "lead": float(np.nanmean(own - others[hardest])),
                "low": sure.low if sure else None,
                "high": sure.high if sure else None,
            }


def best_share(study: ProbeStudy, states: np.ndarray, space: str) -> tuple[int, np.ndarray]:
    """Of states (layer, prompt, feature) the layer best on validation, and (prompt,) the shares there on test."""
    _, choosing, telling = study.design.sides
    chosen = [np.nanmean(shares_of(study, one, space, choosing)) for one in states]
    best = int(np.argmax(chosen))
    shares = np.full(states.shape[1], np.nan)
    shares[telling.members] = shares_of(study, states[best], space, telling)
    return best, shares


def shares_of(study: ProbeStudy, states: np.ndarray, space: str, side: Side) -> np.ndarray:
    """(member,) the share of neighbours with its label."""
    labels, search = study.design.labels, study.design.search
    here, there = labels[side.members], labels[side.against]
    queries, candidates = moved(states, space, side, labels.input, labels.task)
    deals = {"none": TaskDeals.of(here, there)}
    nobody = np.full(len(here), -1)
    (found,) = neighbour_shares([(queries, here)], candidates, there, deals=[deals], origin=[nobody])
    return found.own[search]


def moved(
    states: np.ndarray, space: str, side: Side, inputs: np.ndarray, tasks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The states of a side, and those among which their neighbours are, in a space."""
    here, there = states[side.members], states[side.against]
    if space == "standardised":
        mean, deviation = there.mean(0), there.std(0)
        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6 * np.abs(mean))
        return (here - mean) * scale, (there - mean) * scale
    if space == "cosine":
        return tuple(one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-30) for one in (here, there))
    if space == "centred":
        means = InputMeans.of(there, inputs[side.against], tasks[side.against])
        return tuple(
            means.taken_from(one, inputs[some])[0] for one, some in ((here, side.members), (there, side.against))
        )
    return here, there


def decision(frame: pl.DataFrame) -> Mapping[str, Any]:
    """By how much each choice exceeds the controls more than raw states of the last token do, and what follows."""
    hardest = pl.col("control_share").max().over("model", "set")
    leads = frame.with_columns(lead=pl.col("share") - hardest)
    raw = leads.filter(space="raw", read="last").select("model", "set", raw="lead")
    beside = leads.join(raw, on=["model", "set"]).with_columns(ahead=pl.col("lead") - pl.col("raw"))
    found: dict[str, Any] = {}
    for (read, space), rows in beside.group_by("read", "space", maintain_order=True):
        if (read, space) != ("last", "raw"):
            ahead = rows["ahead"].to_numpy()
            facts = {"sets": len(ahead), "ahead": round(float(ahead.mean()), 4), "in": float((ahead > 0).mean())}
            found[f"{read}, {space}"] = facts
    better = [name for name, one in found.items() if one["ahead"] >= NEED and one["in"] >= PART]
    return {"over last, raw": found, "taken": max(better, key=lambda one: found[one]["ahead"], default="last, raw")}


if __name__ == "__main__":
    sys.exit(main())
