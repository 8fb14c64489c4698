"""Mutation testing: seeded faults in the code of the measures, each run against the tests of its module.

    python benchmarks/torture/mutants.py --count 300 --seed 0 --minutes 60

Compilation is switched off, so that a mutant costs seconds. The unchanged code runs first: only tests that pass so,
each within ten seconds, are used (which are left out is printed). A mutant that survives counts as
a fault: its line is listed. What is aimed at: 85 % are killed, and each survivor is explained.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from campaign import ROOT, Result, main
from mutate import mutants

TITLE = "seeded mutants of the measures, killed by the tests of their module; faults are survivors"
MODULES = {
    "measures/scores.py": ("test_scores.py",),
    "measures/clustering.py": ("test_clustering.py",),
    "measures/neighbours.py": ("test_neighbours.py",),
    "intervals.py": ("test_intervals.py",),
    "claims/verdicts.py": ("test_ledger.py", "test_claims.py"),
    "runs.py": ("test_runs.py",),
}
EACH_TEST, UNCHANGED, SLACK = 10, 900, 3  # seconds; how much longer a mutant may take than the unchanged code


def pytest(source: Path, tests: Sequence[str], *, seconds: float, more: Sequence[str] = ()) -> tuple[int, str]:
    """Exit code and output of these tests with the package in `source`; -1 where they took too long."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *more, *tests]
    env = {**os.environ, "PYTHONPATH": str(source), "NUMBA_DISABLE_JIT": "1", "OMP_NUM_THREADS": "1",
           "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=said, stderr=said, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = -1
        said.seek(0)
        return code, said.read()


def kept_tests(module: str, files: Sequence[str], source: Path, folder: Path) -> tuple[list[str], float]:
    """The tests that pass on the unchanged code, written as a mutant is, and the seconds that they take together."""
    file = folder / f"tests-{module.replace('/', '-')}.json"
    if not file.is_file():
        path = source / "nucleate" / module
        unchanged = path.read_text(encoding="utf-8")
        path.write_text(ast_round(unchanged), encoding="utf-8")
        more = ["-rA", f"--timeout={EACH_TEST}", "--durations=0", "-vv"]
        _, said = pytest(source, [f"tests/{one}" for one in files], seconds=UNCHANGED, more=more)
        path.write_text(unchanged, encoding="utf-8")
        passed = sorted(set(re.findall(r"^PASSED (tests/.+?)$", said, flags=re.MULTILINE)))
        dropped = sorted(set(re.findall(r"^(?:FAILED|ERROR) (tests/.+?)(?: - |$)", said, flags=re.MULTILINE)))
        took = [float(one) for one in re.findall(r"^([\d.]+)s (?:call|setup|teardown)", said, flags=re.MULTILINE)]
        assert passed, said[-2000:]
        file.write_text(json.dumps({"passed": passed, "dropped": dropped, "seconds": sum(took)}, indent=1))
    told = json.loads(file.read_text())
    if told["dropped"]:
        print(f"{module}: {len(told['passed'])} tests; too slow uncompiled: {', '.join(told['dropped'])}", flush=True)
    return told["passed"], told["seconds"]


def ast_round(source: str) -> str:
    import ast

    return ast.unparse(ast.parse(source)) + "\n"


def campaign(numbers: Iterable[int], asked: argparse.Namespace) -> Iterator[Result]:
    """Modules take turns; each gets the faults that the seed draws of all that can be put into it."""
    folder = asked.out / "made"
    folder.mkdir(parents=True, exist_ok=True)
    names, drawn = list(MODULES), {}
    for module in names:
        possible = mutants((ROOT / "src" / "nucleate" / module).read_text(encoding="utf-8"))
        random.Random(f"mutants {asked.seed} {module}").shuffle(possible)
        drawn[module] = possible
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "src"
        shutil.copytree(ROOT / "src" / "nucleate", source / "nucleate", ignore=shutil.ignore_patterns("__pycache__"))
        for number in numbers:
            module, turn = names[number % len(names)], number // len(names)
            if turn < len(drawn[module]):
                tests, seconds = kept_tests(module, MODULES[module], source, folder)
                yield one(number, module, drawn[module][turn], source, tests, seconds)


def one(number: int, module: str, make: object, source: Path, tests: Sequence[str], seconds: float) -> Result:
    mutant = make()  # type: ignore[operator]
    path = source / "nucleate" / module
    unchanged = path.read_text(encoding="utf-8")
    path.write_text(mutant.source, encoding="utf-8")
    try:
        code, _ = pytest(source, tests, seconds=60 + SLACK * seconds, more=["-x", "--timeout=120"])
    finally:
        path.write_text(unchanged, encoding="utf-8")
    if code == 0:
        return Result(number, f"{module}: survived", f"line {mutant.line}, {mutant.told}")
    how = {1: "killed", -1: "killed: too long"}.get(code, "killed: not importable")
    return Result(number, f"{module}: {how}")


if __name__ == "__main__":
    main("mutants", TITLE, campaign, count=300)
