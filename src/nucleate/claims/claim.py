"""What a claim of the ledger is: one primary quantity, its bar, the controls to beat."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

SIZES_OF_THE_PAPER = ("narrow", "small", "paper", "large")
TEXT = ("surface_instruction", "surface_prompt")
LABELS = ("shuffled", "regrouped")
ALL_CONTROLS = ("untrained", *LABELS, *TEXT)
Quantity = Callable[[pl.DataFrame, str], float | None]  # of a long table and a control
Direction = Literal["above", "below"]


def beyond(direction: Direction, value: float, bar: float) -> float:
    """How far a value is on the claim's side of a bar; 0 is not beyond."""
    return value - bar if direction == "above" else bar - value


def hardest(direction: Direction, controls: Iterable[float]) -> float:
    """Of several controls the one that is hardest to beat."""
    return max(controls) if direction == "above" else min(controls)


@dataclass(frozen=True)
class Claim:
    """One row of the table below. Most are about what `learn` measures, which has to lie above a threshold."""

    id: str
    sentence: str
    paper: str
    sizes: tuple[str, ...]  # where it is judged; empty: anywhere
    primary: Quantity
    threshold: float
    note: str
    experiment: str = "learn"
    direction: Direction = "above"
    controls: tuple[str, ...] = ()
    beside: Mapping[str, Callable[[pl.DataFrame], float | None]] = field(default_factory=dict)
    only: tuple[str, ...] = ()  # the only sizes that it is about, judged or not; empty: any
    may_never_come: bool = False  # undefined for a network that has not learnt, or where the event never happens
    as_at_256: tuple[str, ...] = ()  # the claims whose verdicts at size small it compares with

    @property
    def seeds(self) -> range:
        """The seeds that are judged; of pre-training and alignment those of the first ledger stay."""
        return range(5, 10) if self.experiment == "learn" else range(5)

    def stands(self, table: pl.DataFrame) -> bool | None:
        """Is one seed on the right side of threshold and controls? None where it cannot be told."""
        point = self.primary(table, "none")
        controls = [self.primary(table, control) for control in self.controls]
        known = [value for value in controls if value is not None]
        if point is None:
            return None
        if any(beyond(self.direction, point, bar) <= 0 for bar in (self.threshold, *known)):
            return False
        return True if len(known) == len(controls) else None
