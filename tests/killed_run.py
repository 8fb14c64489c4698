"""Kill a micro run at many moments, resume each, compare with the unbroken run: `python tests/killed_run.py FOLDER`.

A child process dies by SIGKILL just before or after its n-th file is put in place, or inside an optimiser step; another
one resumes. The parent imports everything once and forks, so a moment costs two short runs.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from nucleate.config import configure
from nucleate.paper import learning
from nucleate.paper.learning import learn

MOMENTS = 20


def in_a_child(work: Callable[[], object]) -> int:
    """Exit status of a forked child that does the work; minus the signal where it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at_file(number: int, *, before: bool) -> None:
    """From now on, this process kills itself at the number-th file or folder that it puts in place."""
    count = 0

    def watch(original: Callable[..., None]) -> Callable[..., None]:
        def replace(*arguments: object, **named: object) -> None:
            nonlocal count
            count += 1
            if count == number and before:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*arguments, **named)
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        return replace

    os.replace, os.rename = watch(os.replace), watch(os.rename)


def die_at_step(number: int) -> None:
    """From now on, this process kills itself inside its number-th optimiser step."""
    original = learning.optimizer_for

    def make(*arguments: object, **named: object) -> object:
        optimizer = original(*arguments, **named)
        step, count = optimizer.step, 0

        def watched(*inner: object, **more: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*inner, **more)

        optimizer.step = watched
        return optimizer

    learning.optimizer_for = make


def main(folder: Path) -> int:
    config = configure("micro", seed=3)
    assert in_a_child(lambda: learn(config, folder / "whole")) == 0
    wanted = (folder / "whole" / "metrics.parquet").read_bytes()
    differing = 0
    for moment in range(MOMENTS):
        out = folder / f"killed-{moment}"

        def killed(moment: int = moment, out: Path = out) -> None:
            if moment % 4 == 3:
                die_at_step(1 + 4 * moment)
            else:
                die_at_file(2 + 5 * moment // 2, before=moment % 2 == 0)  # how often a run saves depends on time
            learn(config, out)

        died = in_a_child(killed)
        resumed = in_a_child(lambda out=out: learn(config, out, resume=True))
        same = (out / "metrics.parquet").is_file() and (out / "metrics.parquet").read_bytes() == wanted
        print(f"moment {moment:2}: killed {died == -signal.SIGKILL}, resumed {resumed == 0}, same bytes {same}")
        differing += not (died == -signal.SIGKILL and resumed == 0 and same)
    return differing


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
