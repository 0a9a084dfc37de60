"""What the docs say is true: trees, settings, commands, paths, links, routes, limits, the fields of a run.

`python tests/test_docs.py` writes the parts that are generated: the trees and the table of settings.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import gptailor
from gptailor.recipe import APPROACHES, build_recipe, describe_settings
from gptailor.types import AnswerForm

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "gptailor"
TREE = "tree: written by `python tests/test_docs.py`", "end of tree"
SETTINGS = "settings: written by `python tests/test_docs.py`", "end of settings"
# Files that can't say themselves what they are.
WITHOUT_DOCSTRING = {
    "data/sample/headlines.csv": "The bundled sample.",
    "models/starter/config.json": "The starter's shape.",
    "models/starter/generation_config.json": "How it writes, where a tool lets it.",
    "models/starter/model.safetensors": "Its weights.",
    "models/starter/tokenizer.json": "Its tokens.",
    "models/starter/tokenizer_config.json": "How tools load them.",
    "py.typed": "Says that the package has type hints.",
    "report/macros.html.jinja": "What the pages' templates share.",
    "report/page.css.jinja": "The page's style.",
    "report/page.html.jinja": "The page's template.",
    "report/page.js": "The page's theme button.",
    "report/tune.html.jinja": "The template of a search's page.",
    "serve/page.css": "The page's style.",
    "report/comparison.html.jinja": "The page of a comparison.",
    "serve/label.css": "The labelling page's own style, beside the page's.",
    "serve/label.html": "The page to label rows.",
    "serve/label.js": "What the labelling page does.",
    "serve/page.html": "The page to try a model in a browser.",
    "serve/page.js": "What is common to all models, and those that classify.",
    "serve/writing.js": "Models that write: conversations and prompts.",
}


def documents() -> list[Path]:
    """Every page that people read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "pretraining" / "README.md"])


def identify(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(text: str, language: str) -> list[str]:
    """The blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def inline_code(text: str) -> list[str]:
    """What stands between single backticks, outside blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


every_document = pytest.mark.parametrize("path", documents(), ids=identify)


# --- what is written by this file ------------------------------------------------------------------


def first_sentence(path: Path) -> str:
    """What a file says of itself: a module in its docstring's first line, a page in its title."""
    name = path.relative_to(SOURCE).as_posix()
    if path.suffix == ".md":
        title = re.search(r"^# (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return f"{title[1]}." if title is not None else ""
    if path.suffix != ".py":
        assert name in WITHOUT_DOCSTRING, f"give {name} a line in WITHOUT_DOCSTRING of tests/test_docs.py"
        return WITHOUT_DOCSTRING[name]
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", text)[0]


def source_files() -> list[Path]:
    """Every file of the package but what running it leaves."""
    found = (p for p in SOURCE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return sorted(path for path in found if not path.name.startswith("."))


def written_tree() -> str:
    """The source as a tree with a line per file: a folder's own files first, then its folders."""

    def lines(folder: Path, depth: int) -> Iterator[str]:
        for path in [p for p in files if p.parent == folder]:
            yield f"{'  ' * depth}{path.name}".ljust(34) + f" {first_sentence(path)}"
        for below in sorted({p for file in files for p in file.parents if p.parent == folder}):
            yield f"{'  ' * depth}{below.name}/"
            yield from lines(below, depth + 1)

    files = source_files()
    return "\n".join(["```text", "src/gptailor/", *lines(SOURCE, 1), "```"])


def written_overview() -> str:
    """The source as its folders, each with what its package says of itself; every file folded in below."""
    files = [path for path in source_files() if path.name == "__init__.py"]
    words = {path.parent: first_sentence(path) for path in files}
    names = {path: f"{path.relative_to(SOURCE.parent).as_posix()}/" for path in words}
    lines = [f"{names[folder]:<26} {says}" for folder, says in words.items()]
    folded = ["<details>", "<summary>Every file</summary>", "", written_tree(), "", "</details>"]
    return "\n".join(["```text", *lines, "```", "", *folded])


def written_settings() -> str:
    """The table of all settings."""
    rows = ["| setting | default | what it decides |", "|---|---|---|"]
    for key, default, words in describe_settings():
        shown = re.sub(r"&\w+;", r"`\g<0>`", words)
        rows.append(f"| `{key}` | `{default}` | {shown} |")
    return "\n".join(rows)


GENERATED = [
    ("README.md", TREE, written_overview),
    ("ARCHITECTURE.md", TREE, written_tree),
    ("docs/recipe.md", SETTINGS, written_settings),
]


def between(text: str, marks: tuple[str, str]) -> tuple[int, int]:
    """Where the generated part begins and ends."""
    start, end = (f"<!-- {mark} -->" for mark in marks)
    assert text.count(start) == text.count(end) == 1
    return text.index(start) + len(start), text.index(end)


@pytest.mark.parametrize(("name", "marks", "write"), GENERATED, ids=["readme", "architecture", "recipe"])
def test_generated_parts_are_in_step(name: str, marks: tuple[str, str], write: Any) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    start, end = between(text, marks)
    assert text[start:end].strip() == write(), f"run `python tests/test_docs.py` to write {name}"


def test_tree_names_every_source_file_and_no_other() -> None:
    """The same without the generator: what a reader would gather from the page."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    start, end = between(text, TREE)
    folders: list[str] = []
    named = []
    for line in text[start:end].strip().splitlines()[2:-1]:
        entry, _, says = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        if entry.endswith("/"):
            folders[depth:] = [entry]
        else:
            named.append("".join(folders[:depth]) + entry)
            assert says.strip(), f"{entry} has no line"
    assert sorted(named) == sorted(p.relative_to(SOURCE).as_posix() for p in source_files())


def test_the_table_of_files_without_docstring_is_exact() -> None:
    others = {p.relative_to(SOURCE).as_posix() for p in source_files() if p.suffix not in (".py", ".md")}
    assert others == WITHOUT_DOCSTRING.keys()


# --- paths, links, commands, settings, code --------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What links can name: GitHub's ids of the headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            page = path.parent / name if name else path
            assert page.exists(), target
            assert not anchor or anchor in anchors(page), target


@every_document
def test_pictures_are_there(path: Path) -> None:
    for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).is_file(), f"{target} is to be added"


@every_document
def test_files_that_are_named_exist(path: Path) -> None:
    """`data/read.py` is a file of the source or of the repository; so are tests, scripts and pages."""
    text = path.read_text(encoding="utf-8")
    pattern = r"(?<![\w./-])((?:[\w-]+/)+[\w.-]+\.(?:py|md|yaml|jinja|js|txt))\b"
    for name in re.findall(pattern, re.sub(r"\]\([^)]*\)", "]", text)):
        is_a_runs = name.startswith("runs/") or name.startswith("checkpoints/")
        assert is_a_runs or (ROOT / name).is_file() or (SOURCE / name).is_file(), name


def commands_in(text: str) -> Iterator[list[str]]:
    """Every `gptailor ...` in bash blocks and between backticks, as words."""
    lines = [line for block in fences(text, "bash") for line in block.splitlines()]
    for line in [*lines, *inline_code(text)]:
        words = shlex.split(line, comments=True) if line.startswith("gptailor") else []
        if len(words) > 1 and words[1] != "...":
            yield words[1:]


def options_by_verb() -> dict[str, set[str]]:
    import typer

    from gptailor.cli import app

    group: Any = typer.main.get_command(app)
    return {
        verb: {option for parameter in command.params for option in parameter.opts}
        for verb, command in group.commands.items()
    }


@every_document
def test_commands_are_those_of_the_command_line(path: Path) -> None:
    options = options_by_verb()
    for verb, *words in commands_in(path.read_text(encoding="utf-8")):
        if verb == "--help":
            continue
        assert verb in options, f"there is no `gptailor {verb}`"
        for word in words:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in {*options[verb], "--help"}, f"gptailor {verb} {word}"


def test_every_verb_is_told() -> None:
    told = {verb for path in documents() for verb, *_ in commands_in(path.read_text(encoding="utf-8"))}
    assert options_by_verb().keys() <= told


SETTING_KEYS = {re.sub(r"\[\w+\]", "", key) for key, _, _ in describe_settings()}
BRANCHES = {key.rpartition(".")[0] for key in SETTING_KEYS} | {"approach"}


@every_document
def test_settings_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = [word for words in commands_in(text) for word in words if re.match(r"[a-z]+\.[a-z_.]+=", word)]
    if path.name != "run-folder.md":  # whose keys are those of files
        pattern = r"(data|train|evaluate|approach)\.(?!csv|tsv|json)[a-z_]"
        named += [code for code in inline_code(text) if re.match(pattern, code)]
    for code in named:
        key = re.split(r"[=:\s]", code)[0]
        assert key in SETTING_KEYS | BRANCHES, code


@every_document
def test_recipes_can_be_used(path: Path) -> None:
    for block in fences(path.read_text(encoding="utf-8"), "yaml"):
        build_recipe(yaml.safe_load(block))


@every_document
def test_python_is_python_and_our_names_are_ours(path: Path) -> None:
    for block in fences(path.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "gptailor" or node.attr in gptailor.__all__, node.attr
            if isinstance(node, ast.ImportFrom) and node.module == "gptailor":
                assert {alias.name for alias in node.names} <= {*gptailor.__all__}


@every_document
def test_addresses_are_few(path: Path) -> None:
    """PyTorch's own index is named once, in the README's install section; nothing else is fetched."""
    found = re.findall(r"https?://([\w.-]+)", path.read_text(encoding="utf-8"))
    foreign = [host for host in found if host != "127.0.0.1"]
    assert foreign == (["download.pytorch.org"] if path == ROOT / "README.md" else [])


def test_pages_that_the_source_names_exist() -> None:
    for path in [*SOURCE.rglob("*.py"), ROOT / "pyproject.toml"]:
        for name in re.findall(r"\b(?:docs|recipes)/[\w/.-]+\.(?:md|yaml)", path.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{identify(path)} names {name}"


def test_decisions_are_numbered_and_have_their_four_parts() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04d}" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(page.name[:4])}. ")
        heads = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
        assert heads in (
            ["Context", "Decision", "Why", "What it costs"],
            ["Context", "Decision and why", "What it costs"],
        )


# --- architecture ----------------------------------------------------------------------------------


def test_layers_are_those_that_are_enforced() -> None:
    from test_layers import LAYERS

    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (.*) \|$", text, flags=re.MULTILINE)
    told = {part: int(level) for level, parts in rows for part in re.findall(r"`(\w+)`", parts)}
    assert told == LAYERS


def test_types_are_those_of_the_code() -> None:
    from gptailor import types

    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))
    written = {name for name, thing in vars(types).items() if dataclasses.is_dataclass(thing)}
    # Parts of others that a table of the flow can do without.
    assert told == written - {"Segment", "Score", "Predictions"}


# --- recipe.md: what is decided --------------------------------------------------------------------


def test_rates_of_answers_are_those_of_the_code() -> None:
    from gptailor.pipeline.objective import usual_rates
    from gptailor.pipeline.texts.objective import PREFERENCE_RATES

    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    found = re.search(r"has\s+(\S+) with `full`; preferences have (\S+), with LoRA (\S+?)\.\n", text)
    assert found is not None
    rates = [
        usual_rates(50_000_000, new_form=True)["full"],
        PREFERENCE_RATES["full"],
        PREFERENCE_RATES["lora"],
    ]
    assert [float(rate) for rate in found.groups()] == rates


@pytest.mark.parametrize("approach", ["full", "lora", "scratch"])
def test_default_rates_are_those_of_the_code(approach: str) -> None:
    from gptailor.pipeline.plan import resolve_plan
    from gptailor.recipe import TrainSettings

    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{approach}` \| (\S+) \| (\S+) \|$", text, flags=re.MULTILINE)
    assert row is not None
    for told, num_weights in zip(row.groups(), (50_000_000, 50_000_001), strict=True):
        plan = resolve_plan(
            TrainSettings(),
            approach=approach,
            num_weights=num_weights,
            num_rows=1000,
            micro_batch_size=16,
            precision="fp32",
        )
        assert float(told) == plan.learning_rate


def test_numbers_of_the_defaults_are_those_of_the_code() -> None:
    from gptailor.data import split
    from gptailor.launch import BF16_PAYS_FROM
    from gptailor.pipeline import fit, plan, workshop

    text = " ".join((ROOT / "docs" / "recipe.md").read_text(encoding="utf-8").split())
    assert f"Under {split.FEW_ROWS:,} rows: 70 % train, 15 % validate, 15 % test" in text
    assert f"with at most {split.MOST_ROWS:,} rows each" in text
    assert (split.SHARE_OF_FEW, split.SHARE_OF_MANY) == (0.15, 0.10)
    assert f"Under {workshop.FEW_ROWS} training rows" in text
    assert f"over {fit.LONGEST_AUTO_SECONDS // 60} minutes" in text
    assert f"at least {plan.SHORTEST} and at most {plan.LONGEST:,} steps" in text
    assert f"at most {plan.VALIDATIONS} validations" in text
    assert f"{plan.EPOCHS} epochs, at least {plan.SHORTEST} and" in text
    assert f"gets up to {plan.MOST_EPOCHS} epochs" in text
    assert f"no more than {plan.ENOUGH:,} steps; `scratch` always {plan.MOST_EPOCHS}" in text
    assert f"{BF16_PAYS_FROM // 10**6} million weights or more" in text
    assert APPROACHES.keys() == {"auto", "full", "lora", "frozen", "scratch"}


# --- serving.md ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serving() -> str:
    return (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


class FakePredictor:
    """As much of a model as an app needs to be built."""

    form = AnswerForm()
    name, version, label_names, threshold, max_characters = "fake", "0", ("a", "b"), None, 10


def test_routes_are_those_of_the_server(serving: str) -> None:
    from gptailor.serve.app import build_app

    told = set(re.findall(r"^\| `(GET|POST) (\S+)` \|", serving, flags=re.MULTILINE))
    app = build_app([FakePredictor()])  # type: ignore[list-item]
    served = {(method, route.path) for route in app.routes for method in route.methods or ()}  # type: ignore[attr-defined]
    assert told == {(method, path) for method, path in served if method != "HEAD"}


def test_limits_are_those_of_the_server(serving: str) -> None:
    from gptailor.models.answerer import CHARACTERS_A_TOKEN, LONGEST_CONTEXT
    from gptailor.models.bundle import LONGEST_TEXT
    from gptailor.models.predictor import Predictor
    from gptailor.serve import batcher, requests, run, service
    from gptailor.serve.app import build_app

    app = {name: parameter.default for name, parameter in inspect.signature(build_app).parameters.items()}
    queue = inspect.signature(batcher.Batcher).parameters["queue_tokens"].default
    drain = inspect.signature(run.serve).parameters["drain_seconds"].default
    for row in (
        f"| body of a request | {app['max_body_bytes']:,} bytes",
        f"| texts in a request | {app['max_inputs']} |",
        f"| characters of a text to classify | {Predictor.max_characters:,} |",
        f"| characters of a prompt or of one of its `values` | {LONGEST_TEXT:,}, or {CHARACTERS_A_TOKEN} ",
        f"| texts that wait, per model | {app['queue_items']} |",
        f"| tokens of a prompt and its answer | what the base reads, at most {LONGEST_CONTEXT:,},",
        f"| tokens that wait, per classifier | {queue:,};",
        f"| time until a text starts to run | {app['deadline_seconds']:.0f} s |",
        f"| time for a body to arrive | {requests.BODY_SECONDS:.0f} s |",
        f"| time for a request's head to arrive | {run.HEAD_SECONDS:.0f} s |",
        f"| time for which a client may let an answer lie unread | {run.STALL_SECONDS:.0f} s ",
        f"| bodies in memory, all together | {service.BODIES_HELD} of",
        f"within {drain:.0f} s",
    ):
        assert row in serving, row


def test_error_codes_are_those_of_the_server(serving: str) -> None:
    table = serving[serving.index("| status | code |") : serving.index("`type` is")]
    told = {
        code
        for cell in re.findall(r"^\| \d+ \| (.*?) \|", table, re.MULTILINE)
        for code in re.findall(r"`(\w+)`", cell)
    }
    words: set[str] = set()
    said: set[str] = set()
    for path in (SOURCE / "serve").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            if isinstance(node, ast.Call):
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                if isinstance(node.func, ast.Name) and node.func.id == "_unreadable":
                    given += node.args[1:2]
                said |= {v.value for v in given if isinstance(v, ast.Constant) and isinstance(v.value, str)}
    assert told <= words, f"no such code: {told - words}"
    assert said <= told, f"not told: {said - told}"


def test_metrics_are_those_of_the_server(serving: str) -> None:
    from gptailor.serve.service import Metrics

    told = set(re.findall(r"^\| `(gptailor_\w+)` \|", serving, flags=re.MULTILINE))
    kept = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Metrics().registry.collect()
    }
    assert told == kept


# --- run-folder.md, and the road to backward -------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A finished run of the command line, and the functions of ours that stood over `backward`."""

    folder: Path
    road: list[str]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    import torch

    import tiny
    from gptailor import cli

    place = tmp_path_factory.mktemp("docs")
    data, base, folder = (
        tiny.write_news(place / "news.csv", rows=300),
        tiny.build_base(place / "base"),
        place / "run",
    )
    roads: list[list[str]] = []
    grad = torch.autograd.grad

    def watched(*arguments: Any, **named: Any) -> Any:
        frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(SOURCE)]
        roads.append([f.name for f in frames if not f.name.startswith(("_", "<"))])
        return grad(*arguments, **named)

    words = ["gptailor", "fit", str(data), "--base", str(base), "--approach", "lora", "--out", str(folder)]
    words += ["--set", "train.length=4 steps", "--set", "evaluate.resamples=100"]
    words += ["--set", "evaluate.prompted_rows=10", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        patch.setenv("GPTAILOR_CACHE", str(place / "cache"))
        patch.setattr(torch.autograd, "grad", watched)
        # A worker's thread has a road of its own; here it is all one.
        patch.setattr("gptailor.pipeline.plan.choose_workers", lambda *_: 1)
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert left.value.code == 0
    return Fitted(folder, next(road for road in roads if "training_steps" in road))


def test_road_to_backward_is_as_told(fitted: Fitted) -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    told = text[text.index("<!-- chain -->") :].split("\n\n")[1].strip().split(" -> ")
    assert [*fitted.road[fitted.road.index("fit") :], "grad"] == told


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """The part of the page under the heading that holds the title."""
    found = re.search(
        rf"^## [^\n]*`{re.escape(title)}`[^\n]*\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"there is no section on {title}"
    return found[1]


def told_keys(text: str) -> set[str]:
    """The keys in the first column of a section's tables."""
    cells = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def read_json(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)


def test_every_file_of_a_run_is_told(fitted: Fitted, page: str) -> None:
    table = page[: page.index("\n## ")]
    told = set(re.findall(r"^\| `(\S+?)/?` \|", table, flags=re.MULTILINE))
    assert {path.name for path in fitted.folder.iterdir()} == told
    for path in fitted.folder.rglob("*"):
        if path.is_file() and (path.parent.name in ("data", "model") or "step-" in path.parent.name):
            assert path.name in page, path.name


@pytest.mark.parametrize(
    "name",
    ["environment.json", "data/summary.json", "openings.jsonl", "report.json"],
)
def test_keys_of_a_file_are_those_told(fitted: Fitted, page: str, name: str) -> None:
    assert told_keys(section(page, name)) == read_json(fitted.folder / name).keys()


def test_keys_of_the_ledger_and_its_reasons(fitted: Fitted, page: str) -> None:
    from typing import get_args

    from gptailor.types import Reason

    line = read_json(fitted.folder / "data" / "ledger.jsonl")
    text = section(page, "data/ledger.jsonl")
    assert told_keys(text) == line.keys() | set(get_args(Reason))
    assert all(f"`{count}`" in text for count in line["tokens"])


def test_keys_of_the_bundle(fitted: Fitted, page: str) -> None:
    bundle = read_json(fitted.folder / "model" / "gptailor.json")
    assert told_keys(section(page, "model/")) == bundle.keys()


def test_keys_of_checkpoints_and_metrics(fitted: Fitted, page: str) -> None:
    newest = max((fitted.folder / "checkpoints").glob("step-*"))
    text = section(page, "checkpoints/")
    state, manifest = read_json(newest / "state.json"), read_json(newest / "manifest.json")
    assert {f"`{key}`" for key in (*state, *state["progress"], *manifest)} <= set(re.findall(r"`\w+`", text))
    lines = [json.loads(line) for line in (fitted.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    told = section(page, "metrics.jsonl")
    for kind in ("step", "validation"):
        row = re.search(rf'^\| `"kind": "{kind}"` \| (.*) \|$', told, flags=re.MULTILINE)
        line = next(line for line in lines if line["kind"] == kind)
        assert row is not None
        assert {*re.findall(r"`(\w+)`", row[1]), "kind"} == line.keys()


def test_what_the_report_nests_is_told(fitted: Fitted, page: str) -> None:
    report, text = read_json(fitted.folder / "report.json"), section(page, "report.json")
    told = set(re.findall(r"`(\w+)`", text))
    nested: list[Mapping[str, Any]] = [report["test"], report["verdict"], report["training"]]
    nested.append(report["test"]["at_threshold"])
    nested += report["baselines"].values()
    for mapping in nested:
        assert mapping.keys() <= told, mapping.keys() - told


def test_columns_of_the_tables(fitted: Fitted, page: str) -> None:
    from gptailor.pipeline.answers import header_for

    predictions = (fitted.folder / "predictions.csv").read_text("utf-8").splitlines()[0]
    suspects = (fitted.folder / "data" / "suspects.csv").read_text("utf-8").splitlines()[0]
    for line, title in (
        (predictions, "predictions.csv"),
        (suspects, "data/suspects.csv"),
        (",".join(header_for([])), "predictions.csv"),
    ):
        for column in line.replace('"', "").split(","):
            assert column.startswith("p(") or f"`{column}`" in section(page, title), column


# --- coming-from-trainer.md ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainers_page() -> str:
    return (ROOT / "docs" / "coming-from-trainer.md").read_text(encoding="utf-8")


def test_arguments_of_the_trainer_exist(trainers_page: str) -> None:
    from transformers import TrainingArguments

    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    named = set(re.findall(r"TrainingArguments\.(\w+)", trainers_page))
    assert len(named) > 15
    assert named <= names, named - names


def test_the_trainers_script_runs(
    trainers_page: str, tmp_path: Path, tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny

    (script,) = fences(trainers_page, "python")
    tiny.write_news(tmp_path / "news.csv", rows=60)
    for old, new in (
        ('"gpt2"', repr(str(tiny_bases["gpt2"]))),
        ("max_length=512", "max_length=32"),
        ("num_train_epochs=5,", "num_train_epochs=1, use_cpu=True, report_to=[], disable_tqdm=True,"),
        ("eval_steps=100", "eval_steps=2"),
        ("save_steps=100", "save_steps=2"),
    ):
        assert old in script, old
        script = script.replace(old, new)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(script, "coming-from-trainer.md", "exec"), {"__name__": "script"})
    assert (tmp_path / "model" / "model.safetensors").is_file()


def main() -> None:
    """Writes the generated parts."""
    for name, marks, write in GENERATED:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        start, end = between(text, marks)
        path.write_text(f"{text[:start]}\n{write()}\n{text[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
