"""The verdicts of probes beside a computation with transformers and scikit-learn alone.

    python benchmarks/independent.py --models MODEL … --sets SET … --runs DIR --out FOLDER

Every model is probed with every set (`nucleate probe MODEL SET --out DIR/NAME --resume`). Of a probe only the prompts,
their labels and the halves are taken then; states, neighbours, folds, linear probes, the choice of layers and penalty
are made anew, by the definitions in docs/tables.md: at the probe's layer, and at a layer of its own choice. Writes
FOLDER/README.md and FOLDER/answers.json, after every probe; what stands there is not computed again. Exits with 1 where
a number at the probe's layer differs by more than 0.02.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from asking import parser_of
from plain_states import plain_states
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from nucleate.model.networks import load_network
from nucleate.probing.bars import answer
from nucleate.probing.result import load_probe

NEAREST, FOLDS, TOLERANCE = 10, 5, 0.02
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # times the number of prompts that are fitted to
READINGS = ("readable", "clustered")


class Table(NamedTuple):
    """A probe's prompts, as arrays."""

    text: list[str]
    task: np.ndarray
    instruction: np.ndarray
    input: np.ndarray
    choosing: np.ndarray  # places
    telling: np.ndarray
    other_inputs: bool  # neighbours, and those who are fitted to, must have another input


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="so many prompts of a set at most")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "answers.json"
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for model in asked.models:
        for data in asked.sets:
            name = f"{Path(model).stem.split('.')[0]}, {Path(data).stem}"
            if name in told:
                continue
            run = asked.runs / name.replace(", ", "-").lower()
            began = time.perf_counter()
            command = [sys.executable, "-m", "nucleate.cli", "probe", model, data, "--out", str(run), "--resume"]
            command += ["--limit", str(asked.limit)] if asked.limit else []
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            told[name] = beside(run, model)
            file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            (asked.out / "README.md").write_text(page(told), encoding="utf-8")
            print(
                f"{name}: {told[name]['sentence']} ({time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True
            )
    print(f"the largest difference: {apart(told):.3f}")
    return int(apart(told) > TOLERANCE)


def apart(told: dict[str, Any], key: str = "independent") -> float:
    """The largest difference between the two computations."""
    return max(abs(one[name]["value"] - one[name][key]) for one in told.values() for name in READINGS)


def beside(run: Path, model: str) -> dict[str, Any]:
    """What a probe says, and what the same comes to by other hands."""
    result = load_probe(run)
    (told,) = answer(result.metrics, result.tasks, result.verdicts)["models"].values()
    told["tasks"] = len(told["tasks"])
    network, tokenizer = load_network(model)
    table = table_of(run)
    layers = list(range(network.config.get_text_config().num_hidden_layers + 1))
    states = plain_states(network, tokenizer, table.text, layers)["last"]
    told["prompts"] = len(table.text)
    for reading, measure in (("readable", readable), ("clustered", clustered)):
        layer, own, value = measure(states, table, told[reading]["layer"])
        told[reading] |= {"independent": value, "independent_own": own, "independent_layer": layer}
    return told


def page(told: dict[str, Any]) -> str:
    """The table, as Markdown."""
    lines = [
        "# Real models, labelled sets",
        "",
        "Shares of held-out prompts with their 95 % intervals, at the layer that was chosen on other prompts: "
        "as `nucleate probe` tells it, as transformers and scikit-learn make it at the same layer and at the one that "
        "they choose (`benchmarks/independent.py`), beside the hardest control at its own layer. At the same layer the "
        f"two differ by {apart(told):.3f} at most: each deals instructions and inputs in five folds at random, in its "
        f"own way. Where each chooses its layer they differ by {apart(told, 'independent_own'):.3f} at most: layers "
        "that are about equal where they are chosen need not be where they are told. `natural…` are the sets that "
        "come with nucleate; the others are out of wheels of PyPI (`benchmarks/fetch_sets.py`, which says whose).",
        "",
        "| model, set | prompts | tasks | reading | nucleate | layer | scikit-learn there | at its own choice | layer "
        "| hardest control |",
        "|" + "---|" * 10,
    ]
    for name, one in told.items():
        for reading in READINGS:
            own = one[reading]
            first = (name, f"{one['prompts']:,}", one["tasks"]) if reading == READINGS[0] else ("", "", "")
            numbers = f"{own['value']:.3f} ({own['low']:.3f}–{own['high']:.3f})", own["layer"]
            theirs = f"{own['independent']:.3f}", f"{own['independent_own']:.3f}", own["independent_layer"]
            row = (*first, reading, *numbers, *theirs, f"{own['control']} {own['control_value']:.3f}")
            lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    lines += ["", *(f"- **{name}**: {one['sentence']}" for name, one in told.items())]
    return "\n".join(lines) + "\n"


def table_of(run: Path) -> Table:
    """The prompts of a run, in order."""
    dataset = pl.read_parquet(run / "data" / "dataset.parquet")
    halves = pl.read_parquet(run / "coordinates.parquet").select("instance", half="split")
    rows = dataset.join(halves, on="instance", how="inner").sort("instance")
    text = [f"{one['instruction']} {one['input']}".strip() for one in rows.iter_rows(named=True)]
    half = rows["half"].to_numpy()
    measures = set(pl.read_parquet(run / "metrics.parquet")["measure"])
    columns = [rows[name].cast(pl.Categorical).to_physical().to_numpy() for name in ("task", "instruction", "input")]
    return Table(
        text,
        *columns,
        *(np.flatnonzero(half == one) for one in ("validation", "test")),
        "knn_share_other_inputs" in measures,
    )


def readable(states: np.ndarray, table: Table, asked: int) -> tuple[int, float, float]:
    """The layer, and the share of the telling half whose task is named, there and at the layer that is asked for."""
    chosen = np.array([[named(one, table, folds_inside(table), penalty) for penalty in PENALTIES] for one in states])
    layer = int(chosen.max(1).argmax())
    told = []
    for place in (layer, asked):
        penalty = PENALTIES[len(PENALTIES) - 1 - int(chosen[place, ::-1].argmax())]
        told.append(named(states[place], table, folds_across(table), penalty))
    return layer, told[0], told[1]


def named(states: np.ndarray, table: Table, folds: Iterator[tuple[np.ndarray, np.ndarray]], penalty: float) -> float:
    """The share that a ridge classifier names, of all that the folds ask it for."""
    right = []
    for fitted, asked in folds:
        scaler = StandardScaler().fit(states[fitted])
        probe = RidgeClassifier(alpha=penalty * len(fitted)).fit(scaler.transform(states[fitted]), table.task[fitted])
        right.append(probe.predict(scaler.transform(states[asked])) == table.task[asked])
    return float(np.concatenate(right).mean())


def folds_inside(table: Table) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Five folds of the instructions of the choosing half, and of its inputs."""
    some = table.choosing
    by_input = groups_of(table.input[some]) if table.other_inputs else [None] * FOLDS
    for own, given in zip(groups_of(table.instruction[some]), by_input, strict=True):
        asked, apart = np.isin(table.instruction[some], own), ~np.isin(table.instruction[some], own)
        if given is not None:
            asked, apart = asked & np.isin(table.input[some], given), apart & ~np.isin(table.input[some], given)
        yield some[apart], some[asked]


def folds_across(table: Table) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The telling half from the choosing one; where inputs repeat a fifth of them at a time."""
    if not table.other_inputs:
        yield table.choosing, table.telling
        return
    for given in groups_of(table.input):
        fitted, asked = (
            some[np.isin(table.input[some], given) == there]
            for some, there in ((table.choosing, False), (table.telling, True))
        )
        yield fitted, asked


def groups_of(codes: np.ndarray) -> list[np.ndarray]:
    """The codes in five parts."""
    names = np.unique(codes)
    return [names[some] for _, some in GroupKFold(FOLDS).split(names, groups=names)]


def clustered(states: np.ndarray, table: Table, asked: int) -> tuple[int, float, float]:
    """The layer, and the share of the telling half's nearest prompts that have its task, there and at the layer that is
    asked for."""
    chosen = [share(one, table, table.choosing, table.choosing) for one in states]
    layer = int(np.argmax(chosen))
    own, there = (share(states[place], table, table.telling, table.choosing) for place in (layer, asked))
    return layer, own, there


def share(states: np.ndarray, table: Table, asked: np.ndarray, known: np.ndarray) -> float:
    """The mean over those whose task offers a neighbour at all."""
    order = (
        NearestNeighbors(n_neighbors=len(known), algorithm="brute")
        .fit(states[known])
        .kneighbors(states[asked], return_distance=False)
    )
    shares = []
    for place, row in zip(asked, known[order], strict=True):
        allowed = table.instruction[row] != table.instruction[place]
        if table.other_inputs:
            allowed &= table.input[row] != table.input[place]
        near = table.task[row[allowed]] == table.task[place]
        if near.any():
            shares.append(near[:NEAREST].mean())
    return float(np.mean(shares))


if __name__ == "__main__":
    sys.exit(main())
