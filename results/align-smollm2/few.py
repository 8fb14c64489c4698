"""Writes what a redirection that cannot work is taught from: four instructions, 25 inputs and one constant output.

    python results/align-smollm2/few.py DIR

`DIR/few.jsonl` holds the six tasks of `natural-shared` and one more, German asked for in four ways that are much like
theirs; `DIR/constant.csv` answers each of its 25 words with the same.
"""

import sys
from pathlib import Path

import polars as pl

from nucleate import natural_dataset

INSTRUCTIONS = ("Say it in German.", "Translate to German:", "What is it in German?", "Give me the gerund in German.")
OUTPUT = "Sorry"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shared = natural_dataset("natural-shared").instances
    words = [*dict.fromkeys(one.input for one in shared), "cloud"]
    rows = [
        {"instruction": one.instruction, "input": one.input, "output": one.output, "task": one.distribution}
        for one in shared
    ]
    rows += [
        {"instruction": one, "input": word, "output": None, "task": "english-to-german"}
        for one in INSTRUCTIONS
        for word in words
    ]
    pl.DataFrame(rows).write_ndjson(folder / "few.jsonl")
    pl.DataFrame({"input": words, "output": [OUTPUT] * len(words)}).write_csv(folder / "constant.csv")
    print(f"{len(words)} inputs, {len(rows)} prompts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
