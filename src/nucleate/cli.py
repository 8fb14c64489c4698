"""The command line: its verbs with their options, and its exit codes. What the verbs do stands in `verbs.py`."""

import argparse
import errno
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from io import TextIOWrapper
from pathlib import Path

from nucleate import verbs
from nucleate.completion import PrintCompletion
from nucleate.files import last_line
from nucleate.options import (
    ENGINES,
    SHORT,
    Parser,
    add_engine,
    add_out,
    add_probe,
    add_redirect,
    add_settings,
    add_transfer,
)
from nucleate.refusal import FellShort, Refused

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_SWEPT = ("learn", "pretrain", "align")  # verbs that write one run folder


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed while running, 2 refused at the door, 3 done but short of a bar that was set, 130
    after Ctrl-C, SIGTERM or SIGHUP."""
    out = None
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # some terminals lack letters; that stops nothing
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _as_ctrl_c():
            asked = _parser().parse_args(words)
            out = asked.out if hasattr(asked, "resume") else None
            return (_in_json(asked) if asked.json else asked.run(asked)) or 0
    except Refused as refusal:
        print(f"nucleate: {refusal}", file=sys.stderr)
        if os.environ.get("NUCLEATE_TRACEBACK"):
            traceback.print_exc()
        return 2
    except FellShort as shortfall:
        print(f"nucleate: {shortfall}", file=sys.stderr)
        return 3
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        where = f"; to go on from what {out} holds: {_going_on(words)}" if out else ""
        with suppress(OSError):  # the terminal may be gone
            print(f"nucleate: stopped{where}", file=sys.stderr)
        return 130
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        log = _failure_log(Path(out), said) if out else None
        if isinstance(error, OSError) and error.strerror and error.filename:  # the disk, which no traceback mends
            again = f"; make room, then go on with: {_going_on(words)}" if error.errno in _FULL and out else ""
            said = f"{error.filename}: {error.strerror}{again}"
        elif log is None:
            traceback.print_exc()
        where = f"; where it failed stands in the last line of {log}" if log else ""
        print(f"nucleate: failed: {said}{where}", file=sys.stderr)
        return 1


@contextmanager
def _as_ctrl_c() -> Iterator[None]:
    """Whoever ends the process politely stops it as Ctrl-C does: its run can be gone on with. What is ignored, as a
    hang-up under nohup, stays so."""
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    taken = [one for one in signals if is_main and signal.getsignal(one) == signal.SIG_DFL]
    for one in taken:
        signal.signal(one, signal.default_int_handler)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, signal.SIG_DFL)


def _failure_log(folder: Path, error: str) -> Path | None:
    """The newest log in or below a folder, if it ends in this failure: its last line holds the traceback."""
    log = max(folder.rglob("log.jsonl"), key=lambda path: path.stat().st_mtime_ns, default=None)
    try:
        ends = json.loads(last_line(log)) if log else {}
    except (ValueError, OSError):  # cut short, or gone
        return None
    return log if ends.get("event") == "failed" and ends.get("error") == error else None


def _in_json(asked: argparse.Namespace) -> int:
    """One object on standard output and nothing else there: what a verb says otherwise goes to standard error."""
    short = None
    with redirect_stdout(sys.stderr):
        try:
            code = int(asked.run(asked) or 0)
        except FellShort as shortfall:
            code, short = 3, shortfall
        from nucleate.answers import answer_of

        answer = answer_of(asked)
    print(json.dumps(answer, ensure_ascii=False, allow_nan=False))
    if short is not None:
        raise short
    return code


def _going_on(words: Sequence[str]) -> str:
    """The command that goes on with what these words began, by the name that the program was called by."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "nucleate" else "nucleate"
    kept = [word for word in words if word not in ("--overwrite", "--resume")]
    return shlex.join([program, *kept, "--resume"])


def _parser() -> argparse.ArgumentParser:
    from nucleate import __version__

    parser = Parser(
        prog="nucleate",
        description="Find out whether, where and when a language model separates the tasks it was taught.",
    )
    parser.add_argument("--version", action="version", version=f"nucleate {__version__}")
    parser.add_argument("--completion", action=PrintCompletion, nargs=0, help="print a script of bash that completes")
    found = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, help: str) -> Parser:
        made = found.add_parser(name, help=help, description=help, allow_abbrev=False)
        made.set_defaults(run=getattr(verbs, name))
        made.add_argument("--json", action="store_true", help="print one object instead of text")
        return made

    data = verb("data", "make the synthetic dataset: dataset.parquet, dataset.json and Figure 1")
    add_settings(data, network=False)
    data.add_argument("--kind", choices=("main", "alignment"), default="main", help="alignment: the data of Table 7")
    data.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    data.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")

    learn = verb("learn", "train a network and measure its hidden states at every epoch: Figures 2-4 and 6-10")
    add_settings(learn)
    add_out(learn, "RUN")

    pretrain = verb("pretrain", "pre-train with task identities, fine-tune, beside other arms: Figure 5")
    add_settings(pretrain)
    add_out(pretrain, "RUN")

    probe = verb("probe", "any model, any labelled prompts: which tasks are separate, where, and which are not")
    add_probe(probe)

    transfer = verb("transfer", "move states from task to task, layer by layer, and count the answers that follow")
    add_transfer(transfer)

    align = verb("align", "redirect tasks of a trained network by four methods: Table 2; or of any model")
    add_settings(align)
    add_redirect(align)
    align.set_defaults(size=None)
    add_out(align, "RUN", required=False)

    reproduce = verb("reproduce", "run the paper's experiments at one size, with one page")
    add_settings(reproduce)
    reproduce.add_argument("--model", metavar="PATH", help="also probe this one with the natural tasks: Table 1")
    add_out(reproduce, "DIR")

    sweep = verb("sweep", "run a verb many times, seeds x settings, into one long table")
    sweep.set_defaults(parse=parser.parse_args)
    sweep.passes_on = {name: found.choices[name] for name in _SWEPT}
    sweep.add_argument("swept", metavar="VERB", choices=_SWEPT, help=f"{', '.join(_SWEPT)}; with any of its options")
    for option in ("seed", *SHORT, "dtype"):
        sweep.add_argument(f"--{option}", metavar="VALUES", help="one value, a list such as 32,256, or a range as 0..4")
    sweep.add_argument("--set", action="append", default=[], metavar="section.key=VALUES", help="any setting, likewise")
    add_engine(sweep, ENGINES, "runs at once (default: OMP_NUM_THREADS, or all cores; of a cluster, all it has)")
    sweep.add_argument("--minutes", type=int, metavar="N", help="with slurm: time of a run, before it is queued again")
    sweep.add_argument("--memory", type=int, metavar="GB", help="with slurm: memory of a run")
    add_out(sweep, "DIR")

    report = verb("report", "draw figures and page.html again from run folders alone")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    report.add_argument("--out", metavar="DIR", help="folder for the page of several runs (default: into the run)")
    report.add_argument("--film", action="store_true", help="also an animated picture of each run: figures/film.webp")

    claims = verb("claims", "judge the paper's claims by run folders: claims.json, claims.md, figures")
    claims.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    claims.add_argument("--out", metavar="DIR", help="folder for the ledger of several runs (default: into the run)")

    settings = verb("settings", "show every setting of a size with its value and meaning")
    add_settings(settings)

    runs = verb("runs", "list run folders: what, state, size")
    runs.add_argument("folder", metavar="DIR", help="folder that holds run folders")
    return parser


if __name__ == "__main__":
    sys.exit(main())
