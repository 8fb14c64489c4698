"""What is known of the prompts before any network reads them: labels, halves, folds, and how they are dealt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from nucleate.measures.baselines import shuffled_labels
from nucleate.measures.labelling import Labelling
from nucleate.measures.neighbours import Labels
from nucleate.measures.survey import Effort
from nucleate.probing.halves import Folds, Side, deciding_search, folds_of
from nucleate.streams import stream

_DEALS = 5  # of labels dealt anew, of which a linear probe is asked as well


@dataclass(frozen=True, eq=False)
class Design:
    """What is known of the prompts, and how they are dealt: the same for every network."""

    labels: Labels
    mapping: np.ndarray  # (instance,) codes of (distribution, mapping); -1 where they are unknown
    tasks: tuple[str, ...]  # by their codes
    sides: tuple[Side, ...]
    search: str  # whose share of neighbours decides
    kept: np.ndarray  # (instance,) their places among all prompts
    everyone: int
    seed: int
    effort: Effort
    repeats: int  # deals of the shuffled and regrouped labels

    @classmethod
    def of(
        cls,
        labels: Labels,
        mapping: np.ndarray,
        tasks: Sequence[str],
        sides: Sequence[Side],
        *,
        seed: int,
        effort: Effort,
        repeats: int,
    ) -> Self:
        """All the prompts; `tasks` are the names of the codes."""
        kept, search = np.arange(len(labels)), deciding_search(sides[-1], labels)
        return cls(labels, mapping, tuple(tasks), tuple(sides), search, kept, len(labels), seed, effort, repeats)

    @property
    def deciding(self) -> str:
        """The name of the measure that decides."""
        return f"knn_share_{self.search}" if self.search else "knn_share"

    @property
    def has_inputs(self) -> bool:
        return bool((self.labels.input >= 0).all())

    @cached_property
    def labellings(self) -> dict[str, Labelling]:
        """split -> its labels for raw states."""
        return {side.split: self.labelling(side, "raw") for side in self.sides}

    def labelling(self, side: Side, *spaces: str) -> Labelling:
        """The labels of a side for some spaces."""
        return side.labelling(self.labels, self.mapping, seed=self.seed, repeats=self.repeats, spaces=spaces)

    @cached_property
    def folds(self) -> Folds:
        """Who tells whom by a linear probe."""
        return folds_of(self.sides, self.labels, self.search, seed=self.seed_of("folds"))

    @cached_property
    def dealt(self) -> np.ndarray:
        """(deal, instance) the true tasks, then tasks shuffled between what is held out as a whole."""
        task, unit = self.labels.task, self.labels.instruction
        shuffled = shuffled_labels(task, unit, seed=self.seed_of("shuffled", "linear"), repeats=_DEALS)
        return np.concatenate([task[np.newaxis], shuffled])

    def only(self, kept: np.ndarray) -> "Design":
        """The same with the prompts that a network could read."""
        if len(kept) == len(self.kept):
            return self
        sides = tuple(side.among(kept, len(self.kept)) for side in self.sides)
        return replace(self, labels=self.labels[kept], mapping=self.mapping[kept], sides=sides, kept=self.kept[kept])

    def spread(self, values: np.ndarray, members: np.ndarray) -> np.ndarray:
        """Values of some of the instances as one for each of all the prompts, NaN where there is none."""
        wide = np.full(self.everyone, np.nan)
        wide[self.kept[members]] = values
        return wide

    @cached_property
    def task(self) -> np.ndarray:
        """(prompt,) the code of its task; -1 where it was not read."""
        return self._wide(self.labels.task)

    @cached_property
    def unit(self) -> np.ndarray:
        """(prompt,) what it was held out with; -1 where it was not read."""
        return self._wide(self.labels.instruction)

    def _wide(self, codes: np.ndarray) -> np.ndarray:
        wide = np.full(self.everyone, -1)
        wide[self.kept] = codes
        return wide

    def seed_of(self, *names: object) -> int:
        """A random stream's own seed."""
        return stream(self.seed, *names)
