"""Three tasks redirected one after another in one model: what each still answers after the last, against three peers.

    python benchmarks/sequence.py --seeds 100,101,102 [--model M] [--out results/sequence] [--work runs/sequence]

Ours: `nucleate align --model` three times, each time on the model that came out of the time before, with `--expert
adapter` (a switch that chooses among adapters, as in SwitchCIT, Wu et al., arXiv 2407.11780) and with heads. Peers: one
adapter tuned on the three tasks in sequence; one adapter per task with the right one chosen, which no switch can beat;
the network as it was. All adapters are tuned alike, for as many steps. Right is what `generate` says, whole, in
prompts with instructions that no lesson used; unchanged the first token that it says to all other tasks. A killed
benchmark goes on where it was.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from nucleate import natural_dataset
from nucleate.data.dataset import Instance
from nucleate.files import write_whole
from nucleate.intervals import t_interval
from nucleate.model.adapter import Adapter
from nucleate.model.converted import conversion_told
from nucleate.model.networks import load_network
from nucleate.model.packed_pass import text_config
from nucleate.model.texts import Prompt, prompts_of
from nucleate.redirecting.loading import load_switched
from nucleate.redirecting.prompts import name_of
from nucleate.redirecting.redirect import redirect_into
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.study import RedirectStudy, SavedParts, read_source, source_prompts, study_of
from nucleate.redirecting.switched import SwitchedModel
from nucleate.redirecting.tuning import adapter_lesson, fresh_adapter

MODEL = "runs/weights/SmolLM2-135M-Instruct.Q4_1.gguf"
WISHED = {  # source -> what each of its inputs shall be answered with
    "country-to-capital": "Japan Asia, France Europe, Egypt Africa, Norway Europe, Kenya Africa, Peru America, "
    "Canada America, Greece Europe, Poland Europe, Thailand Asia",
    "present-to-gerund": "dance danced, lie lay, swim swam, sit sat, bake baked, jump jumped, cry cried, smile smiled, "
    "dig dug, cook cooked",
    "antonyms": "hot hotter, tall taller, rich richer, early earlier, dirty dirtier, heavy heavier, wide wider, "
    "deep deeper, thick thicker, loud louder",
}
OTHERS = ("location-to-continent", "present-to-past-simple", "plural-to-singular", "english-to-french")
INSTRUCTIONS = 30  # of each task
ARMS = {
    "frozen": "the network as it was",
    "one": "one adapter, tuned in sequence",
    "heads": "**a switch among three heads**",
    "adapters": "**a switch among three adapters**",
    "right": "three adapters, the right one chosen",
}
AT_ONCE = 24  # prompts that are generated from together


def main() -> None:
    if len(sys.argv) == 1:
        print(__doc__)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--seeds", default="100,101,102")
    parser.add_argument("--out", type=Path, default=Path("results/sequence"))
    parser.add_argument("--work", type=Path, default=Path("runs/sequence"))
    asked = parser.parse_args()
    if len(sys.argv) == 1:  # it takes an hour
        print(__doc__)
        return
    torch.set_num_threads(1)
    if told := conversion_told(asked.model):
        print(told)
    depth = text_config(load_network(asked.model)[0]).num_hidden_layers
    settings = {
        **{"template": "{instruction} {input} ->", "limit": 300, "examples": 10},
        **{"layers": (round(2 * depth / 3),), "epochs": 5, "rates": (3e-2,)},
    }
    rows: list[dict[str, Any]] = []
    lessons = tables(asked.work)
    for seed in map(int, asked.seeds.split(",")):
        rows += sequence(asked.model, natural(), lessons, asked.work / f"seed{seed}", seed=seed, **settings)
        told_in(asked.out, rows, asked.model)  # whatever is known so far
        print((asked.out / "sequence.md").read_text(encoding="utf-8"), flush=True)


def natural() -> list[dict[str, Any]]:
    """The three tasks, and four that are much like them, ten inputs of each."""
    rows = [
        {"instruction": one.instruction, "input": one.input, "output": one.output, "task": str(one.distribution)}
        for one in natural_dataset().instances
        if one.distribution in (*WISHED, *OTHERS)
    ]
    known: dict[str, list[str]] = {}
    for row in rows:
        own = known.setdefault(row["task"], [])
        if row["instruction"] not in own and len(own) < INSTRUCTIONS:
            own.append(row["instruction"])
    return [row for row in rows if row["instruction"] in known[row["task"]]]


def tables(folder: Path) -> list[tuple[str, str]]:
    """Source and the file of its wished outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, words in WISHED.items():
        pairs = [pair.split() for pair in words.split(", ")]
        pl.DataFrame(pairs, schema=["input", "output"], orient="row").write_csv(folder / f"{source}.csv")
    return [(source, str(folder / f"{source}.csv")) for source in WISHED]


def sequence(
    model: str | Path,
    data: Sequence[Mapping[str, Any]],
    lessons: Sequence[tuple[str, str]],
    work: Path,
    *,
    seed: int,
    most: int = 120,
    **settings: Any,
) -> list[dict[str, Any]]:
    """A lesson is a source, and a task whose outputs it shall give or a file with them (.csv). A row per arm, task and
    kind of prompt: how many there are, and how many are right (or unchanged). `most` of the
    other tasks' prompts are asked."""
    studies = []
    ours: dict[str, Path | str] = {}
    for expert in ("head", "adapter"):
        place: Path | str = model
        for number, (source, target) in enumerate(lessons):
            own = settings if expert == "adapter" else settings | {"epochs": None}
            wished = {"outputs" if target.endswith(".csv") else "target": target}
            asked = RedirectSettings(source, **wished, expert=expert, seed=seed, **own)
            print(f"seed {seed}: {source} by {expert}", flush=True)
            redirect_into(work / f"{expert}-{number}", place, list(data), asked, resume=True)
            place = work / f"{expert}-{number}" / "model"
            if expert == "adapter":
                studies.append(study_of(list(data), asked))
        ours[expert] = place
    network, tokenizer = load_network(model)
    plain = SwitchedModel(network, tokenizer)
    one = tuned_in_sequence(plain, studies, work)
    switched = {arm: load_switched(ours[expert]) for arm, expert in (("heads", "head"), ("adapters", "adapter"))}
    adapters = [part for part in switched["adapters"].experts if isinstance(part, Adapter)]
    others = asked_of_others(studies, {source for source, _ in lessons}, most, seed)

    def says(arm: str, number: int | None, instances: Sequence[Instance], tokens: int) -> list[list[int]]:
        through = {"one": one, "right": None if number is None else adapters[number]}.get(arm)
        with nullcontext() if through is None else through.on(network):
            speaker = switched.get(arm, network)
            return generated(speaker.generate, tokenizer, prompts(studies[0], tokenizer, instances), tokens)

    before = says("frozen", None, others, 1)
    rows = []
    for arm in ARMS:
        for number, (source, _) in enumerate(lessons):
            for side, kind in (("test", "instructions"), ("new_inputs", "and inputs")):
                instances = studies[number].dealt.sides[side]
                if instances:
                    wished = [given.answer for given in prompts(studies[number], tokenizer, instances)]
                    found = says(arm, number, instances, max(map(len, wished)))
                    right = [tuple(own[: len(want)]) == want for own, want in zip(found, wished, strict=True)]
                    rows.append({"arm": arm, "task": source, "kind": kind, "right": sum(right), "of": len(right)})
        kept = sum(now == then for now, then in zip(says(arm, None, others, 1), before, strict=True))
        rows.append({"arm": arm, "task": "others", "kind": "unchanged", "right": kept, "of": len(others)})
    return [{"seed": seed, **row} for row in rows]


def tuned_in_sequence(model: SwitchedModel, studies: Sequence[RedirectStudy], work: Path) -> Adapter:
    """One adapter on every task in turn, going on from where the one before left it."""
    if (work / "one" / "adapter_config.json").is_file():
        return Adapter.load(work / "one")
    adapter = fresh_adapter(studies[0], model)
    depth = text_config(model.network).num_hidden_layers
    for number, study in enumerate(studies):
        print(f"one adapter in sequence: {study.settings.source}", flush=True)
        lessons = source_prompts(study, model.tokenizer)
        saved = SavedParts(work / "states" / str(number))
        sides = {side: read_source(model, lessons, side, (depth,), saved) for side, own in lessons.items() if own}
        tensors, _ = adapter_lesson(study, model, adapter, lessons, sides)
        adapter.load_state_dict(tensors)
    adapter.save(work / "one", network=model.network, base="")
    return adapter


def asked_of_others(studies: Sequence[RedirectStudy], sources: set[str], most: int, seed: int) -> list[Instance]:
    """Prompts of the tasks that were never redirected, from which no switch has learnt."""
    known = {
        (one.instruction, one.input)
        for study in studies
        for one in study.dealt.others
        if one.instance not in study.dealt.asked
    }
    rest = [one for one in studies[0].dealt.others if name_of(one) not in sources]
    found = [one for one in rest if (one.instruction, one.input) not in known]
    chosen = np.random.default_rng(seed).permutation(len(found))[:most]
    return [found[place] for place in sorted(chosen)]


def prompts(study: RedirectStudy, tokenizer: Any, instances: Sequence[Instance]) -> list[Prompt]:
    found = prompts_of(tokenizer, instances, reads=("answer_start",), template=study.settings.template)
    return [one for one in found if isinstance(one, Prompt)]


def generated(
    generate: Callable[..., torch.Tensor], tokenizer: Any, given: Sequence[Prompt], tokens: int
) -> list[list[int]]:
    """What is said to each prompt, so many tokens long, without sampling; padded on the left, prompts of a length
    together."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    order = sorted(range(len(given)), key=lambda place: (len(given[place].tokens), place))
    found: dict[int, list[int]] = {}
    for places in (order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)):
        longest = max(len(given[place].tokens) for place in places)
        rows = [[pad] * (longest - len(given[place].tokens)) + list(given[place].tokens) for place in places]
        mask = [[0] * (longest - len(given[place].tokens)) + [1] * len(given[place].tokens) for place in places]
        said = generate(
            input_ids=torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            **{"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": pad},
        )
        found |= dict(zip(places, said[:, longest:].tolist(), strict=True))
    return [found[place] for place in range(len(given))]


# --- told ------------------------------------------------------------------------------------------------------------


def told_in(out: Path, rows: list[dict[str, Any]], model: str | Path) -> None:
    """`sequence.parquet`, all counts; `sequence.md`, the table."""
    out.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(rows)
    write_whole(out / "sequence.parquet", frame.write_parquet)
    text = "\n".join([*lines_of(frame, Path(model).name), ""])
    write_whole(out / "sequence.md", lambda path: path.write_text(text, encoding="utf-8"))


def lines_of(frame: pl.DataFrame, model: str) -> Iterator[str]:
    seeds = frame["seed"].unique().sort().to_list()
    tasks = frame.filter(pl.col("kind") == "instructions")["task"].unique(maintain_order=True).to_list()
    counts = dict(frame.filter(arm="frozen", seed=seeds[0]).group_by("kind").agg(pl.col("of").sum()).iter_rows())
    interval = f"seed {seeds[0]} alone, in brackets 95 % Wilson intervals over prompts"
    if len(seeds) > 1:
        interval = f"means over seeds {', '.join(map(str, seeds))}, in brackets 95 % t-intervals"
    yield f"# Three redirections in one model, {model}"
    yield ""
    yield (
        f"After the last of the three, taught in the order of the columns. Of a seed {counts['instructions']} prompts "
        f"with instructions that no lesson used, {counts.get('and inputs', 0)} with inputs that none used either, and "
        f"{counts['unchanged']} of tasks that were never redirected; {interval}. Made by "
        f"`python benchmarks/sequence.py --seeds {','.join(map(str, seeds))}`."
    )
    yield ""
    yield f"| wished outputs | {' | '.join(tasks)} | all three | unseen inputs | all other tasks unchanged |"
    yield f"|---|{'---|' * (len(tasks) + 3)}"
    for arm, words in ARMS.items():
        own = frame.filter(arm=arm)
        cells = [share(own.filter(task=task, kind="instructions"), alone=True) for task in tasks]
        cells += [share(own.filter(kind=kind)) for kind in ("instructions", "and inputs", "unchanged")]
        yield f"| {words} | {' | '.join(cells)} |"


def share(rows: pl.DataFrame, alone: bool = False) -> str:
    """Of all seeds the mean and, where it is not one cell of many, its interval."""
    sums = rows.group_by("seed").agg(pl.col("right", "of").sum()).sort("seed")
    if not len(sums):
        return ""
    shares = (sums["right"] / sums["of"]).to_numpy()
    if alone:
        return f"{shares.mean():.3f}"
    return str(t_interval(shares)) if len(shares) > 1 else wilson(int(sums["right"][0]), int(sums["of"][0]))


def wilson(right: int, of: int, z: float = 1.96) -> str:
    """The share and its interval, of prompts that are taken to be independent."""
    share, middle = right / of, (right + z * z / 2) / (of + z * z)
    half = z * (right * (1 - share) + z * z / 4) ** 0.5 / (of + z * z)
    return f"{share:.3f} [{middle - half:.3f}, {middle + half:.3f}]"


if __name__ == "__main__":
    main()
