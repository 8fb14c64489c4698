"""Kill a pre-training run at several moments, resume each, compare with the unbroken run:
`python tests/killed_pretraining.py FOLDER`."""

import signal
import sys
from pathlib import Path

from killed_run import die_at_file, in_a_child
from nucleate.config import configure
from nucleate.paper.pretraining import pretrain

CHANGES = {
    "training.epochs": "1",
    "pretrain.epochs": "1",
    "pretrain.unseen": "no",
    "measure.dense_until": "0",
    "measure.every": "9",
}
MOMENTS = (8, 25, 44)  # files put in place before the kill: in a pre-training, after and in a fine-tuning


def main(folder: Path) -> int:
    config = configure("micro", seed=3, changes=CHANGES)
    assert in_a_child(lambda: pretrain(config, folder / "whole")) == 0
    wanted = (folder / "whole" / "metrics.parquet").read_bytes()
    failed = 0
    for number in MOMENTS:
        out = folder / f"killed-{number}"

        def killed(number: int = number, out: Path = out) -> None:
            die_at_file(number, before=number % 2 == 0)
            pretrain(config, out)

        died = in_a_child(killed) == -signal.SIGKILL
        resumed = in_a_child(lambda out=out: pretrain(config, out, resume=True)) == 0
        same = (out / "metrics.parquet").is_file() and (out / "metrics.parquet").read_bytes() == wanted
        print(f"file {number:2}: " + ("same bytes" if died and resumed and same else f"{died=} {resumed=} {same=}"))
        failed += not (died and resumed and same)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
