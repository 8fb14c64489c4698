"""The switch network and its second head (§4.2): a frozen network answers otherwise where the switch says so.

Both read one thing, the last layer's hidden state, so what they learn from is computed once (`remember`) and a step of
learning costs next to nothing (`learn_head`). How a network that generates text is switched stands in `switched.py`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.model.finite import stop_if_diverged
from nucleate.model.packed_pass import check_positions, evaluate, packing_is_exact, where_it_runs
from nucleate.model.prefix_tree import Group, pack, plain
from nucleate.model.training import cosine, make_optimizer, order
from nucleate.refusal import Refused, nearest

KINDS = ("linear", "mlp")
AT_ONCE = 512  # states whose logits are held at once


class Switch(nn.Module):
    """Is this a state of what shall be answered otherwise? A logit per state; where the probability that it stands for
    is above `threshold` the second head answers. `layer` is the one whose states it reads; None is the last.

    States are z-scored first: a few directions of a network's states are a hundred times wider than the rest. `mlp` has
    three layers, as wide inside as the states (§4.2)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, kind: str, *, layer: int | None = None, seed: int = 0) -> None:
        super().__init__()
        if kind not in KINDS:
            raise Refused(f"switch {kind!r} does not exist{nearest(kind, KINDS)}")
        self.kind, self.layer, self.threshold = kind, layer, 0.5
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            inner = [part for _ in range(2) for part in (nn.Linear(width, width), nn.ReLU())] if kind == "mlp" else []
            self.layers = nn.Sequential(*inner, nn.Linear(width, 1))

    def look_at(self, *sides: Tensor) -> None:
        """Take mean and deviation from several sets of states (state, width), each of which weighs the same."""
        mean = torch.stack([side.mean(dim=0) for side in sides]).mean(dim=0)
        variance = torch.stack([(side - mean).square().mean(dim=0) for side in sides]).mean(dim=0)
        self.mean.copy_(mean)
        self.deviation.copy_(variance.sqrt().clamp(min=1e-6 * variance.max().sqrt()))  # what never moves tells nothing

    def forward(self, states: Tensor) -> Tensor:
        return self.layers((states - self.mean) / self.deviation).squeeze(-1)

    def says_yes(self, states: Tensor) -> Tensor:
        """(state,) bool: where the second head answers."""
        with torch.no_grad():
            return self(states) > logit_of(self.threshold)

    def is_on(self, states: Tensor) -> np.ndarray:
        """The same as an array."""
        return self.says_yes(states).numpy()


def logit_of(probability: float) -> float:
    """What a switch gives where it holds something for the source with this probability."""
    return math.log(probability / (1 - probability))


class Head(nn.Module):
    """What the second head adds to the first one's logits: nothing before it has learnt.

    As wide as the whole head, or of a low rank, where a vocabulary of 50,000 words makes the whole too dear. The first
    head's weights are never touched, so an embedding tied to it stays as it is."""

    def __init__(self, width: int, vocabulary: int, *, rank: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.down: nn.Linear | None = None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if rank is not None:
                self.down = nn.Linear(width, rank, bias=False)
            self.up = nn.Linear(rank or width, vocabulary, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, states: Tensor) -> Tensor:
        return self.up(states if self.down is None else self.down(states))


@dataclass(frozen=True)
class TargetStates:
    """Last-layer states of a frozen network where it predicts something, and what shall follow there."""

    states: Tensor  # (target, width) float32
    logits: Tensor  # (target, vocabulary) of the first head
    tokens: Tensor  # (target,)
    weights: Tensor  # (target,) how many instances share it
    starts: np.ndarray  # (group + 1,) where the targets of each group begin
    ends: Tensor  # (instance, width) states of each instance's last token, which the switch reads
    branches: tuple[int, ...]  # instances of each group
    inner: Tensor | None = None  # (layer, instance, width) the same states of each instance in other layers


@dataclass(frozen=True)
class SwitchTraining:
    """How head and switch are taught: a step, its size and their number, as in any other training."""

    epochs: int
    batch: int
    learning_rate: float
    seed: int
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0


def remember(
    model: nn.Module, groups: Sequence[Group], *, answers_only: bool, layers: Sequence[int] = ()
) -> TargetStates:
    """Compute once what a head learns from: all that is predicted, or the targets of the groups alone. In the same
    pass, what a switch could read in these layers."""
    check_positions(model, groups)
    device, dtype = where_it_runs(model)
    collate = pack if packing_is_exact(model, groups) else plain
    columns: list[list[Tensor]] = [[], [], [], [], []]
    inner: list[Tensor] = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for group in groups:
                batch = collate([group]).to(device, dtype)
                logits, hidden = evaluate(model, batch, hidden=True)
                last = hidden[-1].flatten(0, 1)  # as the head was handed it: after the final norm
                kept = answer_places(group, batch.target_instance) if answers_only else slice(None)
                columns[0].append(last[batch.target_at.to(last.device)][kept].float().cpu())
                columns[1].append(logits[batch.target_row.to(logits.device)][kept].float().cpu())
                columns[2].append(batch.target_token[kept].cpu())
                columns[3].append(batch.target_weight[kept].cpu())
                chosen = (hidden[layer] for layer in (*layers, -1))
                *others, end = [one.flatten(0, 1)[batch.ends.to(one.device)].float().cpu() for one in chosen]
                columns[4].append(end)
                inner += [torch.stack(others)] if layers else []
    finally:
        model.train(was_training)
    starts = np.cumsum([0, *map(len, columns[2])])
    states, logits, tokens, weights, last_of = map(torch.cat, columns)
    branches = tuple(len(group.branches) for group in groups)
    read = torch.cat(inner, dim=1) if inner else None
    return TargetStates(states, logits, tokens, weights, starts, last_of, branches, read)


def answer_places(group: Group, target_instance: np.ndarray) -> np.ndarray:
    """Which of a group's predictions are its answers: of each instance the last ones, in order."""
    own = [np.flatnonzero(target_instance == branch) for branch in range(len(group.branches))]
    return np.concatenate([places[len(places) - len(group.target(b)) :] for b, places in enumerate(own)])


@dataclass(frozen=True)
class TeachingSet:
    """Prompts with what shall follow them: what a head learns from, or is asked about."""

    memory: TargetStates
    first: np.ndarray  # (instance,) where its targets begin
    closing: np.ndarray  # (target,) bool: the token that ends an answer
    allowed: np.ndarray  # the first tokens of all answers
    ends: Mapping[int, Tensor] = field(default_factory=dict)  # layer -> (instance, width), which a switch may read
    before: Tensor | None = None  # (target, vocabulary) logits of a network that was redirected before

    def answers(self, head: Head | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(instance,) bool: every token of the answer is the likeliest one; so is the one that ends it; the first is,
        among the first of all answers. Without a head, as the network was."""
        best, own = [], []
        for start in range(0, len(self.memory.tokens), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            with torch.no_grad():
                if head is not None:
                    logits = self.memory.logits[part] + head(self.memory.states[part])
                else:
                    logits = (self.memory.logits if self.before is None else self.before)[part]
            best.append(logits.argmax(-1).numpy())
            own.append(self.allowed[logits[:, self.allowed].argmax(-1).numpy()])
        tokens = self.memory.tokens.numpy()
        right, restricted = np.concatenate(best) == tokens, np.concatenate(own) == tokens
        whole = np.logical_and.reduceat(right | self.closing, self.first)
        return whole, np.logical_and.reduceat(right, self.first), restricted[self.first]


def learn_head(head: Head, memory: TargetStates, pace: SwitchTraining) -> Iterator[int]:
    """Teach the second head what shall follow, yielding the number of each epoch that is behind it."""

    def loss(groups: np.ndarray) -> Tensor:
        rows = _spread(memory.starts, groups)
        logits = memory.logits[rows] + head(memory.states[rows])
        losses = F.cross_entropy(logits, memory.tokens[rows], reduction="none")
        return (losses * memory.weights[rows]).sum() / memory.weights[rows].sum()

    return _teach(head, memory.branches, loss, pace)


def learn_switch(switch: Switch, memory: TargetStates, others: Tensor, pace: SwitchTraining) -> None:
    """Teach the switch to tell the states of `memory` from a few `others` (example, width).

    Each step sees all the others beside its share of the states, and both sides weigh the same, in the loss and in the
    z-scores: else one example of each other task among hundreds of instances would leave the switch on for everything.
    """
    starts = np.cumsum([0, *memory.branches])
    switch.look_at(memory.ends, others)

    def loss(groups: np.ndarray) -> Tensor:
        missed = F.softplus(-switch(memory.ends[_spread(starts, groups)])).mean()
        return (missed + F.softplus(switch(others)).mean()) / 2

    for _ in _teach(switch, memory.branches, loss, pace):
        pass


def _teach(
    module: nn.Module, branches: Sequence[int], loss: Callable[[np.ndarray], Tensor], pace: SwitchTraining
) -> Iterator[int]:
    """AdamW in whole instructions, in the order and under the cosine of every other training."""
    optimizer = make_optimizer(module, learning_rate=pace.learning_rate, weight_decay=pace.weight_decay)
    step = 0
    for epoch in range(1, pace.epochs + 1):
        batches = order(branches, packing="tree", batch=pace.batch, seed=pace.seed, epoch=epoch)
        for groups in batches:
            for settings in optimizer.param_groups:
                settings["lr"] = cosine(step, len(batches) * pace.epochs, pace.learning_rate)
            lost = loss(groups)
            lost.backward()
            length = torch.nn.utils.clip_grad_norm_(module.parameters(), pace.max_gradient_norm)
            stop_if_diverged(lost.detach() + length, epoch, step)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        yield epoch


def _spread(starts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The rows of these groups, end to end."""
    return np.concatenate([np.arange(starts[group], starts[group + 1]) for group in groups])
