"""What is released: a wheel with everything that the package reads, which runs without the checkout; one version."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import nucleate
from nucleate.model.networks import gpt2, save_network, word_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Wheel and sdist, made by the backend that pyproject.toml names from what git holds, and nothing is fetched."""
    folder = tmp_path_factory.mktemp("release")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if name.startswith(("src/", "pyproject", "README", "LICENSE")) and (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    asked = "from setuptools import build_meta as b; b.build_sdist('../dist'); b.build_wheel('../dist')"
    subprocess.run([sys.executable, "-c", asked], cwd=folder / "source", capture_output=True, check=True)
    return folder


@pytest.fixture(scope="module")
def unpacked(built) -> Path:
    (wheel,) = (built / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(built / "site")
    return built / "site"


def data_files(folder: Path) -> set[str]:
    """All that is no code of Python's."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in found if not name.endswith(".py") and "__pycache__" not in name}


def test_the_wheel_holds_every_file_of_the_package(unpacked):
    source = ROOT / "src" / "nucleate"
    assert (
        data_files(unpacked / "nucleate") == data_files(source) >= {"py.typed", "report/page.html", "report/page.css"}
    )
    code = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    assert {path.relative_to(unpacked / "nucleate").as_posix() for path in unpacked.rglob("*.py")} == code


def test_the_version_comes_from_one_place(built, unpacked):
    (about,) = unpacked.glob("*.dist-info/METADATA")
    assert f"\nVersion: {nucleate.__version__}\n" in about.read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"\nversion: {nucleate.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (packed,) = (built / "dist").glob("*.tar.gz")
    with tarfile.open(packed) as file:
        assert f"nucleate-{nucleate.__version__}/src/nucleate/report/page.js" in file.getnames()


def run(unpacked: Path, folder: Path, *words: str) -> str:
    """The command line of the wheel, elsewhere, that knows nothing of the checkout."""
    asked = f"import nucleate, sys; assert nucleate.__file__.startswith({str(unpacked)!r}), nucleate.__file__; "
    asked += "from nucleate.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-P", "-c", asked, *words]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.timeout(900)  # compiles the loops anew
def test_the_wheel_reproduces_reports_and_probes_away_from_the_checkout(unpacked, tmp_path):
    assert run(unpacked, tmp_path, "--version") == f"nucleate {nucleate.__version__}\n"
    run(unpacked, tmp_path, "reproduce", "--size", "micro", "--epochs", "1", "--out", "all")
    assert (tmp_path / "all" / "page.html").is_file() and (tmp_path / "all" / "claims.md").is_file()
    assert "page.html" in run(unpacked, tmp_path, "report", "all/learn")
    assert (tmp_path / "all" / "learn" / "page.html").is_file()
    natural = nucleate.natural_dataset("natural-shared")
    tokenizer = word_tokenizer(
        sorted({word for one in natural.instances for word in f"{one.instruction} {one.input}".split()})
    )
    shape = {"width": 16, "feed_forward": 32, "layers": 2, "heads": 2, "positions": 64, "dropout": 0, "pad": 0}
    save_network(gpt2(vocabulary=len(tokenizer), seed=1, **shape), tokenizer, tmp_path / "model")
    assert "model: " in run(unpacked, tmp_path, "probe", "model", "natural-shared", "--limit", "160", "--out", "probed")
    assert (tmp_path / "probed" / "page.html").is_file()
