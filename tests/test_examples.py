"""The examples run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_example_that_looks_into_a_checkpoint_prints_a_line_per_layer(micro_run):
    command = [sys.executable, str(EXAMPLES / "look_into_a_checkpoint.py"), str(micro_run)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split(":")[0] for line in printed] == ["layer 0", "layer 1", "layer 2"]


def test_every_example_is_run_by_a_test():
    """Here, by the commands of the guide, or by the test beside them."""
    guide = (EXAMPLES.parent / "docs" / "guides" / "probe.md").read_text(encoding="utf-8")
    beside = Path(__file__).with_name("test_guides.py").read_text(encoding="utf-8")
    run = re.findall(r"^python examples/(\S+)", guide, flags=re.MULTILINE)
    run += re.findall(r'"examples" / "(\w+\.py)"', beside)
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"look_into_a_checkpoint.py", *run}
