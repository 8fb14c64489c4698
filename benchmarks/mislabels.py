"""How many planted mislabels does a probe find? Precision and recall on the natural tasks that share their inputs.

    python benchmarks/mislabels.py MODEL [SEED]      MODEL: a folder, a GGUF file or a hub id

Two of a hundred prompts, drawn by SEED (default: 1), get another task's label; then `nucleate.probe` reads all of them
and is asked for the most doubtful.
"""

import sys

import numpy as np
import polars as pl

import nucleate

SHARE = 0.02
LOOKS_WRONG = 0.5  # the margin from which on the probe itself says so


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 0
    rng = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    rows = nucleate.natural_dataset("natural-shared").frame().select("instruction", "input", "task").rows(named=True)
    tasks = sorted({row["task"] for row in rows})
    planted = {int(place): rows[place]["task"] for place in rng.permutation(len(rows))[: round(SHARE * len(rows))]}
    for place, true in planted.items():
        rows[place]["task"] = str(rng.choice([task for task in tasks if task != true]))
    found = nucleate.probe(sys.argv[1], rows)
    doubted = found.coordinates.sort("margin", descending=True, nulls_last=True)
    print(found.verdict)
    print(f"{len(planted)} of {len(rows)} prompts mislabelled; read in layer {found.best_layer}")
    tell(f"the {len(planted)} most doubtful", doubted.head(len(planted)), planted)
    tell(f"all with a margin above {LOOKS_WRONG}", doubted.filter(pl.col("margin") > LOOKS_WRONG), planted)
    tell("the ten most doubtful of each task", doubted.group_by("task").head(10), planted)
    listed = found.suspicious.filter(pl.col("instance").is_in(list(planted)))
    named = sum(planted[row["instance"]] == row["nearest"] for row in listed.iter_rows(named=True))
    print(f"of {len(listed)} that are listed, the true task is named for {named}")
    return 0


def tell(what: str, doubted: pl.DataFrame, planted: dict[int, str]) -> None:
    hits = sum(instance in planted for instance in doubted["instance"])
    shown = f"precision {hits / max(len(doubted), 1):.2f}, recall {hits / len(planted):.2f}"
    print(f"{what}: {shown} ({hits} of {len(doubted)})")


if __name__ == "__main__":
    sys.exit(main())
