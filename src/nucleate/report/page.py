"""One offline page from run folders: the stage where clusters form, the curves, the figures, the tables.

`write_page` fills page.html; style and scripts lie beside it. Whatever comes from a run is text, never markup: the
template escapes it, what the scripts show travels as packed data and is set as text, pictures are `<img>` (an SVG there
can neither run a script nor fetch anything), and the page's policy allows this style, this script and pictures inside
the file, nothing else.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nucleate.files import write_text
from nucleate.intervals import Interval
from nucleate.reading import read_json_rows
from nucleate.report.application_tables import over_seeds
from nucleate.report.figures import Drawn, Runs, draw_svg
from nucleate.report.pack import Chunks
from nucleate.report.page_tables import run_tables
from nucleate.report.scenes import cut, scenes_of
from nucleate.report.seeds import Series, series_of
from nucleate.report.sentences import sentences_of
from nucleate.report.tables import (
    Cell,
    Table,
    answers_table,
    counts_table,
    last_measured_epoch,
    manifest_table,
    settings_table,
    summary_split,
    summary_table,
)
from nucleate.runs import Run

Folders = tuple[Path, ...]  # those of the runs that are drawn as one
LONGEST = 300  # characters of a cell; what is longer is cut, with its length told
SCRIPTS = (
    "unpack.js",
    "drawing.js",
    "save.js",
    "stage.js",
    "curves.js",
    "tables.js",
    "page.js",
    "panels.js",
    "interaction.js",
)  # one after the other


def folders_of(runs: Sequence[Run]) -> Folders:
    return tuple(run.folder for run in runs)


def write_page(runs: Runs, path: Path, drawn: Mapping[Folders, Drawn] | None = None) -> Path:
    """`page.html` of one run or several, each a section of its own; the same runs give the same bytes. Figures that
    `draw_figures` has just drawn of these folders are not drawn again."""
    several = [runs] if isinstance(runs, Run) else list(runs)
    page = files(__package__)
    style, *scripts = (page.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", *SCRIPTS))
    script = "\n".join(scripts)
    chunks = Chunks()
    scenes = [scene for run in several for scene in scenes_of(run, chunks)]
    head = chunks.json({"scenes": scenes})
    series = [one for one in series_of(several) if len(one.runs) > 1]
    together = [_together(one, chunks, drawn or {}) for one in series]
    shown_together = {run.folder for one in series for run in one.runs}
    sections = [
        _section(run, number, [] if run.folder in shown_together else _pictures([run], chunks, drawn or {}))
        for number, run in enumerate(several)
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"shown": shown, "words": words}
    filled = environment.from_string(page.joinpath("page.html").read_text(encoding="utf-8")).render(
        title=_title(several),
        policy=_policy(style, script),
        style=Markup(style),  # noqa: S704 -- files of the package; all that a run holds is escaped
        script=Markup(script),  # noqa: S704
        chunks={"chunk-head" if name == head else name: text for name, text in chunks.texts.items()},
        ledger=_ledger([path.parent, *(run.folder for run in several)]),
        together=together,
        runs=sections,
    )
    write_text(path, filled)
    return path


@dataclass(frozen=True)
class Picture:
    """A figure inside the page: the chunk that holds its SVG, its size in CSS pixels, what it shows."""

    chunk: str
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class Section:
    """What the template needs of one run."""

    anchor: str
    name: str
    facts: str
    unfinished: str | None
    headlines: list[str]
    summary: Table
    summary_words: str
    figures: list[Picture]
    tables: list[tuple[str, str, Table]]  # its name, what it shows, its content


def _section(run: Run, number: int, pictures: list[Picture]) -> Section:
    config = run.config
    verb, size = config.get("verb", "run"), config.get("size", "?")
    facts = [f"{verb}", f"{'prompts' if 'models' in config or 'network' in config else 'size'} {size}"]
    facts.append(f"seed {config.get('seed', '?')}")
    model = config.get("model", {})
    if "width" in model and "layers" in model:
        facts.append(f"width {model['width']}, {model['layers']} layers")
    if run.is_packed:
        facts.append("packed law (--fast)")
    status = run.state
    return Section(
        anchor=f"run-{number}",
        name=run.folder.resolve().name,
        facts=" · ".join(facts),
        unfinished=None if status == "done" else status,
        headlines=[cut(sentence, LONGEST * 3) for sentence in sentences_of(run)],
        summary=summary_table(run),
        summary_words=f"Split: {summary_split(run)}; epoch {last_measured_epoch(run)}; labels: task.",
        figures=pictures,
        tables=[
            *run_tables(run),
            ("Some unseen prompts and the answers given", "Unseen prompts, expected and given", answers_table(run)),
            ("The data in numbers", "Counts", counts_table(run)),
            ("Settings", "Every setting of the run", settings_table(run)),
            ("Manifest", "Versions, machine, seeds, hashes, seconds", manifest_table(run)),
        ],
    )


@dataclass(frozen=True)
class Together:
    """What the template needs of runs that differ in their seed alone."""

    words: str
    figures: list[Picture]
    table: tuple[str, Table] | None


def _together(series: Series, chunks: Chunks, drawn: Mapping[Folders, Drawn]) -> Together:
    words = f"{series.runs[0].config['verb']}, {series.words}"
    return Together(words, _pictures(series.runs, chunks, drawn), over_seeds(series))


def _pictures(runs: Sequence[Run], chunks: Chunks, drawn: Mapping[Folders, Drawn]) -> list[Picture]:
    figures = drawn.get(folders_of(runs)) or draw_svg(runs)
    return [
        Picture(chunks.text(svg.decode()), width, height, _caption(name))
        for name, (svg, width, height) in figures.items()
    ]


_LEDGER = ("claim", "size", "law", "verdict", "reason", "seeds", "quantity", "bar", "estimate", "difference")


def _ledger(folders: Sequence[Path]) -> Table:
    """The verdicts that `nucleate claims` left beside the page or in a run, each claim with its sentence. A file of an
    earlier version has fewer columns."""
    found = next((folder / "claims.json" for folder in folders if (folder / "claims.json").is_file()), None)
    rows = [_in_words(row) for row in read_json_rows(found, "judge the runs again")] if found is not None else []
    header = tuple(name for name in _LEDGER if any(name in row for row in rows))
    return Table(header, [tuple(_listed(row.get(name)) for name in header) for row in rows])


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    """The claim with its sentence, what is measured in a few words, its bar, numbers with their intervals; what is not
    judged is named so."""
    told = row | {"claim": ". ".join(row[key] for key in ("claim", "sentence") if key in row)}
    if "primary" in row:
        told["quantity"] = row.get("meaning", words(row["primary"])).partition(". ")[0].rstrip(".")
    if "threshold" in row:
        told["bar"] = f"{row.get('direction', '')} {row['threshold']:.3g}".strip()
    for name, low, high in (("estimate", "low", "high"), ("difference", "difference_low", "difference_high")):
        if row.get(low) is not None:
            told[name] = str(Interval(row[name], row[low], row[high]))
    return told if row.get("judged", True) else told | {"verdict": "exploratory"}


def _listed(value: Any) -> Cell:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


_CAPTIONS = {
    "dataset": "The synthetic data: a task with its mappings, instructions from its distributions, and a hard example.",
    "clustering_f1": "F1 of k-means clusters against tasks, distributions and distribution-mapping pairs, per layer "
    "over epochs, on the training subset and on validation; controls in grey.",
    "learning": "Training loss, accuracy on the training subset and on validation over epochs, the best epoch marked.",
    "variance": "What the states are made of: the share of their variance that lies between inputs, between tasks and "
    "between outputs, per layer over epochs.",
    "neighbours": "Share of an unseen instance's K nearest training instances that have its task, and the accuracy of "
    "answering as they do, per layer over epochs; controls in grey.",
    "clustering_all": "F1, ARI and AMI of k-means clusters, per layer over epochs, for the three kinds of labels; "
    "controls in grey.",
    "pretraining": "F1 of k-means clusters of the states at the special token, a point per instruction, per layer over "
    "the epochs of the pre-training with task identities; controls in grey.",
    "finetuning": "Validation accuracy while each arm is fine-tuned, on tasks of the pre-training and on others.",
    "table_2": "Table 2. Accuracy on the source tasks after each method, and what all other tasks lost: a line for "
    "each seed, crosses for the paper's numbers.",
    "alignment": "What each method teaches, epoch by epoch, and what that costs all other tasks.",
    "probe_layers": "How far tasks are separate in each layer of each model, held-out prompts; controls beside.",
    "probe_tasks": "Each task by itself: how separate it is at the best layer, with intervals.",
    "probe_confusion": "Which tasks the neighbours of a task's prompts have.",
    "probe_series": "How separate the tasks are from checkpoint to checkpoint.",
    "transfer": "Share of answers that become another task's when the state at the input is moved there in one layer, "
    "by the mean of that task (once, twice, three times) or by a whole state; controls beside it.",
    "layouts": "Where the hidden states lie: a point per instance, a colour per task, rows are layers, columns epochs.",
}


def _caption(name: str) -> str:
    """`figure_2_clustering_f1` -> `Figure 2. F1 of …`; the layouts have no number in the paper."""
    _, number, *rest = name.split("_")
    if not number[0].isdigit():
        number, rest = "", [number, *rest]
    name = "_".join(rest)
    return (f"Figure {number}. " if number else "") + _CAPTIONS.get(name, words(name).capitalize() + ".")


def _title(runs: Sequence[Run]) -> str:
    return f"nucleate: {runs[0].folder.resolve().name}" if len(runs) == 1 else f"nucleate: {len(runs)} runs"


def _policy(style: str, script: str) -> str:
    """Nothing but this style, this script and pictures inside the file."""
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def shown(value: object) -> str:
    """A value as a cell shows it: three decimals, whole numbers whole, long text cut with its length told."""
    if isinstance(value, float):
        return f"{value:.3f}" if 0.001 <= abs(value) < 1e6 or value == 0 else f"{value:.3g}"
    return cut(str(value), LONGEST)


def words(name: str) -> str:
    """A column's name in words."""
    return name.replace("_", " ")
