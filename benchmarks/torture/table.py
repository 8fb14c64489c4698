"""The table of all campaigns, from their results.

python benchmarks/torture/table.py runs/torture --out results/torture.md
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from campaign import ROOT, read

_HEAD = "# Torture\n\nMade by `python benchmarks/torture/table.py`; each row's command goes on where it stopped.\n\n"
MOST = 20  # faults that are listed of a campaign


def rows(folder: Path) -> tuple[list[list[str]], list[str]]:
    """A row for each campaign and seed, and the faults in words."""
    table, faults = [], []
    for file in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        for seed in sorted({line["seed"] for line in lines}):
            own = [line for line in lines if line["seed"] == seed]
            done, each = read(file, seed), own[-1].get("each", 1)
            kinds = Counter(result.what for result in done.values())
            wrong = [result for result in done.values() if result.fault]
            parts = "; ".join(f"{each * number:,} {kind}" for kind, number in sorted(kinds.items()))
            commits = ", ".join(sorted({line["commit"] for line in own}))
            command = f"`python benchmarks/torture/{file.stem}.py --count {len(done)} --seed {seed}`"
            table.append(
                [own[-1].get("title", file.stem), f"{each * len(done):,}", str(len(wrong)), parts, command, commits]
            )
            faults += [
                f"- {file.stem} {one.number}, {one.what}: {' '.join(one.fault.split())[:300]}" for one in wrong[:MOST]
            ]
    return table, faults


def markdown(folder: Path) -> str:
    table, faults = rows(folder)
    header = ["what", "cases", "faults", "of them", "command", "commits"]
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [header, ["---"] * 6, *table]
    ]
    return _HEAD + "\n".join(lines) + "\n" + ("\n## Faults\n" + "\n".join(faults) + "\n" if faults else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the table of all campaigns")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "runs" / "torture")
    parser.add_argument("--out", type=Path, help="file to write (default: the terminal)")
    asked = parser.parse_args()
    text = markdown(asked.folder)
    asked.out.write_text(text, encoding="utf-8") if asked.out else print(text)
