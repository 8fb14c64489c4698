"""The command line: the verbs. What they are told stands in `options.py`, what they do in the room that they call."""

import argparse
import shlex
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleate.config import Config, describe, to_toml
from nucleate.options import (
    REDIRECT,
    SHORT,
    Parser,
    add_out,
    add_probe,
    add_redirect,
    add_settings,
    config_of,
    given_of,
    key_and_value,
)
from nucleate.probing.settings import ProbeSettings
from nucleate.redirecting.settings import RedirectSettings
from nucleate.refusal import Refused
from nucleate.terminal import ProgressBar, print_summary, print_table

if TYPE_CHECKING:
    from nucleate.engines.sweep import Planned

_SWEPT = ("learn", "pretrain", "align")  # verbs that write one run folder


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed while running, 2 refused at the door, 130 after Ctrl-C."""
    out = None
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # some terminals lack letters; that stops nothing
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        asked = _parser().parse_args(words)
        out = asked.out if hasattr(asked, "resume") else None
        return asked.run(asked) or 0
    except Refused as refusal:
        print(f"nucleate: {refusal}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        where = f"; to go on from what {out} holds: {_going_on(words)}" if out else ""
        print(f"nucleate: stopped{where}", file=sys.stderr)
        return 130
    except Exception as error:
        from nucleate.runs import failure_log

        said = f"{type(error).__name__}: {error}"
        log = failure_log(Path(out), said) if out else None
        if log is None:
            traceback.print_exc()
        where = f"; where it failed stands in the last line of {log}" if log else ""
        print(f"nucleate: failed: {said}{where}", file=sys.stderr)
        return 1


def _going_on(words: Sequence[str]) -> str:
    """The command that goes on with what these words began, by the name that the program was called by."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "nucleate" else "nucleate"
    kept = [word for word in words if word not in ("--overwrite", "--resume")]
    return shlex.join([program, *kept, "--resume"])


# --- verbs -----------------------------------------------------------------------------------------------------------


def _data(asked: argparse.Namespace) -> None:
    from nucleate.data.synthetic import generate
    from nucleate.report.dataset_figure import figure_1
    from nucleate.runs import make_folder

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


def _learn(asked: argparse.Namespace) -> None:
    from nucleate.paper.learning import learn

    _run(asked, partial(learn, config_of(asked), Path(asked.out)))


def _pretrain(asked: argparse.Namespace) -> None:
    from nucleate.paper.pretraining import pretrain

    _run(asked, partial(pretrain, config_of(asked), Path(asked.out)))


def _align(asked: argparse.Namespace) -> None:
    from nucleate.paper.alignment import align

    if asked.model is not None:
        _redirect(asked)
        return
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
    from nucleate.redirecting.redirect import budget, redirect_into

    barred = next((name for name in ("size", *SHORT, "fast", "set") if getattr(asked, name)), None)
    if barred is not None:
        raise Refused(f"--{barred} belongs to the paper's own networks: leave it out, or leave --model out")
    if asked.data is None:
        raise Refused("nucleate align --model needs --data D, the labelled prompts")
    if asked.out is None and not asked.estimate:
        raise Refused("nucleate align needs --out RUN, the folder to write to (or --estimate, which writes nothing)")
    settings = RedirectSettings(**given_of(asked, RedirectSettings))
    for sentence in budget(asked.model, asked.data, settings):
        print(sentence, file=sys.stdout if asked.estimate else sys.stderr)
    if asked.estimate:
        return
    _run(asked, partial(redirect_into, Path(asked.out), asked.model, asked.data, settings))
    print(f"switched model: {Path(asked.out) / 'model'}")


def _probe(asked: argparse.Namespace) -> None:
    from nucleate.probing.probe import budget, probe_into

    settings = ProbeSettings(**given_of(asked, ProbeSettings))
    if asked.out is None and not asked.estimate:
        raise Refused("nucleate probe needs --out RUN, the folder to write to (or --estimate, which writes nothing)")
    if asked.estimate:
        print("\n".join(budget(asked.models, asked.data, settings, base=asked.base)))
        return
    _run(asked, partial(probe_into, Path(asked.out), asked.models, asked.data, settings, base=asked.base))


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


def _reproduce(asked: argparse.Namespace) -> None:
    """A run folder per experiment, then one ledger and one page; what is newer than the page is drawn again."""
    from nucleate.paper.lengths import lengths_of
    from nucleate.probing import probe
    from nucleate.progress import Workload
    from nucleate.report.figures import draw_figures
    from nucleate.runs import clear_runs, load_run

    config, out = config_of(asked), Path(asked.out)
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
    for folder in new:
        draw_figures(load_run(folder), folder / "figures")
    _redraw_together(folders, out, figures=False)


def _sweep(asked: argparse.Namespace) -> int:
    from nucleate.engines.axes import axis, combinations
    from nucleate.engines.sweep import sweep
    from nucleate.paper.trainings import PACKED_NOTE
    from nucleate.threads import thread_count

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
            Path(asked.out),
            workers=thread_count() if asked.workers is None else asked.workers,
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
    one = _parser().parse_args([*arguments, "--out", str(Path(asked.out) / name)])
    if getattr(one, "model", None) is not None:
        raise Refused("sweep runs the paper's own networks: leave --model out, and call nucleate align for each model")
    _check_redirect(one)
    config = config_of(one)
    device_for(config.device)
    _experiments()[asked.swept].dataset_for(config)
    own = {"verb", "run", "size", *SHORT, "seed", "device", "dtype", "fast", "set", "out", "resume", "overwrite"}
    others = {f"option_{key}": str(value) for key, value in vars(one).items() if key not in own and value is not None}
    varied = {key: value for key, value, _ in describe(config) if key in varying}
    return Planned(name, arguments, to_toml(config, verb=asked.swept, **others), varied), config


def _report(asked: argparse.Namespace) -> None:
    if len(asked.runs) > 1 and asked.out is None:
        raise Refused("several runs need --out DIR for the page that shows them together")
    if asked.film:
        from nucleate.report.film import write_film
        from nucleate.runs import load_run

        for run in asked.runs:
            print(f"film: {write_film(load_run(run), Path(run) / 'figures' / 'film.webp')}")
    folders = [Path(run) for run in asked.runs]
    if asked.out is None:
        _redraw(folders)
    else:
        _redraw_together(folders, Path(asked.out))


def _claims(asked: argparse.Namespace) -> None:
    if len(asked.runs) > 1 and asked.out is None:
        raise Refused("several runs need --out DIR for the ledger that judges them together")
    _ledger(asked.runs, Path(asked.out or asked.runs[0]))


def _ledger(folders: Sequence[str | Path], out: Path) -> None:
    """The paper's claims judged by these runs: files in `out`, and a table in the terminal."""
    from nucleate.claims.ledger import LEDGER_HEADER, ledger_rows, not_run_line, write_ledger
    from nucleate.claims.verdicts import judge, not_run
    from nucleate.runs import load_run, make_folder

    judgements = judge([load_run(folder) for folder in folders])
    make_folder(out)
    missing = not_run(judgements)
    paths = write_ledger(judgements, missing, out)
    print_table("What the paper says, and what these runs show", LEDGER_HEADER, ledger_rows(judgements))
    if missing:
        print(not_run_line(missing))
    print(f"ledger: {paths[1]}")


def _settings(asked: argparse.Namespace) -> None:
    for key, value, meaning in describe(config_of(asked)):
        print(f"{key:32} {value!s:10} {meaning}")


def _runs(asked: argparse.Namespace) -> None:
    from nucleate.runs import find_runs

    folder = Path(asked.folder)
    if not folder.is_dir():
        raise Refused(f"{folder} is not a folder; name one that holds run folders")
    found = find_runs(folder)
    for run in found:
        models = ", ".join(Path(model).name for model in run.config.get("models", ()))
        what = f"{run.config['verb']} {run.config['size']} seed {run.config['seed']}"
        print(f"{run.folder!s:40} {what:28} {run.state:12} {run.size_bytes / 2**20:9.1f} MiB  {models}".rstrip())
    if not found:
        print(f"no run folders in {folder}")


def _redraw(folders: Sequence[Path]) -> None:
    """Figures and page of each run again, from its folder alone and into it; prints its tables of results."""
    from nucleate.report.figures import draw_figures
    from nucleate.report.page import write_page
    from nucleate.runs import load_run, make_folder

    for run in map(load_run, folders):
        make_folder(run.folder)
        draw_figures(run, run.folder / "figures")
        page = write_page(run, run.folder / "page.html")
        print_summary(run)
        print(f"page: {page}")


def _redraw_together(folders: Sequence[Path], out: Path, *, figures: bool = True) -> None:
    """One page of all runs in `out`, and their figures: runs that differ in their seed alone are drawn together."""
    from nucleate.report.application_tables import over_seeds, save_over_seeds
    from nucleate.report.figures import draw_figures
    from nucleate.report.page import write_page
    from nucleate.report.seeds import series_of
    from nucleate.runs import load_run, make_folder

    runs = [load_run(folder) for folder in folders]
    make_folder(out)
    for run in runs:
        print_summary(run)
    for series in series_of(runs):
        if figures:
            draw_figures(series.runs, out / "figures" / series.name)
        if told := over_seeds(series):
            title, table = told
            print_table(title, *table)
            if figures:
                save_over_seeds(title, table, out / "figures" / series.name)
    print(f"page: {write_page(runs, out / 'page.html')}")


# --- the parser -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    from nucleate import __version__

    parser = Parser(
        prog="nucleate",
        description="Find out whether, where and when a language model separates the tasks it was taught.",
    )
    parser.add_argument("--version", action="version", version=f"nucleate {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, run: Callable[[argparse.Namespace], int | None], help: str) -> Parser:
        made = verbs.add_parser(name, help=help, description=help, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    data = verb("data", _data, "make the synthetic dataset: dataset.parquet, dataset.json and Figure 1")
    add_settings(data, network=False)
    data.add_argument("--kind", choices=("main", "alignment"), default="main", help="alignment: the data of Table 7")
    data.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    data.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")

    learn = verb("learn", _learn, "train a network and measure its hidden states at every epoch: Figures 2-4 and 6-10")
    add_settings(learn)
    add_out(learn, "RUN")

    pretrain = verb("pretrain", _pretrain, "pre-train with task identities, fine-tune, beside other arms: Figure 5")
    add_settings(pretrain)
    add_out(pretrain, "RUN")

    probe = verb("probe", _probe, "any model, any labelled prompts: which tasks are separate, where, and which are not")
    add_probe(probe)

    align = verb("align", _align, "redirect tasks of a trained network by four methods: Table 2; or of any model")
    add_settings(align)
    add_redirect(align)
    align.set_defaults(size=None)
    add_out(align, "RUN", required=False)

    reproduce = verb("reproduce", _reproduce, "run the paper's experiments at one size, with one page")
    add_settings(reproduce)
    reproduce.add_argument("--model", metavar="PATH", help="also probe this one with the natural tasks: Table 1")
    add_out(reproduce, "DIR")

    sweep = verb("sweep", _sweep, "run a verb many times, seeds x settings, into one long table")
    sweep.passes_on = {name: verbs.choices[name] for name in _SWEPT}
    sweep.add_argument("swept", metavar="VERB", choices=_SWEPT, help=f"{', '.join(_SWEPT)}; with any of its options")
    for option in ("seed", *SHORT, "dtype"):
        sweep.add_argument(f"--{option}", metavar="VALUES", help="one value, a list such as 32,256, or a range as 0..4")
    sweep.add_argument("--set", action="append", default=[], metavar="section.key=VALUES", help="any setting, likewise")
    sweep.add_argument("--workers", type=int, metavar="N", help="runs at once (default: OMP_NUM_THREADS, or all cores)")
    add_out(sweep, "DIR")

    report = verb("report", _report, "draw figures and page.html again from run folders alone")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    report.add_argument("--out", metavar="DIR", help="folder for the page of several runs (default: into the run)")
    report.add_argument("--film", action="store_true", help="also an animated picture of each run: figures/film.webp")

    claims = verb("claims", _claims, "judge the paper's claims by run folders: claims.json, claims.md, figures")
    claims.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    claims.add_argument("--out", metavar="DIR", help="folder for the ledger of several runs (default: into the run)")

    settings = verb("settings", _settings, "show every setting of a size with its value and meaning")
    add_settings(settings)

    runs = verb("runs", _runs, "list run folders: what, state, size")
    runs.add_argument("folder", metavar="DIR", help="folder that holds run folders")
    return parser


if __name__ == "__main__":
    sys.exit(main())
