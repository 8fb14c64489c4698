"""The examples run as they stand."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_example_that_looks_into_a_checkpoint_prints_a_line_per_layer(micro_run):
    command = [sys.executable, str(EXAMPLES / "look_into_a_checkpoint.py"), str(micro_run)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split(":")[0] for line in printed] == ["layer 0", "layer 1", "layer 2"]


def test_every_example_is_run_by_a_test():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "look_into_a_checkpoint.py",
        "fine_tune.py",
        "watch_a_fine_tuning.py",
    }  # tests/test_guides.py runs the latter two
