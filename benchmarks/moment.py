"""Where the seconds of one measured moment go: the same survey as `nucleate learn` makes, taken apart; one thread.

    python benchmarks/moment.py                  size small (about a minute)
    python benchmarks/moment.py --size paper

States are those of an untrained network; the parts' times lie inside the whole and do not overlap.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from peers import set_threads

set_threads(1)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from nucleate.config import configure  # noqa: E402
from nucleate.data.synthetic import generate  # noqa: E402
from nucleate.measures import survey as surveys  # noqa: E402
from nucleate.measures.tsne import tsne  # noqa: E402
from nucleate.model.states import read_groups  # noqa: E402
from nucleate.paper.instances import MEASURED, Members, places_of  # noqa: E402
from nucleate.paper.network import make_network  # noqa: E402
from nucleate.paper.surveys import labels_of, survey_of  # noqa: E402

PARTS = {
    "t-SNE": (surveys, "tsne"),
    "neighbours": (surveys, "_neighbour_rows"),
    "k-means": (surveys, "kmeans_many"),
    "scores": (surveys, "_score_rows"),
    "linear probe": (surveys.LinearProbe, "fit"),
    "input means": (surveys.InputMeans, "of"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=("tiny", "small", "paper"))
    config = configure(parser.parse_args().size)
    torch.set_num_threads(1)
    dataset = generate(config.data, seed=config.seed)
    model, tokenizer = make_network(config, dataset, device="cpu")
    members = Members.of(tokenizer, [i for split in ("train", "validation", "test") for i in dataset.select(split)])
    read = read_groups(model, members.groups).states
    states = {s: read[:, places_of(members.instances, s)] for s in (*MEASURED, "train")}
    labelling = labels_of(config, members.instances)
    survey_of(labelling, states, config.measure)  # loads or compiles
    spent: dict[str, float] = defaultdict(float)
    for name, (home, function) in PARTS.items():
        setattr(home, function, timed(name, getattr(home, function), spent))
    began = time.perf_counter()
    survey_of(labelling, states, config.measure)
    whole = time.perf_counter() - began
    shown = np.concatenate([states["subset"], states["validation"]], axis=1)
    settings = {"components": 3, "perplexity": config.measure.perplexity, "threads": 1}
    before = [one.embedding for one in tsne(list(shown), iterations=250, **settings)]
    began = time.perf_counter()
    tsne(list(shown), iterations=config.measure.display_iterations, start=before, **settings)
    print(f"{config.size}: one survey {whole:.2f} s, display layouts {time.perf_counter() - began:.2f} s beside it")
    for name, seconds in spent.items():
        print(f"  {name:14} {seconds:6.2f} s")
    print(f"  {'the rest':14} {whole - sum(spent.values()):6.2f} s")


def timed(name: str, work: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    def inside(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return work(*given, **named)
        finally:
            spent[name] += time.perf_counter() - began

    return inside


if __name__ == "__main__":
    main()
