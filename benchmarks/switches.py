"""For how many other instances is a switch on, by its learning rate? Why the MLP loses more than the linear one.

    python benchmarks/switches.py RUN [RUN ...] > results/switches.md

Teaches both switches at every rate of the grid on the networks of finished runs of `nucleate align` (with checkpoints)
that differ in their seed, and prints Markdown: means over the seeds on test. Nothing is chosen here.
"""

import sys

import numpy as np
import torch

from nucleate.data.dataset import load_dataset
from nucleate.intervals import t_interval
from nucleate.model.networks import load_network
from nucleate.model.switch import Switch, SwitchTraining, learn_switch
from nucleate.paper.corrections import Correction, Network
from nucleate.runs import Run, load_run
from nucleate.streams import stream

EXAMPLES = (1, 10)  # of each other task


def main(folders: list[str]) -> None:
    if not folders:
        print(__doc__)
        return
    torch.set_num_threads(1)
    runs = [load_run(folder) for folder in folders]
    seeds, size = [run.config["seed"] for run in runs], runs[0].config["size"]
    corrections = [correction_of(run) for run in runs]
    print(f"# Both switches at every rate, size {size}, seeds {', '.join(map(str, seeds))}\n")
    print(
        "On test: the share of source instances for which the switch stays off, and of all others for which it is on,"
    )
    print(
        "means over seeds with 95 % t-intervals. The targets are among the others; a switch that errs there harms none."
    )
    print("Made by `python benchmarks/switches.py RUN …` of the runs of `nucleate sweep align`.")
    for count in EXAMPLES:
        print(f"\n## {count} example{'s' if count > 1 else ''} of each other task\n")
        print("| rate | linear: off for sources | MLP: off for sources | linear: on for others | MLP: on for others |")
        print("|---|---|---|---|---|")
        for rate in rates_of(runs[0]):
            found = {
                kind: np.array(
                    [errors(one, run, kind, rate, count) for one, run in zip(corrections, runs, strict=True)]
                )
                for kind in ("linear", "mlp")
            }
            cells = [told(found[kind][:, side]) for side in (0, 1) for kind in ("linear", "mlp")]
            print(f"| {rate:.2g} | {' | '.join(cells)} |", flush=True)


def correction_of(run: Run) -> Correction:
    """The paper's redirection, of the network before it."""
    model, _ = load_network(run.folder / "checkpoints" / "base")
    return Network(model, load_dataset(run.folder / "data"), run.config["seed"]).redirection


def rates_of(run: Run) -> list[float]:
    """The grid of the run."""
    grid = run.config["align"]
    return [float(rate) for rate in np.geomspace(grid["lowest_rate"], grid["highest_rate"], grid["rates"])]


def errors(correction: Correction, run: Run, kind: str, rate: float, count: int) -> tuple[float, float]:
    """(share of sources missed, share of others switched), on test."""
    seed, grid, training = run.config["seed"], run.config["align"], run.config["training"]
    switch = Switch(correction.memory.states.shape[1], kind, seed=stream(seed, "switch"))
    pace = SwitchTraining(
        epochs=grid["epochs"],
        batch=grid["batch"],
        learning_rate=rate,
        seed=stream(seed, "align"),
        weight_decay=training["weight_decay"],
        max_gradient_norm=training["max_gradient_norm"],
    )
    learn_switch(switch, correction.memory, correction.examples(count), pace)
    on, test = switch.is_on(correction.answers_and_states[1]), correction.places("test")
    return float((~on[test & correction.corrected]).mean()), float(on[test & ~correction.corrected].mean())


def told(values: np.ndarray) -> str:
    return str(t_interval(values)) if len(values) > 1 else f"{values[0]:.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
