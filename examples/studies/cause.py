"""Does a middle layer's code of the task make the answers right? Trainings that push it apart, or wash it out.

    python examples/studies/cause.py DIR            # the trainings, a file each; what is there is not trained again
    python examples/studies/cause.py DIR --table    # accuracy on unseen instructions at equal training loss

At the output of the fourth of six blocks, states at the input token, less a running mean of their input's, are
compared in each batch: the mean cosine of pairs that share the task, less that of pairs that do not. Its gradient is
added to the training's, scaled to a share (the strength) of the training gradient's length: with a plus sign the codes
of the tasks are `promoted`, with a minus sign `disrupted`. The placebos, `groups` and `ungrouped`, do the same to
instructions that were dealt to the tasks at random: gradients as long, about no task. Width 128, 30 epochs;
exploratory: seeds 100 and up.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from nucleate.config import configure
from nucleate.data.synthetic import generate
from nucleate.files import write_whole
from nucleate.intervals import t_interval
from nucleate.model.packed_pass import at_rest, batch_loss, evaluate, token_losses
from nucleate.model.prefix_tree import PackedBatch, pack
from nucleate.model.training import cosine, make_optimizer, order
from nucleate.paper.instances import Members
from nucleate.paper.network import make_network
from nucleate.text_table import text_table

SEEDS = (100, 101, 102)
SIGNS = {"promoted": 1.0, "disrupted": -1.0, "groups": 1.0, "ungrouped": -1.0}
PLACEBO = {"promoted": "groups", "disrupted": "ungrouped"}
STRENGTHS = (0.1, 0.3, 1.0)
EPOCHS, BATCH, RATE, LIMIT = 30, 65, 5e-4, 1.0
SAMPLE = 500  # training instances on which the loss is told, without dropout
SETTINGS = {"model.width": "128", "training.learning_rate": str(RATE)}


def arms() -> Iterator[tuple[str, float]]:
    """One strength after the other, the bare training first."""
    yield "bare", 0.0
    for strength in STRENGTHS:
        for arm in SIGNS:
            yield arm, strength


def trained(arm: str, strength: float, seed: int, epochs: int = EPOCHS, size: str = "small") -> list[dict[str, float]]:
    """Loss on the training sample, accuracy on validation, and how far tasks lie apart there, epoch by epoch."""
    config = configure(size, seed=seed, changes=SETTINGS)
    dataset = generate(config.data, seed=seed)
    model, tokenizer = make_network(config, dataset, device="cpu")
    train, held = (Members.of(tokenizer, dataset.select(split)) for split in ("train", "validation"))
    units, unseen = ([g.only([b]) for g in side.groups for b in range(len(g.branches))] for side in (train, held))
    branches = [len(group.branches) for group in train.groups]
    rng = np.random.default_rng(seed)
    sample = rng.permutation(len(units))[:SAMPLE]
    task, inputs, instruction = (_codes(train, name) for name in ("task", "input", "instruction"))
    if arm in PLACEBO.values():  # whole instructions are dealt anew, so that every task keeps its number of them
        first = np.unique(instruction, return_index=True)[1]
        task = rng.permutation(task[first])[instruction]
    apart = _Apart(task, inputs, instruction)
    seen = _Apart(*(_codes(held, name) for name in ("task", "input", "instruction")))
    answers = torch.tensor([tokenizer.convert_tokens_to_ids(one.output) for one in held.instances])
    optimizer = make_optimizer(model, learning_rate=RATE, weight_decay=config.training.weight_decay)
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = len(order(branches, packing="rows", batch=BATCH, seed=seed, epoch=1))
    torch.manual_seed(seed)
    told = []
    for epoch in range(1, epochs + 1):
        model.train()
        for number, batch in enumerate(order(branches, packing="rows", batch=BATCH, seed=seed, epoch=epoch)):
            optimizer.param_groups[0]["lr"] = cosine((epoch - 1) * steps + number, steps * epochs, RATE)
            rows = pack([units[i] for i in batch])
            logits, hidden = evaluate(model, rows, hidden=True)
            loss = (token_losses(logits, rows) * rows.target_weight).sum() / rows.predicted
            gradients = torch.autograd.grad(loss, parameters, retain_graph=arm != "bare")
            if arm != "bare":
                score = SIGNS[arm] * apart(_states(hidden, rows), batch)
                pushes = torch.autograd.grad(-score, parameters, allow_unused=True)
                length, its = (_length([one for one in some if one is not None]) for some in (gradients, pushes))
                share = strength * length / its.clamp(min=1e-12)
                gradients = tuple(g if p is None else g + share * p for g, p in zip(gradients, pushes, strict=True))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(parameters, LIMIT)
            optimizer.step()
        with at_rest(model):
            rows = pack(unseen)
            logits, hidden = evaluate(model, rows, hidden=True)
            right = (logits[rows.end_row].argmax(-1) == answers).float().mean()
            spread = seen(_states(hidden, rows), np.arange(len(unseen)))
            fitted = batch_loss(model, pack([units[i] for i in sample]))
        told.append({"epoch": epoch, "loss": float(fitted), "accuracy": float(right), "apart": float(spread)})
    return told


def _codes(members: Members, name: str) -> np.ndarray:
    return np.unique([getattr(one, name) for one in members.instances], return_inverse=True)[1].reshape(-1)


def _states(hidden: Sequence[torch.Tensor], rows: PackedBatch) -> torch.Tensor:
    return hidden[-3].flatten(0, 1)[rows.ends]


def _length(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([one.norm() for one in gradients]).norm()


class _Apart:
    """Mean cosine of pairs that share a task, less that of pairs that do not; of other instructions and inputs."""

    def __init__(self, task: np.ndarray, inputs: np.ndarray, instruction: np.ndarray) -> None:
        self.task, self.inputs, self.instruction = (torch.from_numpy(one) for one in (task, inputs, instruction))
        self.means: torch.Tensor | None = None  # (input, width), running

    def __call__(self, states: torch.Tensor, some: np.ndarray) -> torch.Tensor:
        some_of = torch.from_numpy(some)
        task, inputs, instruction = self.task[some_of], self.inputs[some_of], self.instruction[some_of]
        if self.means is None:
            self.means = states.detach().mean(0).repeat(int(self.inputs.max()) + 1, 1)
        kept = states.detach()
        for code in inputs.unique():
            self.means[code] += 0.1 * (kept[inputs == code].mean(0) - self.means[code])
        centred = torch.nn.functional.normalize(states - self.means[inputs], dim=-1)
        cosines = centred @ centred.T
        other = (inputs[:, None] != inputs) & (instruction[:, None] != instruction)
        same = task[:, None] == task
        return cosines[other & same].mean() - cosines[other & ~same].mean()


# --- what came of it --------------------------------------------------------------------------------------------------

LEVELS = (1.6, 1.4, 1.2)  # nats a token on the training sample, that every arm passes on its way


def accuracy_at(told: Sequence[dict[str, float]], level: float) -> float | None:
    """On unseen instructions, when the loss of the training sample first falls to a level; between epochs by a line."""
    for before, after in pairwise(told):
        if before["loss"] > level >= after["loss"]:
            share = (before["loss"] - level) / (before["loss"] - after["loss"])
            return before["accuracy"] + share * (after["accuracy"] - before["accuracy"])
    return None


def rows(folder: Path) -> list[tuple[object, ...]]:
    """Of each arm and strength, over the seeds: how far tasks lie apart at the end, the final accuracy, and at each
    level of the loss the accuracy less the placebo's (of a placebo and the bare training: the accuracy itself)."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    listed = []
    for arm, strength in arms():
        runs = {seed: found[name] for seed in SEEDS if (name := f"{arm}-{strength}-seed{seed}") in found}
        if not runs:
            continue
        row: list[object] = [f"{arm} {strength or ''}".strip(), len(runs)]
        row += [float(np.mean([told[-1][what] for told in runs.values()])) for what in ("apart", "loss", "accuracy")]
        for level in LEVELS:
            values = []
            for seed, told in runs.items():
                own = accuracy_at(told, level)
                placebo = found.get(f"{PLACEBO.get(arm)}-{strength}-seed{seed}")
                other = 0.0 if arm not in PLACEBO else None if placebo is None else accuracy_at(placebo, level)
                if own is not None and other is not None:
                    values.append(own - other)
            row.append(str(t_interval(values)) if len(values) > 1 else values[0] if values else None)
        listed.append(tuple(row))
    return listed


HEADER = ("arm", "seeds", "apart", "loss", "accuracy", *(f"at loss {level}" for level in LEVELS))


def main(folder: str, asked: str = "") -> None:
    at = Path(folder)
    if asked == "--table":
        print(text_table(HEADER, rows(at)))
        return
    at.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for arm, strength in arms():
            file = at / f"{arm}-{strength}-seed{seed}.json"
            if not file.is_file():
                told = trained(arm, strength, seed)
                write_whole(file, lambda part, told=told: part.write_text(json.dumps(told), encoding="utf-8"))
                print(f"{file.name}: validation {told[-1]['accuracy']:.2f}, loss {told[-1]['loss']:.2f}", flush=True)


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[2:] not in ([], ["--table"]):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
