"""What a terminal shows: tables that fit, and a time left that can be believed."""

import io
import itertools
from importlib import import_module

import numpy as np
import pytest

from nucleate.config import configure
from nucleate.progress import TimeLeft, Workload, about
from nucleate.terminal import ProgressBar
from nucleate.text_table import text_table

# --- tables -----------------------------------------------------------------------------------------------------------

HEADER = ("measure", "first layer of all", "value", "said")
ROWS = [("neighbours of the same task", 0.25, 12, "of layer [bold]3[/bold]"), ("F1", None, 7, "\x1b[31mred\n\ttext")]


def test_numbers_stand_to_the_right_with_three_decimals_and_text_to_the_left():
    header, first, second = text_table(HEADER, ROWS).splitlines()
    assert first == "neighbours of the same task               0.250     12  of layer [bold]3[/bold]"
    assert header.index("value") + len("value") == first.index("12") + 2 == second.index("7") + 1
    assert header.index("said") == first.index("of layer")


def test_what_could_command_a_terminal_is_shown_as_a_box():
    said = text_table(HEADER, ROWS)
    assert "□[31mred text" in said and "\x1b" not in said


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_fits_the_width_without_breaking_words_or_numbers(width):
    header = ("", "untrained network", "n-grams of the instruction", "n-grams of the prompt", "most confused with")
    rows = [("neighbours of other distributions", 0.123, 0.456, "0.12–0.34", "another task (0.20)")]
    lines = text_table(header, rows, width=width).splitlines()
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    assert words == {word for cell in [*header, "0.123", "0.456", *rows[0][3:], rows[0][0]] for word in cell.split()}


def test_numbers_that_do_not_fit_make_long_lines_and_are_never_cut():
    lines = text_table(["run", *map(str, range(20))], [["x", *[1234.567] * 20]], width=80).splitlines()
    assert lines[1].split() == ["x", *["1234.567"] * 20]


def test_a_table_without_rows_is_its_header_and_a_title_stands_above():
    assert text_table(("one", "two"), [], title="Nothing yet") == "Nothing yet\none  two"


# --- the time left ----------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def within_a_factor(told, factor=1.5, after=0.1):
    """(time left as told, time passed, time in all): right within the factor after the first tenth, to the second."""
    here = [(left, whole - passed) for left, passed, whole in told if passed >= after * whole]
    assert here
    return all(left is not None and true / factor - 1 <= left <= true * factor + 1 for left, true in here)


def followed(durations, parts, guesses):
    """A computation whose pieces take these times; at every piece: what the estimator says, and how far it is."""
    clock = Clock()
    left = TimeLeft(clock)
    work = Workload({name: (parts.count(name), guesses[name]) for name in guesses}, clock=clock)
    left.tell(work.fraction)
    whole, began, told = sum(durations), clock.now, []
    for part, seconds in zip(parts, durations, strict=True):
        for _ in range(4):  # also between two pieces
            clock.now += seconds / 4
            told.append((left.seconds, clock.now - began, whole))
        left.tell(work.did(part))
        told.append((left.seconds, clock.now - began, whole))
    return told


UNEVEN = ["start"] + [part for epoch in range(100) for part in ("train", "states" if epoch % 10 == 0 else "answers")]


def test_the_time_left_is_right_within_a_factor_of_one_and_a_half_after_the_first_tenth_of_uneven_work():
    rng = np.random.default_rng(0)
    takes = {"start": 9.0, "train": 2.0, "answers": 0.3, "states": 12.0}
    durations = [takes[part] * rng.uniform(0.6, 1.4) for part in UNEVEN]
    assert within_a_factor(followed(durations, UNEVEN, {"start": 0.0, "train": 9.0, "answers": 0.9, "states": 9.0}))


def test_a_count_of_epochs_would_not_do():
    """The contrast: measured epochs come first and cost six times as much, so a bare count promises far too long."""
    parts = ["states" if epoch < 20 else "train" for epoch in range(100)]
    durations = [12.0 if part == "states" else 2.0 for part in parts]
    alike = ["any"] * 100
    assert not within_a_factor(followed(durations, alike, {"any": 1.0}))
    assert within_a_factor(followed(durations, parts, {"states": 5.0, "train": 1.0}))


def test_parts_that_have_not_been_timed_are_slower_by_as_much_as_those_that_have():
    clock = Clock()
    work = Workload({"read": (1, 10.0), "measure": (2, 20.0)}, clock=clock)
    clock.now += 30.0  # three times the guess
    assert work.did("read") == pytest.approx(10 / 50) and work.seconds == pytest.approx(150)


def test_a_first_piece_that_waits_for_kernels_counts_as_behind_and_promises_nothing_for_those_to_come():
    clock = Clock()
    left, work = TimeLeft(clock), Workload({"epoch": (5, 1.0)}, clock=clock)
    left.tell(work.fraction)
    for seconds in (30.0, 2.0):
        clock.now += seconds
        left.tell(work.did("epoch"))
    assert work.fraction == pytest.approx(32 / 38) and left.seconds == pytest.approx(6)


def test_what_an_earlier_process_did_counts_as_behind_and_takes_no_time():
    clock = Clock()
    left, work = TimeLeft(clock), Workload({"epoch": (10, 1.0)}, clock=clock)
    work.skip({"epoch": 6})
    left.tell(work.fraction)
    clock.now += 5.0
    left.tell(work.did("epoch"))
    assert work.fraction == pytest.approx(0.7) and left.seconds == pytest.approx(15)


def test_a_part_tells_its_own_fractions_as_those_of_the_whole():
    clock, told = Clock(), []
    work = Workload({"learn": (1, 30.0), "align": (1, 10.0)}, clock=clock)
    learn = work.part("learn", lambda text, fraction: told.append(fraction), resumed=True)
    learn("begins", 0.5)
    clock.now += 15.0
    learn("ends", 1.0)
    align = work.part("align", lambda text, fraction: told.append(fraction))
    clock.now += 5.0
    align("half", 0.5)
    align("a sentence", None)
    assert told == [pytest.approx(15 / 40), pytest.approx(30 / 40), pytest.approx(35 / 40), None]


def test_nothing_is_promised_before_anything_was_gained():
    clock = Clock()
    left = TimeLeft(clock)
    left.tell(0.3)
    clock.now += 60
    left.tell(0.3)
    assert left.seconds is None and str(left) == ""
    clock.now += 60
    left.tell(0.6)
    assert left.seconds == pytest.approx(160) and str(left) == "about 2.7 minutes left"


ROOMS = {"learn": "learning", "pretrain": "pretraining", "align": "alignment"}
SHORT = {"training.epochs": "2", "measure.repeats": "1", "pretrain.epochs": "1", "pretrain.unseen": "no"}


@pytest.mark.parametrize("verb", ROOMS)
def test_the_fractions_of_every_experiment_begin_at_nothing_and_end_at_the_whole(verb, tmp_path):
    room = import_module(f"nucleate.paper.{ROOMS[verb]}")
    told: list[tuple[str, float | None]] = []
    config = configure("micro", changes={**SHORT, "align.epochs": "1"})
    getattr(room, verb)(config, tmp_path / "run", progress=lambda text, fraction: told.append((text, fraction)))
    shares = [fraction for _, fraction in told if fraction is not None]
    assert shares[0] == 0 and shares[-1] == pytest.approx(1) and len(set(shares)) > 2
    assert not any("minutes" in text for text, _ in told)  # no guess that is never renewed


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "about a second"),
        (2.0, "about 2 seconds"),
        (7.4, "about 7 seconds"),
        (73, "about 75 seconds"),
        (90, "about 1.5 minutes"),
        (1500, "about 25 minutes"),
        (5400, "about 1.5 hours"),
        (50 * 3600, "about 50 hours"),
    ],
)
def test_a_guessed_time_says_about_and_no_more_figures_than_a_guess_has(seconds, words):
    assert about(seconds) == words


def test_the_lines_of_a_non_terminal_renew_the_time_left(capsys, monkeypatch):
    clock = itertools.count(0.0, 20.0)
    monkeypatch.setattr("nucleate.terminal.time.monotonic", lambda: next(clock))
    now = Clock()
    with ProgressBar() as progress:
        progress.left = TimeLeft(now)
        for fraction in (0.0, 0.25, 0.5, 1.0):
            progress("epoch", fraction)
            now.now += 30.0
    told = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert told == [
        "0%  epoch",
        "25%  epoch; about 1.5 minutes left",
        "50%  epoch; about 60 seconds left",
        "100%  epoch",
    ]


def test_a_terminal_has_the_time_left_beside_its_bar(monkeypatch):
    from rich import console

    page = console.Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(console, "Console", lambda **_: page)
    now = Clock()
    with ProgressBar() as progress:
        progress("epoch 1", 0.0)
        progress.left._clock = now
        progress.left._begun = (now.now, 0.0)
        now.now += 30.0
        progress("epoch 2", 0.25)
        progress.bar.refresh()
    assert "about 1.5 minutes left" in page.file.getvalue()
