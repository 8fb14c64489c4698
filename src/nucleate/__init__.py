"""nucleate: whether, where and when a language model separates the tasks it was taught.

Importing this loads nothing heavy; each name brings its room in when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ClusterScores": "nucleate.measures.scores",
    "Dataset": "nucleate.data.dataset",
    "ProbeCallback": "nucleate.probing.callback",
    "Refused": "nucleate.refusal",
    "StatesTransformer": "nucleate.model.estimator",
    "TSNE": "nucleate.measures.tsne",
    "cluster_scores": "nucleate.measures.scores",
    "load_dataset": "nucleate.data.dataset",
    "load_probe": "nucleate.probing.result",
    "load_run": "nucleate.runs",
    "load_switched": "nucleate.redirecting.loading",
    "natural_dataset": "nucleate.data.natural",
    "probe": "nucleate.probing.probe",
    "read_states": "nucleate.model.states",
    "synthetic_dataset": "nucleate.data.synthetic",
    "tsne": "nucleate.measures.tsne",
    "watch": "nucleate.probing.watch",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nucleate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
