"""Runs that several test files look at: each is made once a session."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there: some tests fork, which threads do not survive


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is kept in the cache of whoever runs the tests."""
    os.environ["NUCLEATE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def micro_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished micro run, made through the command line."""
    from nucleate.cli import main

    folder = tmp_path_factory.mktemp("runs") / "micro"
    assert main(["learn", "--size", "micro", "--seed", "3", "--out", str(folder)]) == 0
    return folder
