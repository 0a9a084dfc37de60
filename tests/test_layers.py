"""Who may import whom: only downwards, siblings don't know each other, a heavy library has one home.

Read from the syntax trees, so that imports inside functions count too; those for type checkers alone don't.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import gptailor

ROOT = Path(gptailor.__file__).parent
LAYERS = {
    "cli": 6,
    "api": 6,
    "search": 5,
    "serve": 5,
    "pipeline": 4,
    "train": 3,
    "evaluate": 3,
    "models": 2,
    "tasks": 1,
    "data": 1,
    "report": 1,
    "launch": 1,
    "cache": 1,
    "types": 0,
    "recipe": 0,
    "errors": 0,
    "plain_yaml": 0,
}
ABOVE_ALL = {"__init__": 7, "__main__": 7}  # the front doors
# The version is a constant that anyone may read.
ANYWHERE = {("gptailor", "__version__")}
HOMES = {
    "peft": ("models/approach.py",),
    "gguf": ("models/gguf_file.py",),
    "llama_cpp": ("models/gguf_run.py",),
    "onnxruntime": ("models/onnx_file.py",),
    "fastapi": ("serve/",),
    "uvicorn": ("serve/",),
    "starlette": ("serve/",),
    "sklearn": (
        "evaluate/baselines.py",
        "evaluate/choice.py",
        "evaluate/targets.py",
        "evaluate/text_baselines.py",
        "models/approach.py",
        "pipeline/frozen.py",
        "pipeline/workshop.py",
        "api.py",
    ),
    "jinja2": ("report/", "tasks/sandbox.py"),
    "pyarrow": ("data/",),
    "rensa": ("data/duplicates.py",),
    "ftfy": ("data/repair.py",),
    "mlflow": ("pipeline/trackers.py",),
    "trackio": ("pipeline/trackers.py",),
    "wandb": ("pipeline/trackers.py",),
    "optuna": ("search/study.py",),
    "sacrebleu": ("evaluate/text_metrics.py",),
}
HEAVY = ("torch", "transformers")


@dataclass(frozen=True)
class Import:
    """One name that a module imports: `module` with `name` out of it, or the module itself."""

    module: str
    name: str
    line: int


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports_of(source: str, package: str) -> Iterator[Import]:
    """Every import that runs. `package` is the one the module lies in, for relative imports."""

    def walk(node: ast.AST) -> Iterator[Import]:
        if isinstance(node, ast.If) and is_type_checking(node.test):
            for child in node.orelse:
                yield from walk(child)
            return
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -node.level + 1 or None] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (Import(module, alias.name, node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(source))


def part_of(file: str) -> str:
    """The package or module of ours that a file belongs to: its name in the table of layers."""
    return file.split("/")[0].removesuffix(".py")


def target_of(entry: Import) -> str | None:
    """The part of ours that an import reaches; None where it is a library's."""
    steps = entry.module.split(".")
    if steps[0] != "gptailor" or (entry.module, entry.name) in ANYWHERE:
        return None
    return steps[1] if len(steps) > 1 else entry.name or "__init__"


def fault(part: str, entry: Import) -> str:
    """What is wrong with an import in a part, in words; empty if nothing is."""
    target = target_of(entry)
    if target is None or target == part:
        return ""
    level, theirs = (({**LAYERS, **ABOVE_ALL}).get(name) for name in (part, target))
    if level is None or theirs is None:
        return f"{part} or {target} is not in the table of layers"
    if theirs > level:
        return f"{part} ({level}) imports {target} ({theirs}), which is above it"
    if theirs == level and level > 0:
        return f"{part} imports its sibling {target}"
    return ""


@pytest.fixture(scope="module")
def imports() -> dict[str, list[Import]]:
    """What every file of ours imports, by its path under the package."""
    return {
        path.relative_to(ROOT).as_posix(): list(
            imports_of(
                path.read_text(encoding="utf-8"),
                ".".join(["gptailor", *path.relative_to(ROOT).parent.parts]),
            )
        )
        for path in sorted(ROOT.rglob("*.py"))
    }


def test_imports_go_downwards_and_siblings_do_not_know_each_other(imports: dict[str, list[Import]]) -> None:
    assert len(imports) > 40
    faults = [
        f"{file}:{entry.line}: {found}"
        for file, entries in imports.items()
        for entry in entries
        if (found := fault(part_of(file), entry))
    ]
    assert not faults, "\n".join(faults)


def test_types_and_errors_lean_on_nothing_of_ours(imports: dict[str, list[Import]]) -> None:
    """The bottom has an order of its own: recipe may read types and errors, they read nothing."""
    for file in ("types.py", "errors.py"):
        assert [entry for entry in imports[file] if target_of(entry)] == []


def test_every_part_has_its_layer(imports: dict[str, list[Import]]) -> None:
    parts = {part_of(file) for file in imports} - ABOVE_ALL.keys()
    assert parts <= LAYERS.keys(), parts - LAYERS.keys()


def test_what_only_unix_has_is_imported_where_it_is_used() -> None:
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {"fcntl", "grp", "pwd", "resource", "termios", "tty"} & set(names), path


@pytest.mark.parametrize("library", HOMES)
def test_heavy_library_is_imported_only_at_home(imports: dict[str, list[Import]], library: str) -> None:
    users = [
        file
        for file, entries in imports.items()
        if any(entry.module.split(".")[0] == library for entry in entries)
    ]
    assert users, f"{library} has no user: take it from this table and from pyproject.toml"
    assert [user for user in users if not user.startswith(HOMES[library])] == []


@pytest.mark.parametrize(
    ("part", "line", "words"),
    [
        ("train", "from gptailor.pipeline.fit import keep", "above it"),
        ("data", "from gptailor.report import plots", "sibling report"),
        ("train", "import gptailor.evaluate.metrics", "sibling evaluate"),
        ("data", "from gptailor import api", "above it"),
        ("data", "import gptailor", "above it"),
        ("data", "from ..models import load", "above it"),
        ("data", "def late():\n    from gptailor.cli import main", "above it"),
        ("data", "if TYPE_CHECKING:\n    pass\nelse:\n    import gptailor.cli", "above it"),
        ("newcomer", "import gptailor.types", "not in the table"),
        ("data", "if TYPE_CHECKING:\n    from gptailor.cli import main", ""),
        ("data", "from gptailor import __version__", ""),
        ("data", "from . import read\nfrom .read import read_rows\nimport gptailor.data.read", ""),
        ("recipe", "from gptailor.errors import RecipeError", ""),
        ("cli", "import torch\nfrom gptailor.recipe import Recipe", ""),
    ],
)
def test_the_check_sees_what_it_should(part: str, line: str, words: str) -> None:
    found = [fault(part, entry) for entry in imports_of(line, f"gptailor.{part}")]
    assert (words in " ".join(found)) if words else not any(found)


def modules_after(code: str) -> set[str]:
    """The modules that are loaded when a fresh process has run this."""
    report = "import json, sys\nprint('modules:' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, timeout=60
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("modules:"))
    return set(json.loads(line.removeprefix("modules:")))


def command(*arguments: str) -> str:
    """Code that runs the command line in its process and goes on."""
    return f"""
import sys
from gptailor.cli import main
sys.argv = {["gptailor", *arguments]!r}
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import gptailor",
        command("--help"),
        "import gptailor.pipeline.prepare, gptailor.pipeline.tokens, gptailor.models.names",
        "import gptailor.pipeline.finished, gptailor.pipeline.compare",
        "import gptailor.report.terminal, gptailor.report.comparison",
    ],
    ids=["package", "help", "looking at data", "comparing runs", "printing reports"],
)
def test_starts_without_torch(code: str) -> None:
    loaded = modules_after(code)
    assert "gptailor" in loaded
    assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)


def test_package_itself_loads_nothing_heavy() -> None:
    heavy = {*HEAVY, *HOMES, "numpy", "pydantic", "tokenizers", "rich", "scipy"}
    assert modules_after("import gptailor; dir(gptailor)").isdisjoint(heavy)


def test_check_without_an_estimate_needs_no_torch(tiny_bases: dict[str, Path], news_csv: Path) -> None:
    code = command("check", str(news_csv), "--base", str(tiny_bases["gpt2"]), "--no-estimate")
    assert modules_after(code).isdisjoint(HEAVY)


def test_keys_are_compared_in_the_same_time_however_wrong_they_are() -> None:
    """With `==` the time of the answer would tell how many letters are right."""
    gate = (ROOT / "serve" / "limits.py").read_text(encoding="utf-8")
    assert "hmac.compare_digest(key.strip(), self.key)" in gate
    assert "== self.key" not in gate
