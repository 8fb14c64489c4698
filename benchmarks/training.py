"""Training against the ways it is usually written, and against the machine's limit; one thread, alternating in one run.

    python benchmarks/training.py                          every line at sizes small and paper (some four minutes)
    python benchmarks/training.py --quick --only step      one line with few rounds
    python benchmarks/training.py --reach --out FOLDER     time to 30 % validation accuracy: about an hour, resumable

step     one optimiser step on thirteen whole instructions (65 rows), against the same rows right-padded, as Hugging
         Face's Trainer with a padding collator feeds them
rows     an optimiser step on 65 rows drawn one by one, ours without padding, against the same rows padded
flops    useful FLOP/s of our step (tokens that are fed once, no padding) over the machine's rate in matrix products of
         the same precision, as a share; float32 and bfloat16
read     reading states, answers and losses, over a bare forward pass of the same packed batches

Both sides have the same network, dropout, optimiser, clipping and threads. Before anything is timed, loss and gradients
of both are compared without dropout; exit code 1 where they differ.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from peers import alternate, clock, padded_batches, padded_step, quartiles, report, seconds, set_threads


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--size", choices=("small", "paper"), help="one size instead of both")
    parser.add_argument("--only", choices=("step", "rows", "flops", "read"), help="one line instead of all")
    parser.add_argument("--threads", type=int, default=1, help="for both sides")
    parser.add_argument("--reach", action="store_true", help="time to 30 %% validation accuracy at size small instead")
    parser.add_argument("--out", type=Path, help="folder in which --reach keeps its state")
    return parser.parse_args()


OPTIONS = arguments()
set_threads(OPTIONS.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from nucleate.config import Config, configure  # noqa: E402
from nucleate.data.dataset import Instance  # noqa: E402
from nucleate.data.synthetic import generate  # noqa: E402
from nucleate.model.networks import gpt2, word_tokenizer  # noqa: E402
from nucleate.model.packed_pass import batch_loss, evaluate  # noqa: E402
from nucleate.model.prefix_tree import Group, PackedBatch, pack  # noqa: E402
from nucleate.model.states import instances_as_groups, read_groups  # noqa: E402
from nucleate.model.training import (  # noqa: E402
    cosine,
    load_state,
    make_optimizer,
    order,
    save_state,
    stream,
    train,
)

BATCH, SEED, GOAL = 65, 100, 0.3
STEPS = {"small": 6, "paper": 3}  # in one call of either side
ROUNDS = {"small": 9, "paper": 3}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Study:
    size: str
    config: Config
    vocabulary: int
    positions: int
    pad: int
    train: tuple[Group, ...]
    validation: tuple[Group, ...]
    answers: np.ndarray  # (instance of validation,) token ids

    def network(self, **changes: float) -> torch.nn.Module:
        settings = asdict(self.config.model) | changes
        del settings["architecture"]  # GPT-2's, at every size
        return gpt2(vocabulary=self.vocabulary, positions=self.positions, pad=self.pad, seed=SEED, **settings)

    def sample(self, packing: str) -> list[Group]:
        """What a few steps train on: whole instructions, or single instances. Evenly spaced by length, so that batches
        of them are padded as much as an epoch's."""
        units: list[Group] = list(self.train)
        count = STEPS[self.size] * BATCH // 5
        if packing == "rows":
            units, count = [g.only([b]) for g in units for b in range(len(g.branches))], STEPS[self.size] * BATCH
        units.sort(key=lambda g: g.longest)
        return [units[i] for i in np.linspace(0, len(units) - 1, count).round().astype(int)]


def main() -> None:
    if OPTIONS.reach:
        if OPTIONS.out is None:
            sys.exit("--reach needs --out FOLDER: it takes about an hour and goes on where it was stopped")
        reach(study_of("small"), OPTIONS.out)
        return
    print(f"{OPTIONS.threads} thread(s), torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    lines: dict[str, Callable[[Study], bool]] = {
        "step": lambda study: against_padded(study, "tree"),
        "rows": lambda study: against_padded(study, "rows"),
        "flops": flops,
        "read": read,
    }
    fine = True
    for size in [OPTIONS.size] if OPTIONS.size else ["small", "paper"]:
        study = study_of(size)
        for name, line in lines.items():
            if OPTIONS.only in (None, name):
                fine &= line(study)
    sys.exit(0 if fine else 1)


def study_of(size: str) -> Study:
    config = configure(size)
    dataset = generate(config.data, seed=config.seed)
    tokenizer = word_tokenizer([*dataset.vocabulary["instruction"], *dataset.vocabulary["task"]])
    groups: dict[str, tuple[Group, ...]] = {}
    members: dict[str, list[Instance]] = {}
    for split in ("train", "validation"):
        instances = list(dataset.select(split))
        found, places = instances_as_groups(tokenizer, instances)
        groups[split], members[split] = tuple(found), [instances[place] for place in places]
    answers = tokenizer.convert_tokens_to_ids([str(i.output) for i in members["validation"]])
    longest = max(g.longest for found in groups.values() for g in found) + 1  # the peer feeds the answer too
    return Study(
        size, config, len(tokenizer), longest, int(tokenizer.pad_token_id), **groups, answers=np.array(answers)
    )


def against_padded(study: Study, packing: str) -> bool:
    groups = study.sample(packing)
    branches = [len(g.branches) for g in groups]
    gap, gradient_gap = difference(study, groups[:13] if packing == "tree" else groups[:BATCH])
    model, epochs = study.network().train(), iter(range(1, 1000))
    optimizer = make_optimizer(model, learning_rate=1e-4)
    fed = []

    def theirs() -> None:
        epoch = next(epochs)  # the same batches as ours in the epoch of this number
        numbers = order(branches, packing=packing, batch=BATCH, seed=SEED, epoch=epoch)
        first = np.cumsum([0, *branches])
        rows = [[i for k in chosen for i in range(first[k], first[k + 1])] for chosen in numbers]
        for batch in padded_batches(groups, study.pad, order=rows):
            padded_step(model, optimizer, batch)
            fed.append(batch["input_ids"].numel())

    ours = training(study, groups, packing, "float32")
    rounds = 3 if OPTIONS.quick else ROUNDS[study.size]
    ratios = alternate(lambda: next(ours), theirs, rounds=rounds)
    steps = STEPS[study.size]
    per_step = ratios._replace(ours_seconds=ratios.ours_seconds / steps, theirs_seconds=ratios.theirs_seconds / steps)
    facts = {
        "tokens_fed": f"{sum(g.size for g in groups) / steps:.0f} / {np.mean(fed):.0f}",
        "loss_differs_by": gap,
        "gradients_by": gradient_gap,
    }
    report(f"{'step' if packing == 'tree' else 'rows'}, {study.size}", per_step, **facts)
    return gap < 1e-6 and gradient_gap < 1e-4


def training(study: Study, groups: list[Group], packing: str, dtype: str) -> Iterator[object]:
    """The product's own loop over a few steps; every `next` is one pass."""
    model = study.network()
    optimizer = make_optimizer(model, learning_rate=1e-4)
    return train(
        model, optimizer, groups, epochs=1000, batch=BATCH, learning_rate=1e-4, packing=packing, seed=SEED, dtype=dtype
    )


def difference(study: Study, groups: list[Group]) -> tuple[float, float]:
    """Relative differences of loss and gradients, ours to the padded rows', without dropout."""
    model = study.network(dropout=0.0).train()
    ours = batch_loss(model, pack(groups))
    ours.backward()
    mine = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    [batch] = padded_batches(groups, study.pad, batch=10**6)
    theirs = model(**batch, use_cache=False).loss
    theirs.backward()
    gaps = [((mine[n] - p.grad).norm() / p.grad.norm()).item() for n, p in model.named_parameters()]
    return abs(ours.item() / theirs.item() - 1), max(gaps)


def flops(study: Study) -> bool:
    groups = study.sample("tree")
    width, depth = study.config.model.width, study.config.model.layers
    matrices = depth * (4 * width**2 + 2 * width * study.config.model.feed_forward) + width * study.vocabulary
    work = 6 * matrices * sum(g.size for g in groups)
    seen = sum(pairs_of(g) for g in groups)
    work += 12 * width * depth * seen  # queries by keys, shares by values; thrice for forward and backward
    for name, dtype in DTYPES.items():
        ours = training(study, groups, "tree", name)
        next(ours)
        shares, rates = [], []
        for _ in range(3 if OPTIONS.quick else 9):
            before = matrix_rate(dtype)
            took = seconds(lambda ours=ours: next(ours))
            rates.append((before + matrix_rate(dtype)) / 2)
            shares.append(work / took / rates[-1])
        low, median, high = quartiles(shares)
        print(
            f"flops, {study.size}, {name}: {median:.1%} ({low:.1%}-{high:.1%}) of "
            f"{np.median(rates) / 1e9:.0f} GFLOP/s, {work / STEPS[study.size] / 1e9:.2f} GFLOP a step",
            flush=True,
        )
    return True


def pairs_of(group: Group) -> int:
    """Of a token and one that it sees."""
    stem, own = len(group.prefix), [len(group.fed(b)) for b in range(len(group.branches))]
    return stem * (stem + 1) // 2 + sum(fed * stem + fed * (fed + 1) // 2 for fed in own)


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a product of square matrices."""
    side = 1024
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    return 2 * side**3 / min(seconds(lambda: a @ b) for _ in range(3))


def read(study: Study) -> bool:
    model = study.network().eval()
    budget = 2048
    groups = study.train[: 600 if study.size == "small" else 240]
    batches: list[PackedBatch] = []
    parts: list[Group] = []
    for group in [*groups, None]:
        if parts and (group is None or sum(g.size for g in parts) + group.size > budget):
            batches.append(pack(parts))
            parts = []
        if group is not None:
            parts.append(group)

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                evaluate(model, batch)

    ratios = alternate(
        bare, lambda: read_groups(model, groups, tokens_per_batch=budget), rounds=3 if OPTIONS.quick else 9
    )
    print(
        f"read, {study.size}: {ratios.median:.3f} ({ratios.low:.3f}-{ratios.high:.3f}) of a bare packed forward, "
        f"{clock(ratios.theirs_seconds)} for {sum(len(g.branches) for g in groups)} instances",
        flush=True,
    )
    return True


def reach(study: Study, folder: Path) -> None:
    """Train each side until it answers 30 % of the validation instances, counting time inside optimiser steps."""
    ours, theirs = reach_one(study, "ours", folder), reach_one(study, "padded", folder)
    if ours is None or theirs is None:
        print("one side did not get there")
    else:
        print(f"reach, small: {theirs / ours:.1f}x, ours {clock(ours)}, padded {clock(theirs)}")


def reach_one(study: Study, side: str, folder: Path) -> float | None:
    model, settings = study.network(), study.config.training
    optimizer = make_optimizer(model, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)
    state, done = folder / f"{side}.safetensors", {"epoch": 0, "seconds": 0.0, "accuracy": 0.0}
    if state.exists():
        done = load_state(state, model, optimizer)
    if done["accuracy"] >= GOAL:
        return done["seconds"]
    epochs = ours_by_epoch if side == "ours" else padded_by_epoch
    for number, took in epochs(study, model, optimizer, done["epoch"] + 1):
        answers = read_groups(model, study.validation, layers=[]).predicted
        accuracy = float((answers == study.answers).mean())
        done = {"epoch": number, "seconds": done["seconds"] + took, "accuracy": accuracy}
        save_state(state, model, optimizer, **done)
        with (folder / f"{side}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(done) + "\n")
        print(f"{side}: epoch {number}, {done['seconds']:.0f} s, validation {accuracy:.3f}", flush=True)
        if accuracy >= GOAL:
            return done["seconds"]
    return None


def ours_by_epoch(
    study: Study, model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int
) -> Iterator[tuple[int, float]]:
    settings = study.config.training
    for epoch in train(
        model,
        optimizer,
        study.train,
        epochs=settings.epochs,
        first_epoch=first,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        max_gradient_norm=settings.max_gradient_norm,
        packing="tree",
        seed=SEED,
    ):
        yield epoch.number, epoch.seconds


def padded_by_epoch(
    study: Study, model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int
) -> Iterator[tuple[int, float]]:
    settings, branches = study.config.training, [len(g.branches) for g in study.train]
    for epoch in range(first, settings.epochs + 1):
        rows = order(branches, packing="rows", batch=settings.batch, seed=SEED, epoch=epoch)
        torch.manual_seed(stream(SEED, "dropout", epoch))
        model.train()
        began = time.perf_counter()
        for step, batch in enumerate(padded_batches(study.train, study.pad, order=rows), (epoch - 1) * len(rows)):
            for group in optimizer.param_groups:
                group["lr"] = cosine(step, len(rows) * settings.epochs, settings.learning_rate)
            padded_step(model, optimizer, batch, max_gradient_norm=settings.max_gradient_norm)
        yield epoch, time.perf_counter() - began


if __name__ == "__main__":
    main()
