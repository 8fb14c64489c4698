"""What a probe asks of every model: the settings, the prompts with their two halves, the tokens that are read."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleate.config import flat_toml
from nucleate.data.dataset import Instance
from nucleate.data.prompts import Prompts
from nucleate.measures.neighbours import Labels
from nucleate.measures.shares import TaskDeals
from nucleate.measures.survey import Effort
from nucleate.measures.transfer import pairs_of
from nucleate.memory import total_memory
from nucleate.model.blocks import ReadBlocks
from nucleate.model.prompts import Elsewhere, PromptReading, open_reader, read_prompts_states
from nucleate.model.subjects import Subject
from nucleate.model.texts import PLAIN_CHATS, prompts_of
from nucleate.probing.design import Design
from nucleate.probing.halves import held_out_units, sides_of
from nucleate.probing.layers import LayerMeasures
from nucleate.probing.separation import FEWEST
from nucleate.probing.settings import ProbeSettings
from nucleate.progress import Progress
from nucleate.refusal import Refused
from nucleate.threads import thread_count

_TRIED = 100  # prompts that are tried before anything is written


@dataclass(frozen=True, eq=False)
class ProbeStudy:
    """What is asked of every model."""

    prompts: Prompts
    settings: ProbeSettings
    design: Design
    notes: tuple[str, ...]
    known: dict[str, LayerMeasures] = field(default_factory=dict)  # untrained networks, by their architecture
    reading: list[float] = field(default_factory=list)  # seconds of each reading of the model in hand
    engine: ReadBlocks | None = None  # reads in the place of this process

    @classmethod
    def of(cls, prompts: Prompts, settings: ProbeSettings) -> Self:
        instances = prompts.instances
        units, by_instruction = held_out_units(*_columns(instances, "instruction", "input", "task"))
        columns = ("output", "task", "distribution", *(["input"] if prompts.has_inputs else []))
        table = dict(zip(columns, _columns(instances, *columns), strict=True))
        if prompts.formats is not None:
            table["format"] = list(prompts.formats)
        (labels,) = Labels.coded({"instruction": units, **table})
        pairs = list(zip(*_columns(instances, "distribution", "mapping"), strict=True))
        book = {pair: code for code, pair in enumerate(sorted(pair for pair in set(pairs) if None not in pair))}
        mapping = np.array([book.get(pair, -1) for pair in pairs])
        groups: Sequence[object] = [(one.task, one.distribution) for one in instances]
        if prompts.formats is not None:  # each half has every format of a task
            groups = list(zip(groups, prompts.formats, strict=True))
        sides = sides_of(units, groups, [one.split for one in instances], seed=settings.seed)
        for side in sides:
            if len(set(labels.task[side.members])) < 2 or len(set(labels.instruction[side.members])) < 4:
                raise Refused(
                    f"{prompts.name}: too few different prompts to measure {side.split} ({len(side.members)}); "
                    "give at least four of each task"
                )
        notes = [*prompts.warnings]
        if prompts.messages is not None and not settings.chat:
            notes.append(PLAIN_CHATS)
        if not by_instruction and prompts.has_inputs:
            notes.append("there are hardly more instructions than tasks, so whole prompts are held out instead")
        splits = {one.split for one in instances}
        if len(splits) > 1 and not {"train", "validation", "test"} <= splits:
            notes.append(f"the splits {', '.join(sorted(splits))} are not train, validation and test: halved anew")
        names, test = sorted(set(table["task"])), sides[-1].members
        pairs_there = np.unique(np.stack([labels.task[test], labels.instruction[test]]), axis=1)
        there = np.bincount(pairs_there[0], minlength=len(names))
        few = [f"'{name}' {count}" for name, count in zip(names, there, strict=True) if count < FEWEST]
        if few:
            whole = "instructions" if by_instruction and prompts.has_inputs else "prompts"
            notes.append(
                f"too few {whole} to tell of {len(few)} of {len(names)} tasks: {', '.join(few[:5])}"
                f"{' …' if len(few) > 5 else ''} in the half that is reported, where {FEWEST} are needed: {2 * FEWEST} "
                "in all"
            )
        effort = Effort(3, settings.perplexity, settings.iterations, settings.initialisations, thread_count())
        design = Design.of(labels, mapping, names, sides, seed=settings.seed, effort=effort, repeats=settings.repeats)
        choosing = sides[1]
        offered = TaskDeals.of(labels[choosing.members], labels[choosing.against]).offered[design.search]
        if not offered.any():
            raise Refused(
                f"{prompts.name}: no layer can be chosen, since in the half that chooses no task has a second "
                f"{'instruction' if by_instruction else 'prompt'}: give at least four of each task"
                f"{'' if settings.limit is None else f', or a limit above {settings.limit}'}"
            )
        return cls(prompts, settings, design, tuple(notes))

    @property
    def units(self) -> list[str]:
        """(prompt,) what it is held out with."""
        return [str(code) for code in self.design.labels.instruction]

    @property
    def halves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """split -> the prompts that are moved, and those by whose means."""
        return {side.split: (side.members, side.against) for side in self.design.sides[1:]}

    @cached_property
    def pairs(self) -> int:
        """Of a prompt and another task that gives its input another output, in the half that has fewer."""
        labels = self.design.labels
        return min(len(pairs_of(labels[held], labels[known], seed=0)) for held, known in self.halves.values())

    def check(self, subject: Subject) -> None:
        """Refuse what would be refused of the first prompts, while nothing is written yet."""
        subject.layers(self.settings.layers)
        messages = self.prompts.messages
        first = prompts_of(
            subject.tokenizer,
            self.prompts.instances[:_TRIED],
            reads=(self.main, *self.other_reads),
            template=self.settings.template,
            messages=None if messages is None else messages[:_TRIED],
            chat=self.settings.chat,
        )
        if all(isinstance(one, str) for one in first):
            raise Refused(
                f"{self.prompts.name}, {self.prompts.unit} {self.prompts.places[0]}: the prompt cannot be read: "
                f"{first[0]}; and so on: mend the data or the template"
            )

    @property
    def main(self) -> str:
        """The token that is read at every layer."""
        return "input" if self.prompts.has_inputs else "answer_start"

    @property
    def other_reads(self) -> tuple[str, ...]:
        """Tokens beside it that are not the same one."""
        if not self.prompts.has_inputs or "{instruction}" not in (self.settings.template or "{instruction}"):
            return ()
        same = not self.settings.chat and (self.settings.template or "{input}").endswith("{input}")
        return ("instruction_end",) if same else ("instruction_end", "answer_start")

    def read(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        reads: Mapping[str, Sequence[int]],
        progress: Progress,
        *,
        spill: Path | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> PromptReading:
        """States and answers of the prompts; to disk where they would take a quarter of the memory."""
        width, count = network.config.get_text_config().hidden_size, sum(len(layers) for layers in reads.values())
        began = time.perf_counter()
        reading = read_prompts_states(
            network,
            tokenizer,
            prompts.instances,
            reads=reads,
            template=self.settings.template,
            messages=prompts.messages,
            chat=self.settings.chat,
            spill=spill if 4 * width * count * len(prompts.instances) > total_memory() / 4 else None,
            progress=progress,
            elsewhere=elsewhere,
        )
        self.reading.append(time.perf_counter() - began)
        return reading

    def elsewhere(self, load: Callable[[], tuple[Any, Any]], place: Path) -> Elsewhere | None:
        """The engine, with the network that `load` gives to each of its workers, and a folder for what it keeps."""
        if (engine := self.engine) is None:
            return None
        return lambda layers, blocks: engine(partial(open_reader, load, layers), blocks, place)

    def config(self, models: Sequence[str], base: str | None, **further: object) -> str:
        """The text of `config.toml`."""
        what = {"verb": "probe", "size": self.prompts.name, "models": list(models), "base": base}
        return flat_toml(self.settings, **what, data_hash=self.prompts.dataset.content_hash(), **further)

    def facts(self, device: str) -> dict[str, Any]:
        """What the manifest tells of it."""
        data_hash = self.prompts.dataset.content_hash()
        return {"seeds": {"root": self.settings.seed}, "device": device, "data_hash": data_hash}

    def complete(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row with the columns that a whole run shares."""
        return {"experiment": "probe", "arm": "main", "seed": self.settings.seed, **row}


def _columns(instances: Sequence[Instance], *names: str) -> list[list[Any]]:
    return [[getattr(one, name) for one in instances] for name in names]
