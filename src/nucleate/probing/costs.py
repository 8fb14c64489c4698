"""About how long a probe takes, and its parts beside each other: told beforehand, and what the time left begins with.

The constants were measured with the natural tasks; only their proportions matter once something has been timed.
"""

from collections.abc import Sequence

import numpy as np

from nucleate.data.prompts import Prompts
from nucleate.measures.baselines import MOST_FEATURES
from nucleate.model.subjects import Subject
from nucleate.probing.layers import MOST_SHOWN
from nucleate.probing.study import ProbeStudy
from nucleate.progress import Workload
from nucleate.threads import thread_count

_DEEP = 5  # layers that are looked at more closely, and in which states are moved
MOVED = 200  # pairs of each half that are moved from task to task
_ALIKE = 12  # moves of a pair in a layer: three strengths, each beside three controls
_OWN = 3  # tokens of a moved prompt that no other shares


def workload_of(study: ProbeStudy, subjects: Sequence[Subject], *, text: bool, act: bool = True) -> Workload:
    """Of these models and, with `text`, of the n-grams; with `act` of what is moved: in guessed seconds, so that what
    is learnt of one model holds for the next."""
    parts = dict.fromkeys(_PARTS, 0.0)
    parts["n-grams"] = sum(costs_of_text(study.prompts).values()) * len(study.design.sides) * text
    for subject in subjects:
        for part, seconds in total_of(study, subject).items():
            parts[part] += seconds if act or part != "moving" else 0.0
    guesses = {part: (seconds, 1.0) for part, seconds in parts.items()}
    return Workload({**guesses, "loading": (len(subjects), 0.0)})  # a disk's time says nothing of the rest


_PARTS = (
    "n-grams",
    "reading",
    "measuring the layers",
    "the neutral instruction",
    "centring",
    "t-SNE",
    "moving",
    "the rest",
)


def total_of(study: ProbeStudy, subject: Subject) -> dict[str, float]:
    """Part -> guessed seconds, for one model."""
    layers, has_inputs = subject.layers(study.settings.layers), study.prompts.has_inputs
    deep = len(layers if study.settings.thorough else spread(layers))
    times = {
        "reading": 2.5 if has_inputs else 2,  # trained, untrained, and the few distinct neutral prompts
        "measuring the layers": len(layers) + deep * (1 + len(study.other_reads)),
        "the neutral instruction": deep * has_inputs,
        "centring": deep * has_inputs,
        "t-SNE": deep,
        "moving": 1,
        "the rest": 1,
    }
    return {part: times[part] * cost for part, cost in costs_of(study, subject).items()}


def costs_of(study: ProbeStudy, subject: Subject) -> dict[str, float]:
    """Part -> guessed seconds for one reading or one layer, from the settings of a model alone."""
    prompts = study.prompts
    count = len(prompts.instances)
    needed, shown = subject.estimate(count, tokens_of(prompts), layers=1), min(count, MOST_SHOWN)
    a_layer = measuring_seconds(needed.state_bytes / 4, count)
    repeats = count / len({one.input for one in prompts.instances})
    ties = min(14, 4 + repeats / 5) if repeats >= 2 else 0  # under the same instruction: equal distances take long
    return {
        "reading": needed.seconds,
        "measuring the layers": a_layer,
        "the neutral instruction": (1 + ties) * a_layer,
        "centring": 0.1 * a_layer,
        "t-SNE": study.settings.iterations * shown**2 * _SECONDS_A_POINT / thread_count(),
        "moving": moving_seconds(study, subject, needed.seconds),
        "the rest": 0.2 * a_layer,
    }


def moving_seconds(study: ProbeStudy, subject: Subject, reading: float) -> float:
    """To move states from task to task, where a reading of all prompts takes so long: by the tokens that are fed, and
    half a reading for the untrained network."""
    layers, count = len(movable(study, subject)), min(MOVED, study.pairs)
    if not layers or not count:
        return 0.0
    whole = np.mean([len(one.instruction) / 4 + len(one.input) / 3 + 1 for one in study.prompts.instances])
    fed = layers * count * (whole + _ALIKE * _OWN) + 2 * count * (whole + _OWN)
    return float(reading * (fed / tokens_of(study.prompts) + 0.5))


def movable(study: ProbeStudy, subject: Subject) -> list[int]:
    """Where states are moved: five layers, evenly spread between the embedding, which holds no task yet, and the last
    layer, behind which there is nothing but the head; all between with `thorough`. None of what gives no answers."""
    config = subject.shape.config
    if config.is_encoder_decoder or subject.shape.get_output_embeddings() is None:
        return []
    depth = subject.layers(None)[-1]
    between = [layer for layer in subject.layers(study.settings.layers) if 0 < layer < depth]
    if study.settings.thorough or len(between) <= _DEEP:
        return between
    wanted = np.linspace(0, depth, _DEEP + 2)[1:-1]
    return sorted({min(between, key=lambda layer: (abs(layer - one), layer)) for one in wanted})


def costs_of_text(prompts: Prompts) -> dict[str, float]:
    """Control -> guessed seconds for one side; most n-grams are zero, and instructions stand there again and again."""
    count = len(prompts.instances)
    dense = measuring_seconds(count * MOST_FEATURES, count) / 3
    has_outputs = prompts.has_inputs and all(one.output is not None for one in prompts.instances)
    return {
        "surface_prompt": 0.35 * dense,
        "surface_instruction": 0.15 * dense * prompts.has_inputs,
        "answers": 0.3 * dense * has_outputs,
    }


def tokens_of(prompts: Prompts) -> int:
    """A guess, from the letters; what instructions share is read once."""
    shared = {one.instruction for one in prompts.instances}
    own = [one.input + (one.output or "") for one in prompts.instances]
    return round(sum(map(len, shared)) / 4 + sum(len(text) / 3 + 1 for text in own))


def measuring_seconds(numbers: float, prompts: int) -> float:
    """For so many numbers of the states of so many prompts, about."""
    return numbers * (prompts * _SECONDS_A_PAIR + _SECONDS_A_NUMBER) / thread_count()


_SECONDS_A_PAIR, _SECONDS_A_NUMBER = 2.5e-10, 2e-6  # of each number of a state: times the prompts, and once
_SECONDS_A_POINT = 6e-10  # of t-SNE: for each iteration and pair of points


def spread(layers: Sequence[int]) -> list[int]:
    """Five of the layers, first and last among them."""
    return [layers[n] for n in sorted(set(np.linspace(0, len(layers) - 1, _DEEP).round().astype(int).tolist()))]
