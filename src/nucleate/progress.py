"""How a long computation tells how far it is: a function that is given a sentence, and how much is done.

Library code is silent; the command line shows a bar (`terminal.py`), and from Python any function will do. The time
left follows from the fractions, so these keep a rule: the first one is told when the work begins (0, or what a resumed
run has behind it), and from then on they grow about in proportion to time. `Workload` sees to that where a computation
has parts that cost different amounts.
"""

import time
from collections.abc import Callable, Mapping

Progress = Callable[[str, float | None], None]  # a sentence to keep; or what is going on and the fraction done


def silent(text: str, fraction: float | None) -> None:
    """Shows nothing."""


class Workload:
    """Parts of a computation, each so many equal pieces; what a piece takes is guessed until one has been timed.

    `parts` are {name: (pieces, guessed seconds for one)}. Where the parts that have been timed took twice their guess,
    those still to come are expected to take twice theirs, so only the proportions of the guesses matter.
    """

    def __init__(self, parts: Mapping[str, tuple[float, float]], *, clock: Callable[[], float] = time.monotonic):
        self._guess = {name: seconds for name, (_, seconds) in parts.items()}
        self._pieces = {name: pieces for name, (pieces, _) in parts.items()}
        self._skipped = dict.fromkeys(parts, 0.0)  # pieces
        self._timed: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}  # (pieces, seconds)
        self._clock = clock
        self._now = clock()

    def skip(self, pieces: Mapping[str, float]) -> None:
        """These, by part, were done by an earlier process."""
        for name, count in pieces.items():
            self._skipped[name] += count

    def did(self, name: str, pieces: float = 1) -> float:
        """The time since this was called last went into these; the fraction that is behind now."""
        if pieces > 0:
            now = self._clock()
            self._timed[name].append((pieces, now - self._now))
            self._now = now
        return self.fraction

    def part(self, name: str, progress: Progress, pieces: float = 1, *, resumed: bool = False) -> Progress:
        """For who does these pieces: its own fractions, 0 to 1, as those of the whole. With `resumed` the first one
        that it tells is what an earlier process has done."""
        before = 0.0

        def tell(text: str, fraction: float | None) -> None:
            nonlocal before, resumed
            if fraction is None:
                progress(text, None)
                return
            gained = max(0.0, fraction - before)
            before += gained
            if resumed:
                self.skip({name: gained * pieces})
                gained, resumed = 0.0, False
            progress(text, self.did(name, gained * pieces))

        return tell

    @property
    def seconds(self) -> float:
        """That all takes together, as far as is known."""
        return sum(self._behind_and_left())

    @property
    def fraction(self) -> float:
        """Of these seconds; those that were timed count as they were."""
        behind, left = self._behind_and_left()
        return behind / (behind + left) if left > 0 else 1.0

    def _behind_and_left(self) -> tuple[float, float]:
        behind = left = 0.0
        for name, pace in self._paces().items():
            done = sum(pieces for pieces, _ in self._timed[name])
            behind += sum(seconds for _, seconds in self._timed[name]) + self._skipped[name] * pace
            left += max(0.0, self._pieces[name] - done - self._skipped[name]) * pace
        return behind, left

    def _paces(self) -> dict[str, float]:
        """name -> seconds for one piece to come. The first timing of a part does not count where there is another:
        kernels were compiled meanwhile and files read for the first time."""
        known = {name: timed[1:] or timed for name, timed in self._timed.items()}
        took = {name: tuple(map(sum, zip(*timed, strict=True))) for name, timed in known.items() if timed}
        guessed = sum(pieces * self._guess[name] for name, (pieces, _) in took.items())
        needed = sum(seconds for name, (_, seconds) in took.items() if self._guess[name] > 0)
        slower = needed / guessed if guessed > 0 and needed > 0 else 1.0
        paces = {name: guess * slower for name, guess in self._guess.items()}
        return paces | {name: seconds / pieces for name, (pieces, seconds) in took.items()}


class TimeLeft:
    """How long a computation still takes, from the fractions that it has told so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: tuple[float, float] | None = None  # when, and the fraction then
        self._told = (0.0, 0.0)

    def tell(self, fraction: float) -> None:
        """How far it is now. The first one is where it begins; one that falls back begins anew."""
        self._told = self._clock(), fraction
        if self._begun is None or fraction < self._begun[1]:
            self._begun = self._told

    @property
    def seconds(self) -> float | None:
        """From now on; None while nothing has been gained."""
        if self._begun is None or self._told[1] <= self._begun[1]:
            return None
        (began, first), (told, fraction) = self._begun, self._told
        left = (told - began) / (fraction - first) * (1 - fraction)
        return max(0.0, left - (self._clock() - told))

    def __str__(self) -> str:
        seconds = self.seconds
        return "" if seconds is None else f"{about(seconds)} left"


def about(seconds: float) -> str:
    """A guessed time in words, no more exact than a guess is."""
    if seconds < 1.5:
        return "about a second"
    if seconds < 90:
        return f"about {_round(seconds)} seconds"
    if seconds < 90 * 60:
        return f"about {_round(seconds / 60)} minutes"
    return f"about {_round(seconds / 3600)} hours"


def _round(number: float) -> str:
    """Two figures at most: 73 seconds are 75, 1.52 hours are 1.5."""
    if number >= 20:
        return f"{5 * round(number / 5)}"
    return f"{number:.0f}" if number >= 3 else f"{number:.1f}".removesuffix(".0")
