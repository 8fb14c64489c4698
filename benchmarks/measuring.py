"""What a probe's measuring costs, part by part, of invented states for prompts that come with the package; one thread.

    python benchmarks/measuring.py                        natural: 8,800 prompts, two layers of width 576
    python benchmarks/measuring.py natural-shared

Processor seconds of this process, since other work may go on beside: the layers (neighbours, k-means, linear probes),
the closer look at them (centred states, t-SNE), intervals, and the n-grams as a control, which have 4,096 features.
"""

import sys
import time
from collections.abc import Callable

from peers import set_threads

set_threads(1)

import numpy as np  # noqa: E402

from nucleate.data.prompts import read_prompts  # noqa: E402
from nucleate.measures.baselines import surface_features  # noqa: E402
from nucleate.probing.layers import interval_rows, look_closer, measure_layers  # noqa: E402
from nucleate.probing.settings import ProbeSettings  # noqa: E402
from nucleate.probing.study import ProbeStudy  # noqa: E402

WIDTH, LAYERS = 576, [0, 1]


def untold(what: str, done: int, of: int) -> None:
    """Nobody hears of it."""


def timed(what: str, work: Callable[[], object]) -> None:
    began = time.process_time()
    work()
    print(f"  {what:24} {time.process_time() - began:6.1f} s", flush=True)


def main(name: str) -> None:
    study = ProbeStudy.of(read_prompts(name), ProbeSettings())
    design, labels, rng = study.design, study.design.labels, np.random.default_rng(0)

    def states() -> np.ndarray:
        """Of one layer: something of the instruction, the input and the task in each."""
        parts = ((1.0, labels.instruction), (1.5, labels.input), (0.5, labels.task))
        found = sum(weight * rng.normal(size=(code.max() + 2, WIDTH))[code] for weight, code in parts)
        return (found + 0.3 * rng.normal(size=(len(labels), WIDTH))).astype(np.float32)

    layers = np.stack([states() for _ in LAYERS])
    few = design.only(np.arange(0, len(labels), max(1, len(labels) // 1200)))
    measure_layers(few, layers[:, few.kept], LAYERS, untold)  # compiles
    texts = [f"{one.instruction} {one.input}".strip() for one in study.prompts.instances]
    known = design.sides[-1].against
    print(f"{name}: {len(labels):,} prompts, {len(LAYERS)} layers of width {WIDTH}")
    measured = measure_layers(few, layers[:, few.kept], LAYERS, untold)
    design.labellings, design.folds, design.dealt  # noqa: B018 -- made once for all layers
    timed("the layers", lambda: measured.rows.extend(measure_layers(design, layers, LAYERS, untold).rows))
    timed("the closer look", lambda: look_closer(design, layers, LAYERS, untold))
    timed("intervals", lambda: interval_rows(few, measured, layers[0, few.kept]))
    features = surface_features([texts[place] for place in known], texts)[np.newaxis]
    timed("n-grams, both halves", lambda: measure_layers(design, features, [0], untold, sides=design.sides[1:]))
    timed("n-grams, all", lambda: measure_layers(design, features, [0], untold, sides=design.sides[:1]))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "natural")
