"""What each verb of the command line does with what it was told; the science is in the rooms that they call."""

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleate.config import Config, describe, to_toml
from nucleate.options import (
    REDIRECT,
    SHORT,
    config_of,
    given_of,
    key_and_value,
)
from nucleate.probing.settings import ProbeSettings, TransferSettings, bar
from nucleate.reading import shown
from nucleate.redirecting.settings import RedirectSettings
from nucleate.refusal import FellShort, Refused
from nucleate.terminal import ProgressBar, list_runs, print_summary, print_table

if TYPE_CHECKING:
    from nucleate.engines.sweep import Planned
    from nucleate.report.figures import Drawn
    from nucleate.report.page import Folders


def data(asked: argparse.Namespace) -> None:
    from nucleate.data.synthetic import generate
    from nucleate.files import make_folder
    from nucleate.report.dataset_figure import figure_1

    config = config_of(asked)
    out = Path(asked.out)
    if out.is_dir() and any(out.iterdir()) and not asked.overwrite:
        raise Refused(f"{out} exists; --overwrite writes the dataset there again, or name another folder")
    dataset = generate(config.data, seed=config.seed, kind=asked.kind)
    make_folder(out)
    dataset.save(out)
    figure_1(dataset.frame(), {"mappings": dataset.mappings, "patterns": dataset.patterns}, out)
    for name, count in dataset.counts.items():
        print(f"{name:28} {count}")
    print(out / "dataset.parquet")


def learn(asked: argparse.Namespace) -> None:
    from nucleate.paper.learning import learn

    _run(asked, partial(learn, config_of(asked), Path(asked.out)))


def pretrain(asked: argparse.Namespace) -> None:
    from nucleate.paper.pretraining import pretrain

    _run(asked, partial(pretrain, config_of(asked), Path(asked.out)))


def align(asked: argparse.Namespace) -> None:
    if asked.model is not None:
        _redirect(asked)
        return
    from nucleate.paper.alignment import align

    _check_redirect(asked)
    if asked.out is None:
        raise Refused("nucleate align needs --out RUN, the folder to write to")
    _run(asked, partial(align, config_of(asked), Path(asked.out)))


def _check_redirect(asked: argparse.Namespace) -> None:
    """Refuse options of a ready-made model where there is none."""
    given = next((name for name in REDIRECT if getattr(asked, name, None) is not None), None)
    if given is not None:
        raise Refused(f"--{given.replace('_', '-')} belongs to a model that is redirected: give --model M")


def _redirect(asked: argparse.Namespace) -> None:
    """The same on a ready-made model (--model)."""
    from nucleate.model.places import at_the_door
    from nucleate.redirecting.prompts import redirection_of
    from nucleate.redirecting.stored import network_of

    barred = next((name for name in ("size", *SHORT, "fast", "set") if getattr(asked, name)), None)
    if barred is not None:
        raise Refused(f"--{barred} belongs to the paper's own networks: leave it out, or leave --model out")
    if asked.data is None:
        raise Refused("nucleate align --model needs --data D, the labelled prompts")
    if asked.out is None and not asked.estimate:
        raise Refused("nucleate align needs --out RUN, the folder to write to (or --estimate, which writes nothing)")
    settings = RedirectSettings(**given_of(asked, RedirectSettings))
    read = partial(redirection_of, asked.data, settings)
    at_the_door([network_of(asked.model)[0]], read=read, weights=not asked.estimate)

    from nucleate.redirecting.redirect import budget, redirect_into
    from nucleate.report.redirection import verdict_of
    from nucleate.runs import load_run

    needed, *doubts = budget(asked.model, asked.data, settings)
    if asked.estimate:
        asked.estimate = [needed, *doubts]  # for --json
        print("\n".join(asked.estimate))
        return
    print(needed, file=sys.stderr)  # the doubts are told again when it begins
    _run(asked, partial(redirect_into, Path(asked.out), asked.model, asked.data, settings))
    print(f"switched model: {Path(asked.out) / 'model'}")
    verdict = verdict_of(load_run(asked.out))
    if verdict is not None and verdict.missed:
        raise FellShort("; ".join(verdict.missed))


def probe(asked: argparse.Namespace) -> None:
    from nucleate.data.prompts import read_prompts
    from nucleate.engines.door import reader
    from nucleate.model.places import at_the_door

    settings, bars = ProbeSettings(**given_of(asked, ProbeSettings)), [bar(text) for text in asked.require]
    if asked.out is None and not asked.estimate:
        raise Refused("nucleate probe needs --out RUN, the folder to write to (or --estimate, which writes nothing)")
    models = [*asked.models, *([] if asked.base is None else [asked.base])]
    engine = reader(asked.engine, workers=asked.workers, address=asked.address)
    read = partial(read_prompts, asked.data, columns=settings.columns, limit=settings.limit)
    at_the_door(models, settings.revisions, read, weights=not asked.estimate)

    from nucleate.probing.bars import missed
    from nucleate.probing.probe import budget, probe_into
    from nucleate.probing.result import load_probe

    if asked.estimate:
        asked.estimate = budget(asked.models, asked.data, settings, base=asked.base)  # for --json
        print("\n".join(asked.estimate))
        return
    into = partial(probe_into, Path(asked.out), asked.models, asked.data, settings, base=asked.base, engine=engine)
    _run(asked, into)
    if bars:
        found = load_probe(asked.out)
        if short := missed(bars, found.metrics, found.tasks, found.coordinates, found.main):
            raise FellShort("; ".join(short))


def transfer(asked: argparse.Namespace) -> None:
    from nucleate.data.prompts import read_prompts
    from nucleate.model.places import at_the_door

    settings = TransferSettings(**given_of(asked, TransferSettings))
    revisions = [settings.revision] if settings.revision else []
    read = partial(read_prompts, asked.data, columns=settings.columns, limit=settings.limit)
    at_the_door([asked.model], revisions, read)

    from nucleate.probing.transfer import transfer_into

    _run(asked, partial(transfer_into, Path(asked.out), asked.model, asked.data, settings))


def _run(asked: argparse.Namespace, experiment: Callable[..., bool]) -> None:
    """Into the run folder --out, with its page; a finished one that is drawn already stays as it is."""
    out = Path(asked.out)
    with ProgressBar() as progress:
        done = experiment(resume=asked.resume, overwrite=asked.overwrite, progress=progress)
    if not done and (out / "page.html").exists():
        print(f"{out} is finished already; nothing was changed\npage: {out / 'page.html'}")
        return
    _redraw([out])


def _experiments() -> dict[str, Any]:
    """The experiments on networks of our own, by the verb that runs each; their `dataset_for` refuses at the door."""
    from nucleate.paper import alignment, learning, pretraining

    return {"learn": learning, "pretrain": pretraining, "align": alignment}


_PROBE = 60.0  # about what a probe of a small model takes, in epochs of the main training


def reproduce(asked: argparse.Namespace) -> None:
    """A run folder per experiment, then one ledger and one page; what is newer than the page is drawn again."""
    config, out = config_of(asked), Path(asked.out)
    if asked.model is not None:
        from nucleate.model.places import at_the_door

        at_the_door([asked.model])

    from nucleate.paper.lengths import lengths_of
    from nucleate.probing import probe
    from nucleate.progress import Workload
    from nucleate.report.figures import draw_figures
    from nucleate.runs import clear_runs, load_run

    rooms = _experiments()
    experiments: dict[str, Callable[..., bool]] = {
        verb: partial(getattr(room, verb), config) for verb, room in rooms.items()
    }
    if asked.model is not None:
        settings = ProbeSettings(seed=config.seed, device=config.device, dtype=config.dtype)
        probe.check([asked.model], "natural", settings)
        experiments["probe"] = lambda folder, **again: probe.probe_into(
            folder, [asked.model], "natural", settings, **again
        )
    for room in rooms.values():  # refused before the first experiment has taken its hours
        room.dataset_for(config)
    folders = [out / name for name in experiments]
    begun = next((folder for folder in folders if folder.exists() and any(folder.iterdir())), None)
    if begun is not None and not (asked.resume or asked.overwrite):
        raise Refused(f"{begun} exists; --resume goes on from what is there, --overwrite replaces it")
    if asked.overwrite:  # all at once: what goes on after an interruption finds nothing that is older
        clear_runs(folders, reads=[asked.model])
    lengths = {"probe": _PROBE, **lengths_of(config)}
    workload = Workload({verb: (1, lengths[verb]) for verb in experiments})
    with ProgressBar() as progress:
        for folder, (verb, experiment) in zip(folders, experiments.items(), strict=True):
            progress(f"{verb}:", None)
            own = workload.part(verb, progress, resumed=True)
            if experiment(folder, resume=asked.resume, progress=own):
                own(f"{verb} is done", 1.0)
            else:
                workload.skip({verb: 1})
    page = out / "page.html"
    drawn_at = page.stat().st_mtime_ns if page.exists() else 0
    new = [folder for folder in folders if (folder / "metrics.parquet").stat().st_mtime_ns >= drawn_at]
    if not new:
        print(f"{out} is finished already; nothing was changed\npage: {page}")
        return
    _ledger(folders, out)  # before the page, which shows it
    if asked.model is None:
        print("C15 needs a model: the same command with --resume --model PATH runs it")
    drawn: dict[Folders, Drawn] = {(folder,): draw_figures(load_run(folder), folder / "figures") for folder in new}
    _redraw_together(folders, out, drawn)


def sweep(asked: argparse.Namespace) -> int:
    from nucleate.engines.axes import axis, combinations
    from nucleate.engines.door import runner
    from nucleate.engines.sweep import sweep
    from nucleate.paper.trainings import PACKED_NOTE

    folder = Path(asked.out)
    run_all = runner(
        asked.engine, folder, workers=asked.workers, address=asked.address, minutes=asked.minutes, memory=asked.memory
    )
    options = {"seed": "seed", **SHORT, "dtype": "dtype"}
    axes = [axis(f"--{name}", key, text) for name, key in options.items() if (text := getattr(asked, name)) is not None]
    axes += [axis(f"--set {key}", key, text) for key, text in map(key_and_value, asked.set)]
    varying = {one.key for one in axes if len(one.values) > 1}
    runs, packed = [], False
    for name, values in combinations(axes, alone=asked.swept):
        words = [word for one, value in zip(axes, values, strict=True) for word in one.words(value)]
        run, config = _planned(asked, name, words, varying)
        runs.append(run)
        packed |= config.training.is_packed
    with ProgressBar() as progress:
        if packed:
            progress(PACKED_NOTE, None)
        outcomes = sweep(
            runs,
            folder,
            run_all=run_all,
            resume=asked.resume,
            overwrite=asked.overwrite,
            progress=progress,
        )
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not outcomes:
        print(f"all {len(runs)} runs in {asked.out} are finished already")
    print(f"{len(runs) - len(failed)} of {len(runs)} runs: {Path(asked.out) / 'metrics.parquet'}")
    for outcome in failed:
        print(f"{outcome.name} failed: {outcome.error}", file=sys.stderr)
    if failed:
        again = "the same command with --resume tries them again"
        print(f"nucleate: failed: {len(failed)} of {len(runs)} runs; {again}", file=sys.stderr)
    return 1 if failed else 0


def _planned(
    asked: argparse.Namespace, name: str, words: Sequence[str], varying: Collection[str]
) -> tuple["Planned", Config]:
    """One run of a sweep, parsed and configured as its verb will: what is refused there is refused here, before all."""
    from nucleate.devices import device_for
    from nucleate.engines.sweep import Planned

    arguments = (asked.swept, *asked.passed, *words)
    one = asked.parse([*arguments, "--out", str(Path(asked.out) / name)])
    if getattr(one, "model", None) is not None:
        raise Refused("sweep runs the paper's own networks: leave --model out, and call nucleate align for each model")
    _check_redirect(one)
    config = config_of(one)
    device_for(config.device)
    _experiments()[asked.swept].dataset_for(config)
    own = {
        "verb",
        "run",
        "size",
        *SHORT,
        "seed",
        "device",
        "dtype",
        "fast",
        "set",
        "out",
        "resume",
        "overwrite",
        "json",
    }
    others = {f"option_{key}": str(value) for key, value in vars(one).items() if key not in own and value is not None}
    varied = {key: value for key, value, _ in describe(config) if key in varying}
    return Planned(name, arguments, to_toml(config, verb=asked.swept, **others), varied), config


def report(asked: argparse.Namespace) -> None:
    if len(asked.runs) > 1 and asked.out is None:
        raise Refused("several runs need --out DIR for the page that shows them together")
    folders = [Path(run) for run in asked.runs]
    with shown(folders):
        if asked.film:
            from nucleate.report.film import write_film
            from nucleate.runs import load_run

            for run in folders:
                print(f"film: {write_film(load_run(run), run / 'figures' / 'film.webp')}")
        _redraw(folders) if asked.out is None else _redraw_together(folders, Path(asked.out))


def claims(asked: argparse.Namespace) -> None:
    if len(asked.runs) > 1 and asked.out is None:
        raise Refused("several runs need --out DIR for the ledger that judges them together")
    with shown(asked.runs):
        _ledger(asked.runs, Path(asked.out or asked.runs[0]))


def _ledger(folders: Sequence[str | Path], out: Path) -> None:
    """The paper's claims judged by these runs: files in `out`, and a table in the terminal."""
    from nucleate.claims.ledger import LEDGER_HEADER, ledger_rows, not_run_line, write_ledger
    from nucleate.claims.verdicts import judge, not_run
    from nucleate.files import make_folder
    from nucleate.runs import load_run

    judgements = judge([load_run(folder) for folder in folders])
    make_folder(out)
    missing = not_run(judgements)
    paths = write_ledger(judgements, missing, out)
    print_table("What the paper says, and what these runs show", LEDGER_HEADER, ledger_rows(judgements))
    if missing:
        print(not_run_line(missing))
    print(f"ledger: {paths[1]}")


def settings(asked: argparse.Namespace) -> None:
    for key, value, meaning in describe(config_of(asked)):
        print(f"{key:32} {value!s:10} {meaning}")


def runs(asked: argparse.Namespace) -> None:
    folder = Path(asked.folder)
    if not folder.is_dir():
        raise Refused(f"{folder} is not a folder; name one that holds run folders")
    list_runs(folder)


def _redraw(folders: Sequence[Path]) -> None:
    """Figures and page of each run again, from its folder alone and into it; prints its tables of results."""
    from nucleate.files import make_folder
    from nucleate.report.figures import draw_figures
    from nucleate.report.page import write_page
    from nucleate.runs import load_run

    for run in map(load_run, folders):
        make_folder(run.folder)
        drawn = draw_figures(run, run.folder / "figures")
        page = write_page(run, run.folder / "page.html", {(run.folder,): drawn})
        print_summary(run)
        print(f"page: {page}")


def _redraw_together(folders: Sequence[Path], out: Path, drawn: "dict[Folders, Drawn] | None" = None) -> None:
    """One page of all runs in `out`, and their figures where they are not drawn yet: runs that differ in their seed
    alone are drawn together."""
    from nucleate.files import make_folder
    from nucleate.report.application_tables import over_seeds, save_over_seeds
    from nucleate.report.figures import draw_figures
    from nucleate.report.page import folders_of, write_page
    from nucleate.report.seeds import series_of
    from nucleate.runs import load_run

    runs = [load_run(folder) for folder in folders]
    make_folder(out)
    for run in runs:
        print_summary(run)
    figures = {} if drawn is None else drawn
    for series in series_of(runs):
        if drawn is None:
            figures[folders_of(series.runs)] = draw_figures(series.runs, out / "figures" / series.name)
        if told := over_seeds(series):
            title, table = told
            print_table(title, *table)
            if drawn is None:
                save_over_seeds(title, table, out / "figures" / series.name)
    print(f"page: {write_page(runs, out / 'page.html', figures)}")
