"""Steering vectors out of a probe: at each layer one task's mean state less another's, in files that others load.

`write_means` keeps what a probe has read, `steering_vector` makes a difference of it, `SteeringVector.save` writes it.
Our layer k is what block k puts out, counted from 1, and layer 0 the embedding; in the files blocks count from 0, as in
steering-vectors, repeng and llama.cpp, so that layer k stands there as k - 1. Neither the embedding nor the last layer,
which is read behind the final norm, is the output of a block.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from nucleate.files import write_whole
from nucleate.measures.transfer import CentredStates
from nucleate.probing.design import Design
from nucleate.reading import read_tensors, refusing
from nucleate.refusal import Refused, nearest

CENTRED = "_centred"  # ends the name of a layer's means less what inputs say
_FACTS = "nucleate"  # the one key of what a file tells of itself: safetensors keeps no order of several


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """What to add to the hidden state, once or `strength` times, to go from one task to another."""

    layers: Mapping[int, np.ndarray]  # our number of the layer -> (width,) float32
    target: str
    source: str | None  # None: all other tasks
    strength: int | None  # that turned most answers; None where none was found, or another layer was asked for
    model_type: str  # as transformers calls the architecture

    @property
    def blocks(self) -> dict[int, np.ndarray]:
        """By the number of the block, counted from 0, that puts the state out: the numbers of other tools."""
        return {layer - 1: vector for layer, vector in self.layers.items()}

    def save(self, path: str | Path) -> Path:
        """`….safetensors`: a tensor for each block, named by its number; `….gguf`: a control vector for llama.cpp and
        repeng."""
        place = Path(path).expanduser()
        if place.suffix == ".safetensors":
            facts = {"target": self.target, "source": self.source, "strength": self.strength}
            told = {_FACTS: json.dumps({**facts, "layer_type": "decoder_block", "model_type": self.model_type})}
            tensors = {str(block): vector for block, vector in self.blocks.items()}
            write_whole(place, lambda beside: save_file(tensors, beside, metadata=told))
        elif place.suffix == ".gguf":
            self._save_gguf(place)
        else:
            raise Refused(f"{path}: a steering vector is written as .safetensors or .gguf: name one of these")
        return place

    def _save_gguf(self, place: Path) -> None:
        if find_spec("gguf") is None:
            raise Refused(f"{place}: a GGUF file needs gguf: pip install 'nucleate[gguf]'")
        if 0 in self.blocks:
            raise Refused(
                f"{place}: control vectors have no place for layer 1, the output of the first block: leave it"
            )
        from gguf import GGUFWriter

        def write(beside: Path) -> None:
            writer = GGUFWriter(beside, "controlvector")
            writer.add_string("controlvector.model_hint", self.model_type)
            writer.add_uint32("controlvector.layer_count", len(self.blocks))
            for block, vector in self.blocks.items():
                writer.add_tensor(f"direction.{block}", vector)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()

        write_whole(place, write)


def steering_vector(
    file: Path, target: str, source: str | None, layers: Sequence[int], strength: int | None
) -> SteeringVector:
    """The target's mean less the source's, or less the mean of all other tasks', each weighing the same."""
    if not file.is_file():
        raise Refused(f"{file} does not exist: the looks at a training keep no means, nor did earlier versions; probe")
    tensors, told = read_tensors(file, "probe again", framework="numpy")
    with refusing(f"{file} tells of no means", "probe again"):
        facts = json.loads(told[_FACTS])
        tasks, depth, sharing = facts["tasks"], facts["depth"], set(facts["sharing"])
    involved = set(tasks) if source is None else {target, source}
    ending = CENTRED if involved <= sharing else ""
    kept = {layer: tensors[f"{layer}{ending}"] for layer in layers if f"{layer}{ending}" in tensors}
    for name in (target, *([] if source is None else [source])):
        if name not in tasks:
            raise Refused(f"task {name!r} was not probed{nearest(name, tasks)}")
    if source == target:
        raise Refused(f"source and target are both {target!r}: name two tasks")
    for layer in layers:
        if not 0 < layer < depth:
            why = "the embedding" if layer == 0 else "behind the final norm" if layer == depth else "none of this model"
            raise Refused(f"layer {layer} is {why}: a steering vector is added at layers 1 to {depth - 1}")
        if layer not in kept:
            raise Refused(f"layer {layer} was not probed: probe it too")

    def difference(means: np.ndarray) -> np.ndarray:
        own = tasks.index(target)
        rest = np.delete(means, own, axis=0).mean(axis=0) if source is None else means[tasks.index(source)]
        return np.ascontiguousarray(means[own] - rest, dtype=np.float32)

    return SteeringVector(
        {layer: difference(means) for layer, means in sorted(kept.items())},
        target,
        source,
        strength,
        facts["model_type"],
    )


def write_means(
    file: Path, design: Design, states: np.ndarray, layers: Sequence[int], *, depth: int, model_type: str
) -> None:
    """Each task's mean state in each layer (task, width), of the prompts by which test is moved; and less what their
    inputs alone say, of tasks that share inputs with others (zero for the rest)."""
    known = design.sides[-1].against
    labels = design.labels[known]
    there = np.unique(labels.task)
    sharing = np.unique(CentredStates.of(np.zeros((len(known), 1), dtype=np.float32), labels).labels.task)
    names = {name: [design.tasks[task] for task in some] for name, some in (("tasks", there), ("sharing", sharing))}
    means = {}
    for place, layer in enumerate(layers):
        own = np.asarray(states[place][known], dtype=np.float32)
        means[str(layer)] = _means_of(own, labels.task, there)
        if len(sharing):
            centred = CentredStates.of(own, labels)
            means[f"{layer}{CENTRED}"] = _means_of(centred.points, centred.labels.task, there)
    told = {_FACTS: json.dumps({**names, "depth": depth, "model_type": model_type}, ensure_ascii=False)}
    write_whole(file, lambda beside: save_file(means, beside, metadata=told))


def _means_of(states: np.ndarray, task: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """(task, width) as float32; zero for a task of which there is none."""
    seen = [states[task == one].astype(np.float64) for one in tasks]
    return np.stack([own.sum(axis=0) / max(len(own), 1) for own in seen]).astype(np.float32)
