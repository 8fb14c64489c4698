"""How many planted mislabels does a probe find, and is what it says of its own list to be believed?

    python benchmarks/mislabels.py --models MODEL … --sets SET … --out FOLDER

SET is a file of prompts or one of the natural sets. Of each, at three sizes (all prompts, a half, a quarter of them),
two labels of a hundred are changed at random, in five ways; then linear probes read every layer as in `nucleate probe`
and the layer that is read best, on labels as they are then, lists its doubts. Told: how many of the changed labels
stand among the as many most doubtful prompts (precision and recall at once), the precision of all that "look
mislabelled" (a margin above 0.5) and the share of the changed ones among these; and the share that the
probe says it finds, from labels that it changes once more itself. Mean over the five ways, lowest and highest.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from asking import parser_of
from plain_states import plain_states

from nucleate.data.prompts import read_prompts
from nucleate.model.networks import load_network
from nucleate.probing.layers import LayerMeasures, read_labels
from nucleate.probing.separation import MISLABELLED, doubts, planted_found
from nucleate.probing.settings import ProbeSettings
from nucleate.probing.study import ProbeStudy

SHARE, WAYS, PARTS = 0.02, 5, (1, 2, 4)


def main() -> int:
    asked = parser_of(__doc__).parse_args()
    rows: list[dict[str, Any]] = []
    for model in asked.models:
        network, tokenizer = load_network(model)
        for data in asked.sets:
            instances = read_prompts(data).instances
            texts = [f"{one.instruction} {one.input}".strip() for one in instances]
            states = plain_states(
                network, tokenizer, texts, range(network.config.get_text_config().num_hidden_layers + 1)
            )
            place = {(one.instruction, one.input, one.task): number for number, one in enumerate(instances)}
            for part in PARTS:
                some = read_prompts(data, limit=len(instances) // part).instances
                rows_there = [place[one.instruction, one.input, one.task] for one in some]
                told = [looked(some, states["last"][:, rows_there], way) for way in range(WAYS)]
                rows.append(
                    {
                        "model": Path(model).stem.split(".")[0],
                        "set": Path(data).stem,
                        "prompts": len(some),
                        **summed(told),
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_csv(asked.out / "mislabels.csv")
    return 0


def looked(instances: Any, states: np.ndarray, way: int) -> dict[str, float]:
    """What becomes of one way to change labels."""
    rng = np.random.default_rng([way, len(instances)])
    tasks = sorted({one.task for one in instances})
    planted = rng.permutation(len(instances))[: max(1, round(SHARE * len(instances)))]
    both = any(one.input for one in instances)
    rows = [
        {"instruction": one.instruction, "input": one.input, "task": one.task}
        if both
        else {"prompt": one.instruction, "task": one.task}
        for one in instances
    ]
    for place in planted:
        rows[place]["task"] = str(rng.choice([task for task in tasks if task != rows[place]["task"]]))
    study = ProbeStudy.of(read_prompts(rows), ProbeSettings())
    found, layers = LayerMeasures(), range(len(states))
    read_labels(found, study.design, states, layers)
    best = states[found.best_readable_layer]
    texts = [f"{one.instruction} {one.input}" for one in instances]
    prompt = np.unique(texts, return_inverse=True)[1]
    labelled = best, study.design.labels.task, prompt
    margin = np.nan_to_num(doubts(*labelled, seed=study.design.seed_of("doubts")).margin, nan=-np.inf)
    first, flagged = np.argsort(-margin, kind="stable")[: len(planted)], np.flatnonzero(margin > MISLABELLED)
    return {
        "first": np.isin(first, planted).mean(),
        "flagged": np.isin(flagged, planted).mean() if len(flagged) else np.nan,
        "found": np.isin(planted, flagged).mean(),
        "says": planted_found(*labelled, seed=study.design.seed_of("planted")),
        "readable": float(np.nanmean(found.named[found.best_readable_layer])),
    }


def summed(told: list[dict[str, float]]) -> dict[str, str]:
    """mean (lowest to highest)"""
    values = {name: np.array([one[name] for one in told]) for name in told[0]}
    return {name: f"{np.nanmean(v):.2f} ({np.nanmin(v):.2f}-{np.nanmax(v):.2f})" for name, v in values.items()}


if __name__ == "__main__":
    sys.exit(main())
