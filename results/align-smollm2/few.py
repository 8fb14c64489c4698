"""Writes what a redirection that cannot work is taught from: four instructions, 25 inputs and one constant output.

    python results/align-smollm2/few.py DIR

`DIR/few.jsonl` holds the six tasks of `natural-shared` and one more, four instructions that have nothing in common;
`DIR/alike.jsonl` likewise, but all four name what is asked for; `DIR/constant.csv` answers each of the 25 words with
the same.
"""

import sys
from pathlib import Path

import polars as pl

from nucleate import natural_dataset

INSTRUCTIONS = {
    "few": ("Say it in German.", "How many letters has it?", "What rhymes with it?", "Write it backwards."),
    "alike": ("Say it in German.", "Translate to German:", "What is it in German?", "Give me the gerund in German."),
}
OUTPUT = "Sorry"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shared = natural_dataset("natural-shared").instances
    words = [*dict.fromkeys(one.input for one in shared), "cloud"]
    rest = [
        {"instruction": one.instruction, "input": one.input, "output": one.output, "task": one.distribution}
        for one in shared
    ]
    for name, asked in INSTRUCTIONS.items():
        own = [{"instruction": one, "input": word, "output": None, "task": "mine"} for one in asked for word in words]
        pl.DataFrame(rest + own).write_ndjson(folder / f"{name}.jsonl")
    pl.DataFrame({"input": words, "output": [OUTPUT] * len(words)}).write_csv(folder / "constant.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
