"""What a redirection of a real model asks, and what it reads: prompts dealt out, states and logits that are read once.

Whatever is read or taught goes on a `SavedParts`, from which a resumed run takes it to the bit.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleate.data.dataset import Instance
from nucleate.data.sources import Source
from nucleate.files import write_whole
from nucleate.model.batches import share_prefixes
from nucleate.model.prompts import read_prompts_states
from nucleate.model.switch import AT_ONCE, TargetStates, TeachingSet, remember
from nucleate.model.texts import Prompt, prompts_of
from nucleate.progress import Progress, silent
from nucleate.redirecting.prompts import Redirection, redirection_of
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.switched import head_logits
from nucleate.refusal import Refused


@dataclass(frozen=True, eq=False)
class RedirectStudy:
    """What is asked, and of which prompts."""

    settings: RedirectSettings
    dealt: Redirection


def study_of(data: Source, settings: RedirectSettings) -> RedirectStudy:
    """The prompts read and dealt out; refused where they do not do."""
    return RedirectStudy(settings, redirection_of(data, settings))


def source_prompts(study: RedirectStudy, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Prompt]]:
    """side -> its prompts with the wished outputs; refused where one cannot be taught."""
    found: dict[str, list[Prompt]] = {}
    for side, instances in study.dealt.sides.items():
        found[side] = []
        for one in _tokenised(study, tokenizer, instances):
            if isinstance(one, str) or not one.answer:
                why = one if isinstance(one, str) else "its wished output has no token"
                raise Refused(f"a prompt of {study.settings.source!r} cannot be taught: {why}: mend the data")
            found[side].append(one)
    return found


@dataclass(frozen=True)
class SavedParts:
    """Parts that are made once: a resumed run finds them as they were, to the bit."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "train": 0.0})  # what they took to make

    def holds(self, name: str) -> bool:
        """Was this part made before?"""
        return (self.folder / f"{name}.safetensors").is_file()

    def part(
        self, name: str, kind: str, make: Callable[[], tuple[dict[str, Tensor], Any]]
    ) -> tuple[dict[str, Tensor], Any]:
        """Tensors and facts of a part, from the disk; made and put there where it is missing."""
        file = self.folder / f"{name}.safetensors"
        if not self.holds(name):
            began = time.monotonic()
            tensors, facts = make()
            told = {"told": json.dumps({"seconds": time.monotonic() - began, "facts": facts})}
            write_whole(file, lambda path: save_file(tensors, path, metadata=told))
        with safe_open(file, framework="pt") as opened:
            told = json.loads(opened.metadata()["told"])
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        self.seconds[kind] += told["seconds"]
        return tensors, told["facts"]


def mark_of(
    network: PreTrainedModel,
    study: RedirectStudy,
    tokenizer: PreTrainedTokenizerBase,
    lessons: Mapping[str, Sequence[Prompt]],
) -> str:
    """Of weights and tokens: what was read by others that lay in the same place is not taken for its own."""
    few = [one.detach().flatten()[:: max(1, one.numel() // 64)].float().cpu() for one in network.parameters()]
    mark = hashlib.sha256(torch.cat(few).numpy().tobytes())
    mark.update(repr((lessons, _tokenised(study, tokenizer, study.dealt.others))).encode())
    return mark.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Others:
    """Prompts of everything else: those that are judged by, and the states that the switches learn from."""

    instances: list[Instance]
    states: Tensor  # (instance, width) at the end of each prompt
    before: np.ndarray  # (instance,) the likeliest next token
    wanted: np.ndarray  # (instance,) the first token of its output; -1 without one
    of_target: np.ndarray  # (instance,) bool
    examples: Tensor  # (example, width)


def read_source(
    network: PreTrainedModel,
    lessons: Mapping[str, Sequence[Prompt]],
    side: str,
    closing: tuple[int, ...],
    saved: SavedParts,
) -> TeachingSet:
    """The prompts of a side with the wished outputs, behind each of which comes the token that ends a text, so that
    `generate` stops there."""
    allowed = sorted({one.answer[0] for prompts in lessons.values() for one in prompts})
    rows = [(one.tokens, one.answer + closing) for one in lessons[side]]
    groups, places = share_prefixes(rows)

    def read() -> tuple[dict[str, Tensor], list[int]]:
        memory = remember(network, groups, answers_only=True)
        kept = {name: getattr(memory, name) for name in ("states", "tokens", "weights", "ends")}
        return kept | {"starts": torch.from_numpy(memory.starts)}, list(memory.branches)

    kept, branches = saved.part(f"source-{side}", "read", read)
    logits = torch.cat([head_logits(network, part) for part in kept["states"].split(AT_ONCE)])
    starts, branches = kept.pop("starts").numpy(), tuple(branches)
    memory = TargetStates(logits=logits, starts=starts, branches=branches, **kept)
    ends = np.cumsum([len(rows[place][1]) for place in places])
    closes = np.zeros(len(memory.tokens), dtype=bool)
    closes[ends - 1] = bool(closing)
    return TeachingSet(memory, np.concatenate([[0], ends[:-1]]), closes, np.array(allowed))


def closing_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token behind an answer: the end of a text or, where the tokenizer has none, of a line; nothing where it has
    neither."""
    if tokenizer.eos_token_id is not None:
        return (tokenizer.eos_token_id,)
    line = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return tuple(line[-1:]) if tokenizer.decode(line) == "\n" else ()


def _tokenised(
    study: RedirectStudy, tokenizer: PreTrainedTokenizerBase, instances: Sequence[Instance]
) -> list[Prompt | str]:
    settings = study.settings
    return prompts_of(
        tokenizer,
        instances,
        reads=("answer_start",),
        template=settings.template,
        messages=study.dealt.messages(instances),
        chat=settings.chat,
    )


def read_others(
    study: RedirectStudy,
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    saved: SavedParts,
    progress: Progress = silent,
) -> Others:
    settings, instances = study.settings, study.dealt.others

    def read() -> tuple[dict[str, Tensor], None]:
        reading = read_prompts_states(
            network,
            tokenizer,
            instances,
            reads={"answer_start": [-1]},
            template=settings.template,
            messages=study.dealt.messages(instances),
            chat=settings.chat,
            progress=progress,
        )
        states = torch.from_numpy(np.array(reading.states["answer_start"][0]))
        return {"states": states, "places": torch.from_numpy(reading.kept)}, None

    kept, _ = saved.part("others", "read", read)
    found = [instances[place] for place in kept["places"]]
    drawn = np.array([one.instance in study.dealt.examples for one in found])
    asked = np.array([one.instance in study.dealt.asked for one in found])
    if not drawn.any() or not asked.any():
        raise Refused(f"{study.dealt.prompts.name}: no prompt of the other tasks can be read: shorten them")
    judged = [one for one, is_asked in zip(found, asked, strict=True) if is_asked]
    prompts = _tokenised(study, tokenizer, judged)
    wanted = [one.answer[0] if isinstance(one, Prompt) and one.answer else -1 for one in prompts]
    states = kept["states"][asked]
    before = [head_logits(network, part).argmax(-1).numpy() for part in states.split(AT_ONCE)]
    of_target = np.array([one.instance in study.dealt.of_target for one in judged])
    return Others(judged, states, np.concatenate(before), np.array(wanted), of_target, kept["states"][drawn])
