"""What is installed is what was pinned, and what is promised of safety names tests that are there."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(*extras: str) -> set[str]:
    """What pip installs for the package with these extras on this machine: what it names, and what that needs."""
    optional = PROJECT["optional-dependencies"]
    told = [*PROJECT["dependencies"], *(one for extra in extras for one in optional[extra])]
    waiting, seen, found = [Requirement(one) for one in told if not one.startswith("nucleate[")], set(), set()
    while waiting:
        one = waiting.pop()
        for extra in {"", *one.extras} - {extra for name, extra in seen if name == plain(one.name)}:
            seen.add((plain(one.name), extra))
            try:
                inner = distribution(one.name).requires or []
            except PackageNotFoundError:  # an extra that is not installed here
                continue
            found.add(plain(one.name))
            waiting += [r for r in map(Requirement, inner) if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


def test_everything_that_is_installed_for_the_package_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines if not line.startswith("#"))
    pinned = {plain(name) for name in pins}
    everything = needed("gguf", "ray", "slurm", "docs", "dev")
    assert {"torch", "markupsafe", "urllib3", "pluggy", "gguf"} <= everything
    assert everything - pinned == set()
    assert len(pinned) == len(pins) and [*pins] == sorted(pins, key=str.lower)


def test_every_promise_of_safety_names_a_test_that_is_there():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`tests/(test_\w+\.py)(?:::(test_\w+))?`", text)
    assert len(named) >= 8
    for file, name in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^def {name}\b", source, re.MULTILINE), name
    for campaign in re.findall(r"`benchmarks/torture/(\w+\.py)`", text):
        assert (ROOT / "benchmarks" / "torture" / campaign).is_file()
