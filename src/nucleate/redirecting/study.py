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
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleate.data.dataset import Instance
from nucleate.data.sources import Source
from nucleate.files import write_whole
from nucleate.model.batches import layers_of, share_prefixes
from nucleate.model.own_head import head_logits
from nucleate.model.packed_pass import text_config
from nucleate.model.patching import blocks_of
from nucleate.model.prefix_tree import Group
from nucleate.model.prompts import read_prompts_states
from nucleate.model.switch import AT_ONCE, TargetStates, TeachingSet, remember
from nucleate.model.texts import Prompt, prompts_of
from nucleate.progress import Progress, silent
from nucleate.reading import read_tensors, tensors_are_whole
from nucleate.redirecting.prompts import Redirection, redirection_of
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.switched import SwitchedModel
from nucleate.refusal import Refused


@dataclass(frozen=True, eq=False)
class RedirectStudy:
    """What is asked, and of which prompts."""

    settings: RedirectSettings
    dealt: Redirection

    def layers(self, network: PreTrainedModel) -> tuple[int, ...]:
        """Those that a switch may read, rising: the given ones, or else five spread over the depth and the last."""
        depth = text_config(network).num_hidden_layers
        if self.settings.layers is not None:
            asked = sorted(set(layers_of(network, self.settings.layers)))
            if asked != [depth]:
                blocks_of(network)
            return tuple(asked)
        try:
            blocks_of(network)
        except Refused:  # the states between its blocks cannot be had while it generates
            return (depth,)
        return tuple(sorted({max(1, round(depth * part / (PARTS + 1))) for part in range(1, PARTS + 1)} | {depth}))


PARTS = 5  # of the depth, besides the last layer
Ends = Mapping[int, Tensor]  # layer -> (instance, width): states of each prompt's last token


def study_of(data: Source, settings: RedirectSettings) -> RedirectStudy:
    """The prompts read and dealt out; refused where they do not do."""
    return RedirectStudy(settings, redirection_of(data, settings))


def source_prompts(study: RedirectStudy, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Prompt]]:
    """side -> its prompts with the wished outputs; refused where one cannot be taught."""
    found: dict[str, list[Prompt]] = {}
    for side, instances in study.dealt.sides.items():
        found[side] = []
        for one in _tokenised(study, tokenizer, instances) if instances else ():
            if isinstance(one, str) or not one.answer:
                why = one if isinstance(one, str) else "its wished output has no token"
                raise Refused(f"a prompt of {study.settings.source!r} cannot be taught: {why}: mend the data")
            found[side].append(one)
    return found


@dataclass(frozen=True)
class SavedParts:
    """Parts that are made once: a resumed run finds them as they were, to the bit."""

    folder: Path
    note: Callable[[str], object] = lambda text: None  # is told what is made anew
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "train": 0.0})  # what they took to make

    def holds(self, name: str) -> bool:
        """Was this part made before? One that is damaged is made anew."""
        file = self.folder / f"{name}.safetensors"
        if file.is_file() and not tensors_are_whole(file):
            file.unlink()
            self.note(f"made anew: {file} is no whole safetensors file")
        return file.is_file()

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
        tensors, beside = read_tensors(file)
        told = json.loads(beside["told"])
        self.seconds[kind] += told["seconds"]
        return tensors, told["facts"]


def mark_of(
    model: SwitchedModel,
    study: RedirectStudy,
    lessons: Mapping[str, Sequence[Prompt]],
    layers: Sequence[int],
) -> str:
    """Of weights, tokens and layers: what was read by others that lay in the same place is not taken for its own."""
    few = [one.detach().flatten()[:: max(1, one.numel() // 64)].float().cpu() for one in model.parameters()]
    mark = hashlib.sha256(torch.cat(few).numpy().tobytes())
    mark.update(repr((layers, lessons, _tokenised(study, model.tokenizer, study.dealt.others))).encode())
    return mark.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Others:
    """Prompts of everything else: those that are judged by, and the states that switches learn from and are chosen
    by."""

    instances: list[Instance]
    ends: Ends
    before: np.ndarray  # (instance,) the likeliest next token
    wanted: np.ndarray  # (instance,) the first token of its output; -1 without one
    of_target: np.ndarray  # (instance,) bool
    examples: Ends
    choosing: Ends  # the examples again where there are too few to choose by

    @property
    def states(self) -> Tensor:
        """(instance, width) in the last layer."""
        return self.ends[max(self.ends)]


def read_source(
    model: SwitchedModel,
    lessons: Mapping[str, Sequence[Prompt]],
    side: str,
    layers: Sequence[int],
    saved: SavedParts,
) -> TeachingSet:
    """The prompts of a side with the wished outputs, behind each of which comes the token that ends a text, so that
    `generate` stops there; in one pass with their states in these layers, the last one of all among them."""
    closing = closing_of(model.tokenizer)
    allowed = sorted({one.answer[0] for prompts in lessons.values() for one in prompts})
    rows = [(one.tokens, one.answer + closing) for one in lessons[side]]
    groups, places = share_prefixes(rows)  # as `groups_of` does

    def read() -> tuple[dict[str, Tensor], list[int]]:
        memory = remember(model.network, groups, answers_only=True, layers=layers)
        kept = {name: getattr(memory, name) for name in ("states", "tokens", "weights", "ends", "inner")}
        return kept | {"starts": torch.from_numpy(memory.starts)}, list(memory.branches)

    kept, branches = saved.part(f"source-{side}", "read", read)
    logits = torch.cat([head_logits(model.network, part) for part in kept["states"].split(AT_ONCE)])
    starts, branches = kept.pop("starts").numpy(), tuple(branches)
    memory = TargetStates(logits=logits, starts=starts, branches=branches, **kept)
    lengths = [len(rows[place][1]) for place in places]
    last = np.cumsum(lengths)
    closes = np.zeros(len(memory.tokens), dtype=bool)
    closes[last - 1] = bool(closing)
    ends = dict(zip(layers, kept["inner"], strict=True))
    decided = model.decide(ends).repeat_interleave(torch.tensor(lengths))
    before = model.added(memory.states, decided, logits)
    for number in model.adapted(decided):

        def again(number: int = number) -> tuple[dict[str, Tensor], None]:
            with model.through(number):
                return {"states": remember(model.network, groups, answers_only=True).states}, None

        rows_of = (decided == number).nonzero()[:, 0]
        states = saved.part(f"source-{side}-{number}", "read", again)[0]["states"][rows_of]
        before[rows_of] = torch.cat([head_logits(model.network, part) for part in states.split(AT_ONCE)])
    return TeachingSet(memory, np.concatenate([[0], last[:-1]]), closes, np.array(allowed), ends, before)


def groups_of(tokenizer: PreTrainedTokenizerBase, lessons: Mapping[str, Sequence[Prompt]], side: str) -> list[Group]:
    """The prompts of a side with the wished outputs and what closes them, by instruction, in the order in which
    `read_source` reads them."""
    closing = closing_of(tokenizer)
    return share_prefixes([(one.tokens, one.answer + closing) for one in lessons[side]])[0]


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
    model: SwitchedModel,
    layers: Sequence[int],
    saved: SavedParts,
    progress: Progress = silent,
) -> Others:
    """All that is no source, with the states in these layers, the last one of all among them."""
    settings, dealt, instances = study.settings, study.dealt, study.dealt.others

    def read() -> tuple[dict[str, Tensor], None]:
        reading = read_prompts_states(
            model.network,
            model.tokenizer,
            instances,
            reads={"answer_start": layers},
            template=settings.template,
            messages=dealt.messages(instances),
            chat=settings.chat,
            progress=progress,
        )
        states = torch.from_numpy(np.array(reading.states["answer_start"]))
        return {"states": states, "places": torch.from_numpy(reading.kept)}, None

    kept, _ = saved.part("others", "read", read)
    found = [instances[place] for place in kept["places"]]
    drawn, chosen_by, asked = (
        np.array([one.instance in numbers for one in found])
        for numbers in (dealt.examples, dealt.choosing, dealt.asked)
    )
    if not drawn.any() or not asked.any():
        raise Refused(f"{dealt.prompts.name}: no prompt of the other tasks can be read: shorten them")
    judged = [one for one, is_asked in zip(found, asked, strict=True) if is_asked]
    prompts = _tokenised(study, model.tokenizer, judged)
    wanted = [one.answer[0] if isinstance(one, Prompt) and one.answer else -1 for one in prompts]
    examples, choosing, ends = (
        dict(zip(layers, kept["states"][:, part], strict=True))
        for part in (drawn, chosen_by if chosen_by.any() else drawn, asked)
    )
    states, decided = ends[max(ends)], model.decide(ends)
    before = np.concatenate(
        [
            model.added(part, which, head_logits(model.network, part)).argmax(-1).numpy()
            for part, which in zip(states.split(AT_ONCE), decided.split(AT_ONCE), strict=True)
        ]
    )
    for number in model.adapted(decided):
        places = np.flatnonzero(decided.numpy() == number)

        def again(number: int = number, places: np.ndarray = places) -> tuple[dict[str, Tensor], None]:
            with model.through(number):
                tokens = likeliest_tokens(study, model, [judged[place] for place in places])
            return {"tokens": torch.from_numpy(tokens)}, None

        before[places] = saved.part(f"others-{number}", "read", again)[0]["tokens"].numpy()
    of_target = np.array([one.instance in dealt.of_target for one in judged])
    return Others(judged, ends, before, np.array(wanted), of_target, examples, choosing)


def likeliest_tokens(study: RedirectStudy, model: SwitchedModel, instances: Sequence[Instance]) -> np.ndarray:
    """(instance,) the likeliest next token of the network alone, or of the adapter that it now goes through."""
    depth = text_config(model.network).num_hidden_layers
    reading = read_prompts_states(
        model.network,
        model.tokenizer,
        instances,
        reads={"answer_start": (depth,)},
        template=study.settings.template,
        messages=study.dealt.messages(instances),
        chat=study.settings.chat,
    )
    states = torch.from_numpy(np.array(reading.states["answer_start"][0]))
    return np.concatenate([head_logits(model.network, part).argmax(-1).numpy() for part in states.split(AT_ONCE)])
