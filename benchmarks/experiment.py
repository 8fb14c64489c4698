"""The whole main experiment, every epoch measured: ours against the same written the obvious way.

    python benchmarks/experiment.py               size small, one epoch (some five minutes, mostly the peer's)
    python benchmarks/experiment.py --epochs 5    about twenty minutes
    python benchmarks/experiment.py --fast        ours by the packed law, as nucleate learn --fast
    python benchmarks/experiment.py --quick       size tiny, two epochs (about a minute)

Ours is `learn` as the command line runs it, from data to finished run folder; the peer is the notebook that one would
write: right-padded shuffled rows, AdamW, and at every epoch border (before the first step too) `output_hidden_states`
over padded rows, scikit-learn's TSNE (its default, Barnes-Hut) for each split and layer, KMeans(n_init=10) for each
space and kind of labels, F1 of the best cluster, adjusted Rand index and adjusted mutual information, and the ten
nearest training instances with the share of the same task and the accuracy of a vote.

What the peer leaves out, and ours does: centred and averaged states; shuffled and regrouped labels;
four of the seven scores; ties, other values of K and neighbours restricted to other inputs and distributions; linear
probe, explained variances and the surface of the text; hard examples; layouts to look at; checkpoints and resuming.

Ours runs before and after the peer; the ratio is taken with each. Both start from the same weights: that they read the
same states and, before training, find the same neighbours is checked. One thread each, unless --threads says otherwise.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

from peers import clock, padded_batches, padded_step, set_threads


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, help="1, with --quick 2")
    parser.add_argument("--size", default="small", choices=("tiny", "small", "paper"))
    parser.add_argument("--quick", action="store_true", help="size tiny")
    parser.add_argument("--fast", action="store_true", help="ours by the packed law; the peer draws rows one by one")
    parser.add_argument("--threads", type=int, default=1, help="for both sides")
    return parser.parse_args()


OPTIONS = arguments()
set_threads(OPTIONS.threads)

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
import torch  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.manifold import TSNE  # noqa: E402
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score  # noqa: E402
from sklearn.metrics.cluster import contingency_matrix  # noqa: E402
from sklearn.neighbors import NearestNeighbors  # noqa: E402

from nucleate.config import Config, configure  # noqa: E402
from nucleate.data.synthetic import generate  # noqa: E402
from nucleate.model.networks import gpt2, word_tokenizer  # noqa: E402
from nucleate.model.prefix_tree import Group  # noqa: E402
from nucleate.model.states import instances_as_groups, read_groups  # noqa: E402
from nucleate.model.training import cosine  # noqa: E402
from nucleate.paper.learning import learn  # noqa: E402
from nucleate.runs import load_run  # noqa: E402

KINDS = ("task", "distribution", "distribution_mapping")
MEASURED = ("subset", "validation", "test")


def main() -> int:
    warnings.simplefilter("ignore", ConvergenceWarning)  # scikit-learn on coinciding points
    torch.set_num_threads(OPTIONS.threads)
    size = "tiny" if OPTIONS.quick else OPTIONS.size
    epochs = OPTIONS.epochs or (2 if OPTIONS.quick else 1)
    law = "tree" if OPTIONS.fast else "rows"
    changes = {"training.epochs": str(epochs), "measure.dense_until": str(epochs), "training.packing": law}
    config = configure(size, changes=changes)
    run_ours(configure("micro"))  # compiles, or loads what was compiled before
    print(
        f"size {size}, ours by {law}, {epochs} epoch(s), {epochs + 1} measured moments, {OPTIONS.threads} thread(s)",
        flush=True,
    )
    first, rows, seconds = run_ours(config)
    print(told("ours", first, seconds), flush=True)
    peer = Peer(config)
    began = time.perf_counter()
    found = peer.run(epochs)
    theirs = time.perf_counter() - began
    print(told("theirs", theirs, peer.seconds), flush=True)
    second, _, seconds = run_ours(config)
    print(told("ours again", second, seconds), flush=True)
    per_moment, per_epoch = seconds["measure"] / (epochs + 1), seconds["train"] / epochs
    read = seconds["read"] / (epochs + 1)
    print(
        f"measuring is {100 * per_moment / per_epoch:.0f} % of the same epoch's training, "
        f"the one forward pass over all instances another {100 * read / per_epoch:.0f} %"
    )
    same = compare(rows, found)
    low, high = sorted((theirs / first, theirs / second))
    print(f"the main experiment at size {size}, {epochs} epoch(s): {np.sqrt(low * high):.1f}x ({low:.1f}-{high:.1f})")
    return 0 if same else 1


def told(name: str, total: float, parts: dict[str, float]) -> str:
    inside = ", ".join(f"{part} {clock(spent)}" for part, spent in parts.items() if part != "total")
    return f"{name}: {clock(total)} ({inside})"


def run_ours(config: Config) -> tuple[float, pl.DataFrame, dict[str, float]]:
    """Seconds from nothing to the finished run folder; its table; its own account of where the time went."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        learn(config, Path(folder) / "run")
        spent = time.perf_counter() - began
        run = load_run(Path(folder) / "run")
        return spent, run.metrics, dict(run.manifest["seconds"])


class Peer:
    """A notebook in one class: what it trains, what it measures, and where its time goes."""

    def __init__(self, config: Config) -> None:
        self.config, self.seconds = config, dict.fromkeys(("train", "states", "tsne", "kmeans", "scores", "knn"), 0.0)
        dataset = generate(config.data, seed=config.seed)
        tokenizer = word_tokenizer([*dataset.vocabulary["instruction"], *dataset.vocabulary["task"]])
        longest = max(len(f"{i.instruction} {i.input} {i.output}".split()) for i in dataset.instances)
        self.pad = int(tokenizer.pad_token_id)
        model = config.model
        self.model = gpt2(
            vocabulary=len(tokenizer),
            width=model.width,
            feed_forward=model.feed_forward,
            layers=model.layers,
            heads=model.heads,
            dropout=model.dropout,
            positions=max(longest, min(64, longest + 4)),
            pad=self.pad,
            seed=config.seed,
        )
        self.groups: dict[str, list[Group]] = {}
        self.labels: dict[str, dict[str, np.ndarray]] = {}
        for split in ("train", *MEASURED):
            instances = dataset.select(split)
            self.groups[split], places = instances_as_groups(tokenizer, instances)
            chosen = [instances[place] for place in places]
            self.labels[split] = {
                "task": np.array([i.task for i in chosen]),
                "distribution": np.array([i.distribution for i in chosen]),
                "distribution_mapping": np.array([f"{i.distribution}/{i.mapping}" for i in chosen]),
                "instruction": np.array([i.instruction for i in chosen]),
                "output": np.array([i.output for i in chosen]),
            }

    def run(self, epochs: int) -> list[dict[tuple[str, int, str], float]]:
        self.check_states()
        training = self.config.training
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        rng = np.random.default_rng(self.config.seed)
        rows = sum(len(group.branches) for group in self.groups["train"])
        steps = -(-rows // training.batch)
        found = [self.measure()]
        for epoch in range(epochs):
            began = time.perf_counter()
            self.model.train()
            order = np.array_split(rng.permutation(rows), range(training.batch, rows, training.batch))
            for step, batch in enumerate(padded_batches(self.groups["train"], self.pad, order=order)):
                for settings in optimizer.param_groups:
                    settings["lr"] = cosine(epoch * steps + step, steps * epochs, training.learning_rate)
                padded_step(self.model, optimizer, batch, max_gradient_norm=training.max_gradient_norm)
            self.seconds["train"] += time.perf_counter() - began
            found.append(self.measure())
        return found

    def check_states(self) -> None:
        ours = read_groups(self.model, self.groups["validation"]).states
        theirs = self.states("validation")
        difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        print(f"the same states: largest difference {difference:.1e} of the largest state", flush=True)
        assert difference < 1e-4

    @torch.no_grad()
    def states(self, split: str) -> np.ndarray:
        """(layer, instance, width) at the last token of the input, the one before the answer."""
        self.model.eval()
        read = []
        for batch in padded_batches(self.groups[split], self.pad, batch=65):
            mask = batch["attention_mask"]
            found = self.model(batch["input_ids"], attention_mask=mask, output_hidden_states=True, use_cache=False)
            place = mask.sum(dim=1) - 2
            read.append(torch.stack([layer[torch.arange(len(place)), place] for layer in found.hidden_states]))
        return torch.cat(read, dim=1).numpy()

    def measure(self) -> dict[tuple[str, int, str], float]:
        """(split, layer, measure) -> value; cluster scores as `<space> <labels> <score>`."""
        states = {split: self.timed("states", lambda split=split: self.states(split)) for split in ("train", *MEASURED)}
        settings = self.config.measure
        found: dict[tuple[str, int, str], float] = {}
        for split in MEASURED:
            labels = self.labels[split]
            for layer, points in enumerate(states[split]):
                embed = TSNE(
                    settings.components,
                    perplexity=settings.perplexity,
                    max_iter=settings.iterations,
                    random_state=0,
                    n_jobs=OPTIONS.threads,
                )
                embedding = self.timed("tsne", lambda embed=embed, points=points: embed.fit_transform(points))
                for space, some in (("raw", points), ("tsne", embedding)):
                    for kind in KINDS:
                        classes = labels[kind]
                        means = KMeans(len(np.unique(classes)), n_init=10, random_state=0)
                        clusters = self.timed("kmeans", lambda means=means, some=some: means.fit_predict(some))
                        scores = self.timed(
                            "scores",
                            lambda classes=classes, clusters=clusters: {
                                "f1": best_cluster_f1(classes, clusters),
                                "ari": adjusted_rand_score(classes, clusters),
                                "ami": adjusted_mutual_info_score(classes, clusters),
                            },
                        )
                        found |= {(split, layer, f"{space} {kind} {name}"): value for name, value in scores.items()}
                share, accuracy = self.timed(
                    "knn",
                    lambda split=split, layer=layer: self.neighbours(
                        split, states[split][layer], states["train"][layer]
                    ),
                )
                found[split, layer, "knn_share"], found[split, layer, "knn_accuracy"] = share, accuracy
        return found

    def neighbours(self, split: str, points: np.ndarray, known: np.ndarray) -> tuple[float, float]:
        """Of the ten nearest training instances of other instructions: share of the same task, accuracy of a vote."""
        here, there = self.labels[split], self.labels["train"]
        search = NearestNeighbors(n_neighbors=10 + 5).fit(known)  # five more, since an instruction has five instances
        share, right = [], []
        for place, near in enumerate(search.kneighbors(points, return_distance=False)):
            near = near[there["instruction"][near] != here["instruction"][place]][:10]
            share.append(np.mean(there["task"][near] == here["task"][place]))
            outputs, votes = np.unique(there["output"][near], return_counts=True)
            right.append(outputs[votes.argmax()] == here["output"][place])
        return float(np.mean(share)), float(np.mean(right))

    def timed(self, part, work):
        began = time.perf_counter()
        result = work()
        self.seconds[part] += time.perf_counter() - began
        return result


def best_cluster_f1(classes: np.ndarray, clusters: np.ndarray) -> float:
    table = contingency_matrix(classes, clusters)
    f1 = 2 * table / (table.sum(axis=1, keepdims=True) + table.sum(axis=0))
    return float((f1.max(axis=1) * table.sum(axis=1)).sum() / table.sum())


def compare(rows: pl.DataFrame, found: list[dict[tuple[str, int, str], float]]) -> bool:
    """Before training, where both hold the same weights: do they find the same?"""
    rows = rows.filter(pl.col("epoch") == 0, pl.col("control") == "none")
    print("before training, layers above the embedding      ours   theirs")
    gaps = {}  # between the means over splits and layers
    for measure in ("raw task f1", "raw task ari", "raw distribution ami", "tsne task f1", "knn_share", "knn_accuracy"):
        space, kind, score = measure.split() if " " in measure else ("raw", "task", measure)
        ours, theirs = [], []
        for (split, layer, name), value in found[0].items():
            if name == measure and layer > 0:  # in layer 0 hundreds coincide: whom the peer takes is chance
                here = rows.filter(
                    pl.col("split") == split,
                    pl.col("layer") == layer,
                    pl.col("space") == space,
                    pl.col("labels") == kind,
                    pl.col("measure") == score,
                )
                ours.append(here["value"].item())
                theirs.append(value)
        gaps[measure] = abs(float(np.mean(ours) - np.mean(theirs)))
        print(f"  {measure:44} {np.mean(ours):7.3f} {np.mean(theirs):8.3f}")
    # Clusters depend on seeds, votes on ties; nothing else may differ.
    return gaps["knn_share"] < 0.01 and gaps["knn_accuracy"] < 0.04 and gaps["raw task f1"] < 0.1


if __name__ == "__main__":
    sys.exit(main())
