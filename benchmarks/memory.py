"""The memory that `nucleate learn` announces before it begins, against what it then takes at most.

    python benchmarks/memory.py                  sizes tiny, narrow and small, two epochs (some four minutes)
    python benchmarks/memory.py --size paper     one size

A line a size; exit code 1 where a run took more than it announced, or announced more than twice what it took.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import set_threads


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", help="again for several (default: tiny, narrow, small)")
    sizes = parser.parse_args().size or ["tiny", "narrow", "small"]
    set_threads(1)
    fine = True
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            words = ["learn", "--size", size, "--epochs", "2", "--out", str(Path(folder) / "run")]
            command = [sys.executable, "-m", "nucleate.cli", *words]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            told = process.stderr.read()
            usage = os.wait4(process.pid, 0)[2]
        found = re.search(r"at most about ([\d.]+) GiB of memory", told)
        if found is None:
            sys.exit(told)
        announced, taken = float(found[1]), usage.ru_maxrss / 2**20
        fine &= taken <= announced <= 2 * taken
        print(f"{size:8} announced {announced:.1f} GiB, took at most {taken:.2f} GiB", flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
