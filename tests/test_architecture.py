"""The walls of the house: which room may import which, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nucleate"
FLOOR = {  # what every room may stand on
    "refusal",
    "threads",
    "files",
    "streams",
    "compiled",
    "progress",
    "devices",
    "locks",
    "memory",
    "settings",
    "text_table",
    "reading",
}
ALLOWED = {
    **{room: set() for room in FLOOR},
    "config": set(),
    "intervals": set(),
    "completion": set(),
    "run_in_words": {"config"},  # what a run changes of its size
    "parts": set(),
    "runs": {"run_in_words", "parts"},
    "options": {"config", "probing", "redirecting"},  # their settings alone
    "long_table": {"runs"},
    "data": {"config"},
    "model": {"data"},
    "measures": {"intervals"},
    "transferring": {"data", "model", "measures", "long_table"},
    "report": {"long_table", "intervals", "runs"},
    **{
        room: {
            "report",
            "transferring",
            "data",
            "model",
            "measures",
            "long_table",
            "intervals",
            "runs",
            "parts",
            "config",
        }
        for room in ("paper", "probing", "redirecting", "claims")
    },
    "engines": {"paper", "probing", "redirecting", "claims", "model", "runs", "parts", "config"},
}
EXTERNAL_BARRED = {
    "data": {"torch", "transformers", "sklearn"},
    "report": {"torch", "transformers", "sklearn"},
    "claims": {"torch", "transformers", "sklearn"},
    "intervals": {"sklearn"},
    "runs": {"torch"},
    "config": {"torch"},
    "measures": {"transformers"},
}


def imported(file: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function; `from nucleate import runs` is one too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            whole = node.module in ("nucleate", "nucleate.paper")
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if whole else {node.module or ""}
    return names


def rooms() -> list[tuple[str, Path]]:
    return [(file.relative_to(SOURCE).parts[0].removesuffix(".py"), file) for file in sorted(SOURCE.rglob("*.py"))]


@pytest.mark.parametrize(("room", "file"), rooms(), ids=lambda value: getattr(value, "name", value))
def test_a_room_imports_only_what_it_may(room, file):
    if room not in ALLOWED:  # these may know everything below them
        assert room in {"__init__", "__main__", "cli", "verbs", "answers", "terminal", "reference"}
        return
    modules = imported(file)
    ours = {name.split(".")[1] for name in modules if name.startswith("nucleate.")}
    floor = {"refusal"} if room in FLOOR else FLOOR
    assert ours - {room} <= ALLOWED[room] | floor
    if room == "options":
        lights = {name for name in modules if name.startswith(("nucleate.probing", "nucleate.redirecting"))}
        assert lights == {"nucleate.probing.settings", "nucleate.redirecting.settings"}
    if room == "model":
        assert not {name for name in modules if name.startswith("nucleate.data")} - {"nucleate.data.dataset"}
    assert not {name.split(".")[0] for name in modules} & EXTERNAL_BARRED.get(room, set())


def test_every_room_with_rules_exists():
    assert set(ALLOWED) <= {room for room, _ in rooms()}


def test_experiments_of_the_paper_never_import_each_other():
    experiments = {"learning", "pretraining", "alignment"}
    assert experiments <= {file.stem for file in (SOURCE / "paper").glob("*.py")}
    for file in (SOURCE / "paper").glob("*.py"):
        assert not {name.split(".")[-1] for name in imported(file) if name.startswith("nucleate.paper.")} & experiments


@pytest.mark.parametrize(
    "first_line", ["import nucleate", "import nucleate.cli", "import nucleate.runs", "import nucleate.report.page"]
)
def test_what_draws_or_parses_loads_no_torch(first_line):
    check = f"{first_line}; import sys; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_every_public_name_is_there():
    import nucleate

    assert {"probe", "read_states", "tsne", "load_run", "ProbeCallback"} <= set(nucleate.__all__)
    for name in nucleate.__all__:
        assert getattr(nucleate, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prob'"):
        _ = nucleate.prob
