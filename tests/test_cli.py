"""The command line: exit codes, which stream gets what, mistakes without a traceback, questions asked."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gptailor
import tiny
import tiny_texts as texts
from gptailor import cli
from gptailor.cli.options import recipe_from
from gptailor.pipeline.doctor import OPTIONAL
from gptailor.pipeline.task import settle_task

COMMON = ["--task", "--text", "--label", "--columns", "--label-names", "--test", "--test-columns"]
COMMON += ["--test-label-names", "--validation", "--base", "--approach", "--seed", "--set", "--json"]
COMMON += ["--prompt", "--completion", "--preset", "--source", "--target", "--test-target"]
COMMON += ["--validation-target"]
FITTED = [*COMMON, "--fix", "--minutes", "--slice", "--out", "--baselines", "--overwrite"]
LABELLED = ["--text", "--label", "--columns", "--label-names"]
DRAWN = ["--temperature", "--top-p", "--top-k", "--min-p", "--repetition-penalty", "--stop", "--beams"]
DRAWN += ["--max-new-tokens", "--seed"]
OPTIONS = {
    "demo": ["--out", "--overwrite", "--json"],
    "check": [*FITTED, "--no-estimate"],
    "fit": FITTED,
    "tune": [*FITTED, "--trials", "--time", "--storage"],
    "curve": [*LABELLED, "--base", "--seed", "--set", "--more", "--page", "--json"],
    "suspects": [*LABELLED, "--base", "--top", "--out", "-o", "--seed", "--set", "--json"],
    "evaluate": [*LABELLED, "--target", "--slice", "--json"],
    "predict": [
        *DRAWN,
        *("--input", "--out", "-o", "--text", "--columns", "--keep", "--precision", "--rank", "--json"),
    ],
    "label": ["--labels", "--run", "--text", "--columns", "--out", "-o", "--port"],
    "serve": ["--host", "--port", "--api-key", "--precision"],
    "export": ["--to", "--out", "-o", "--precision", "--json"],
    "report": ["--json"],
    "compare": ["--page", "--json"],
    "bases": ["--json"],
    "doctor": ["--clear-cache", "--json"],
}


@dataclass(frozen=True)
class Said:
    """How the command line left, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Standard error without its line breaks."""
        return " ".join(self.err.split())

    @property
    def result(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        value = json.loads(self.out, parse_constant=refuse)
        assert isinstance(value, dict)
        assert self.out.count("\n") == 1
        return value


Invoke = Callable[..., Said]


class Terminal(io.StringIO):
    """Standard input with a person before it, who types these lines."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Runs the command line in this process."""

    def run(*arguments: object, typed: str | None = None) -> Said:
        monkeypatch.setattr(sys, "argv", ["gptailor", *map(str, arguments)])
        if typed is not None:
            monkeypatch.setattr(sys, "stdin", Terminal(typed))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        written = capsys.readouterr()
        assert "Traceback" not in written.err
        return Said(int(left.value.code or 0), written.out, written.err)

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a file, and a finished run of both."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.build_base(folder / "base")
    tiny.write_news(folder / "news.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTAILOR_CACHE", str(folder / "cache"))
        gptailor.fit(folder / "news.csv", settings=settings_for(folder, "run"))
    return folder


@pytest.fixture(autouse=True)
def at_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "60")


def settings_for(folder: Path, name: str) -> dict[str, Any]:
    return {
        "base": str(folder / "base"),
        "approach": {"kind": "frozen", "strengths": [1, 100]},
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(folder / name),
    }


def quick(name: str) -> list[str]:
    words = "--base base --approach frozen --set approach.strengths=[1,100] --set evaluate.resamples=100"
    return [*words.split(), "--baselines", "none", "--out", name]


def write_two_labels(path: Path) -> Path:
    """Two columns that could be the label, two that could be the text."""
    lines = ["heading,story,first,second"]
    for row, line in enumerate(Path("news.csv").read_text().splitlines()[1:]):
        text, label = line.split(",")
        lines.append(f"{text},it is said that {text},{label},{'good' if row % 7 < 4 else 'bad'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_two_languages(folder: Path) -> Path:
    """Two texts that keep step line by line, and one table of both."""
    english = [texts.words(seed, 6) for seed in range(40)]
    welsh = [texts.words(seed + 60, 4) for seed in range(40)]
    texts.write_lines(folder / "english.txt", english)
    texts.write_lines(folder / "welsh.txt", welsh)
    rows = [{"english": one, "welsh": other} for one, other in zip(english, welsh, strict=True)]
    return texts.write_csv(folder / "pairs.csv", rows)


def quick_text(name: str) -> list[str]:
    steps = ["--set", "train.length=1 steps", "--set", "data.max_new_tokens=4"]
    return ["--base", "base", *steps, "--set", "evaluate.resamples=100", "--baselines", "none", "--out", name]


# Help and usage.


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_every_option_of_the_contract(command: str, invoke: Invoke) -> None:
    said = invoke(command, "--help")
    assert said.code == 0
    assert set(OPTIONS[command]) <= set(said.out.replace(",", " ").split())


def test_help_names_every_command(invoke: Invoke) -> None:
    said = invoke("--help")
    assert said.code == 0
    assert set(OPTIONS) <= {line.split()[0] for line in said.out.splitlines() if line.strip()}


def test_no_arguments_print_the_help_and_leave_with_2(invoke: Invoke) -> None:
    said = invoke()
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("Usage: gptailor")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["fit"],
        ["fit", "news.csv", "--nonsense"],
        ["fit", "news.csv", "--seed", "many"],
        ["fit", "news.csv", "--seed", "-1"],
        ["fit", "--source", "english.txt"],
        ["check", "--target", "welsh.txt"],
        ["evaluate", "run"],
        ["serve", "run", "--port", "70000"],
        ["label", "news.csv", "--port", "70000"],
        ["predict", "run", "--rank", "certain"],
        ["predict", "run", "--rank", "uncertain", "--input", "x"],
        ["compare"],
    ],
)
def test_wrong_usage_leaves_with_2(arguments: list[str], invoke: Invoke) -> None:
    said = invoke(*arguments)
    assert (said.code, said.out) == (2, "")
    assert "--help" in said.err


def test_wrong_usage_names_the_verb_to_ask_for_help(invoke: Invoke) -> None:
    assert "Try `gptailor predict --help`." in invoke("predict").err
    assert "Try `gptailor --help`." in invoke("frobnicate").err


def test_settings_are_listed_for_set(invoke: Invoke) -> None:
    said = invoke("help-settings")
    assert said.code == 0
    for key in ("data.split.group = null", "train.length = null", "approach[lora].rank = 8", "seed = 0"):
        assert key in said.out.splitlines()


# Mistakes.

MISTAKES = {
    "missing file": (["fit", "nwes.csv"], ["nwes.csv"]),
    "empty file": (["fit", "empty.csv"], ["empty.csv", "empty"]),
    "header only": (["check", "header.csv"], ["header.csv", "no rows"]),
    "folder without texts": (["fit", "hollow"], ["hollow"]),
    "binary file": (["check", "noise.csv"], ["noise.csv"]),
    "text column": (["fit", "news.csv", "--text", "txet"], ["'txet'", "Did you mean 'text'?", "--text"]),
    "label column": (["check", "news.csv", "--label", "lable"], ["'lable'", "Did you mean 'label'?"]),
    "setting": (["fit", "news.csv", "--set", "train.lenght=3"], ["train.lenght", "Did you mean 'length'?"]),
    "branch": (["fit", "news.csv", "--set", "trian.length=3 epochs"], ["trian", "Did you mean 'train'?"]),
    "value": (["fit", "news.csv", "--set", "train.length=long"], ["train.length", "'long'", "3 epochs"]),
    "no value": (["fit", "news.csv", "--set", "train.length"], ["train.length", "--set"]),
    "approach": (["fit", "news.csv", "--approach", "lara"], ["'lara'", "Did you mean 'lora'?"]),
    "task": (["fit", "news.csv", "--task", "chat"], ["no columns are named for a prompt", "--prompt COLUMN"]),
    "prompt column": (["fit", "pairs.csv", "--prompt", "englsh"], ["'englsh'", "Did you mean 'english'?"]),
    "template": (
        ["fit", "pairs.csv", "--prompt", "Say {englsh}", "--completion", "welsh"],
        ["{englsh}", "Did you mean 'english'?"],
    ),
    "brace": (
        ["fit", "pairs.csv", "--prompt", "Say {english", "--completion", "welsh"],
        ["brace without its partner", "{{"],
    ),
    "template of nothing": (
        ["fit", "pairs.csv", "--prompt", "english", "--completion", "{{welsh}}"],
        ["names no column", "{answer}"],
    ),
    "preset": (["check", "pairs.csv", "--preset", "translate"], ["'translate'", "translation"]),
    "other side": (["fit", "--source", "english.txt", "--target", "short.txt"], ["40 lines", "39"]),
    "no other side": (["fit", "--source", "english.txt", "--target", "wlsh.txt"], ["wlsh.txt"]),
    "side column": (["fit", "pairs.csv", "--source", "englsh"], ["'englsh'", "Did you mean 'english'?"]),
    "unknown task": (["check", "news.csv", "--task", "poetry"], ["task", "poetry"]),
    "baselines": (["fit", "news.csv", "--baselines", "some"], ["evaluate.baselines", "some"]),
    "base": (["fit", "news.csv", "--base", "./nowhere"], ["./nowhere", "no such folder"]),
    "base without a model": (["check", "news.csv", "--base", "hollow"], ["hollow", "config.json"]),
    "label names": (["fit", "news.csv", "--label-names", "0=World"], ["--label-names", "'sports'"]),
    "pair": (["fit", "news.csv", "--label-names", "World"], ["--label-names", "'World' is not a pair"]),
    "empty name": (["fit", "news.csv", "--label-names", "0="], ["'0=' is not a pair"]),
    "named twice": (["fit", "news.csv", "--label-names", "0=a,0=b"], ["'0' is named twice"]),
    "test labels": (["fit", "news.csv", "--test", "bare.csv"], ["'1'", "'sports'", "--test-label-names"]),
    "same file": (["fit", "news.csv", "--test", "./news.csv"], ["given twice", "news.csv"]),
    "two labels": (["fit", "two.csv", "--text", "story"], ["--label first or --label second", "'good'"]),
    "recipe is no YAML": (["fit", "broken.yaml"], ["broken.yaml", "can't be read"]),
    "recipe is empty": (["fit", "blank.yaml"], ["blank.yaml", "no settings"]),
    "recipe is missing": (["check", "lost.yaml"], ["lost.yaml", "can't be read"]),
    "recipe is a list": (["fit", "list.yml"], ["list.yml", "no settings"]),
    "run": (["predict", "rnu", "--input", "x"], ["rnu", "no such folder"]),
    "unfinished run": (["predict", "hollow", "--input", "x"], ["hollow", "no finished model"]),
    "report of nothing": (["report", "rnu"], ["rnu", "no such folder"]),
    "compare with nothing": (["compare", "run", "rnu"], ["rnu", "no such folder"]),
    "compare with itself": (["compare", "run", "./run"], ["named twice"]),
    "label without labels": (["label", "news.csv", "--text", "text"], ["no labels", "--labels"]),
    "labels into another file": (
        ["label", "news.csv", "--labels", "a,b", "--text", "text", "-o", "two.csv"],
        ["two.csv", "isn't a file of labels"],
    ),
    "report of no run": (["report", "hollow"], ["hollow", "not finished"]),
    "empty input": (["predict", "run", "--input", "x", "--input", " "], ["--input 2", "empty"]),
    "output ending": (["predict", "run", "news.csv", "-o", "answers.txt"], ["answers.txt", ".jsonl"]),
    "output is input": (["predict", "run", "news.csv", "-o", "./news.csv"], ["is the input file"]),
    "output in a file": (["predict", "run", "news.csv", "-o", "news.csv/a.csv"], ["can't be written"]),
    "unlabelled file": (["evaluate", "run", "bare.csv", "--label", "lebal"], ["'lebal'", "'label'"]),
    "unknown labels": (["evaluate", "run", "bare.csv"], ["'1'", "'sports'", "--label-names"]),
    "export format": (["export", "run", "--to", "hff"], ["'hff'", "Did you mean 'hf'?"]),
    "export of a classifier": (["export", "run", "--to", "gguf"], ["no place for its head", "--to onnx"]),
    "export precision": (["export", "run", "--precision", "fp16"], ["--precision", "only gguf"]),
    "export place": (["export", "run", "--out", "hollow"], ["hollow", "not empty"]),
    "serving nothing": (["serve", "hollow"], ["hollow", "no finished model"]),
}


@pytest.fixture(scope="module")
def mistakes(place: Path) -> Path:
    """The files that the mistakes are made with."""
    (place / "empty.csv").write_bytes(b"")
    (place / "header.csv").write_text("text,label\n")
    (place / "hollow").mkdir()
    (place / "hollow" / "image.png").write_bytes(b"\x89PNG")
    (place / "noise.csv").write_bytes(bytes(range(256)) * 40)
    (place / "broken.yaml").write_text("data: {train: [\n")
    (place / "blank.yaml").write_text("# nothing\n")
    (place / "short.txt").write_text("".join(f"{line}\n" for line in range(39)))
    write_two_languages(place)
    (place / "list.yml").write_text("- data\n")
    rows = [f"village {row} news of the day {row * row},{1 + row % 3}" for row in range(30)]
    (place / "bare.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return place


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_and_leaves_with_1(
    name: str, mistakes: Path, invoke: Invoke, tmp_path: Path
) -> None:
    arguments, words = MISTAKES[name]
    write_two_labels(mistakes / "two.csv")
    if arguments[0] == "fit":
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    if arguments[0] in ("fit", "check") and "--base" not in arguments:
        arguments = [*arguments, "--base", "base"]
    said = invoke(*arguments)
    assert (said.code, said.out) == (1, "")
    for word in words:
        assert word in said.words
    assert not (tmp_path / "out" / "model").exists()


def test_a_mistake_with_json_leaves_standard_output_empty(invoke: Invoke) -> None:
    said = invoke("check", "nwes.csv", "--json")
    assert (said.code, said.out) == (1, "")
    assert "nwes.csv" in said.err


def test_a_long_path_in_a_message_is_not_broken(invoke: Invoke) -> None:
    path = "a-rather-long-name-of-a-folder/" * 5 + "news.csv"
    assert path in invoke("check", path).err


def test_after_a_refused_column_the_same_folder_takes_the_right_one(mistakes: Path, invoke: Invoke) -> None:
    write_two_labels(mistakes / "two.csv")
    assert invoke("fit", "two.csv", "--text", "story", *quick("mended")).code == 1
    assert invoke("fit", "two.csv", "--text", "story", "--label", "first", *quick("mended")).code == 0


def test_our_own_fault_leaves_with_3_and_a_file_to_send(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fall(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug \udcff")

    monkeypatch.setattr("gptailor.pipeline.check.check_recipe", fall)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = invoke("check", "news.csv", "--json")
    assert (said.code, said.out) == (3, "")
    (log,) = tmp_path.glob("gptailor-*.log")
    assert log.name in said.err
    assert "This is our fault" in said.err
    written = log.read_text()
    assert "gptailor check news.csv --json" in written
    assert "Traceback" in written
    assert "ZeroDivisionError" in written


@pytest.mark.parametrize("fault", [KeyboardInterrupt, gptailor.errors.Interrupted])
def test_an_interruption_leaves_with_130(
    fault: type[BaseException], invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise fault("stopped")

    monkeypatch.setattr("gptailor.pipeline.check.check_recipe", stop)
    assert invoke("check", "news.csv").code == 130


# Results.


def test_fit_prints_one_json_object_and_says_the_rest_on_standard_error(invoke: Invoke) -> None:
    said = invoke("fit", "news.csv", *quick("fresh"), "--json")
    assert said.code == 0
    assert said.result == json.loads(Path("fresh/report.json").read_text())
    assert "reading news.csv" in said.err
    again = invoke("fit", "news.csv", *quick("fresh"), "--json")
    assert again.result == said.result
    assert "finished; nothing to do" in again.err


def test_fit_without_json_writes_nothing_to_standard_output(invoke: Invoke) -> None:
    said = invoke("fit", "news.csv", *quick("fresh"))
    assert (said.code, said.out) == (0, "")
    assert "fresh/report.html" in said.err
    assert "gptailor serve fresh" in said.err
    assert "macro-F1" in said.err


@pytest.mark.parametrize("estimate", [True, False])
def test_check_prints_one_json_object(estimate: bool, invoke: Invoke) -> None:
    flags = [] if estimate else ["--no-estimate"]
    said = invoke("check", "news.csv", "--base", "base", "--approach", "full", *flags, "--json")
    assert said.code == 0
    result = said.result
    assert result["read"] == 120 == sum(result[part] for part in ("train", "validation", "test"))
    assert set(result["labels"]) == {"business", "health", "sports"}
    assert (result["estimate"] is not None) == estimate
    if estimate:
        assert result["estimate"]["steps"] == 200
        assert result["estimate"]["seconds"] > 0


def test_check_without_json_shows_what_the_model_will_read(invoke: Invoke) -> None:
    said = invoke("check", "news.csv", "--base", "base", "--no-estimate")
    assert (said.code, said.out) == (0, "")
    for word in ("120 read", "84 train", "sports", "nothing is cut", "in town", "text: text label: label"):
        assert word in said.words


def test_evaluate_scores_a_new_file(invoke: Invoke) -> None:
    said = invoke("evaluate", "run", "news.csv", "--json")
    assert said.code == 0
    assert (said.result["read"], said.result["rows"], said.result["left_out"]) == (120, 120, 0)
    scores = said.result["scores"]
    assert scores["macro_f1"]["low"] <= scores["macro_f1"]["value"] <= scores["macro_f1"]["high"]
    table = invoke("evaluate", "run", "news.csv")
    assert (table.code, table.out) == (0, "")
    assert f"{scores['accuracy']['value']:.3f}" in table.err


def test_evaluate_maps_bare_labels(mistakes: Path, invoke: Invoke) -> None:
    said = invoke("evaluate", "run", "bare.csv", "--label-names", "1=sports,2=business,3=health", "--json")
    assert said.code == 0
    assert said.result["rows"] == 30


def test_report_prints_what_fit_wrote(invoke: Invoke) -> None:
    said = invoke("report", "run", "--json")
    assert said.result == json.loads(Path("run/report.json").read_text())
    assert "run/report.html" in invoke("report", "run").err


def test_export_compares_what_it_wrote(invoke: Invoke) -> None:
    said = invoke("export", "run", "--out", "exported", "--json")
    assert said.code == 0
    assert said.result["parity"] < 1e-4
    assert said.result["probes"] == 4
    assert said.words.endswith(f"Load: {said.result['load']}")
    assert Path("exported/model.safetensors").is_file()
    assert gptailor.load("exported").predict(["the bank"]) == gptailor.load("run").predict(["the bank"])


def test_tune_searches_fits_and_prints_one_json_object(place: Path, invoke: Invoke) -> None:
    pytest.importorskip("optuna")
    arguments = [
        "tune",
        "news.csv",
        "--base",
        "base",
        "--approach",
        "full",
        "--trials",
        2,
        "--baselines",
        "none",
    ]
    for setting in ("train.length=2 steps", "tune.seeds=1", "tune.finalists=1", "evaluate.resamples=100",
                    "tune.space={train.learning_rate: [0.01]}"):  # fmt: skip
        arguments += ["--set", setting]
    said = invoke(*arguments, "--out", "searched", "--json")
    assert said.code == 0, said.words
    assert [one["trial"] for one in said.result["trials"]] == [0, 1]
    assert said.result["says"]
    assert Path("searched/tune.html").is_file()
    assert Path("searched/report.json").is_file()
    shown = invoke(*arguments, "--out", "searched")
    assert "finished; nothing to do" in shown.err
    assert "searched/tune.html" in shown.words


def test_doctor_says_what_there_is(invoke: Invoke) -> None:
    said = invoke("doctor", "--json")
    assert said.code == 0
    assert said.result["libraries"]["gptailor"] == gptailor.__version__
    assert said.result["machine"]["cores"] == os.cpu_count()
    assert "torch" in invoke("doctor").err


def test_doctor_knows_every_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(project["project"]["optional-dependencies"]) - {"dev"}
    assert {extra for extra, _ in OPTIONAL.values()} == extras


def test_doctor_clears_the_cache(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPTAILOR_CACHE", str(tmp_path / "cache"))
    entry = tmp_path / "cache" / "features" / f"{'0a' * 32}.npy"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(bytes(2_000_000))
    assert "2.0 MB freed" in invoke("doctor", "--clear-cache").err
    assert not entry.exists()


def test_a_run_without_its_test_answers_and_says_so(invoke: Invoke) -> None:
    shutil.copytree("run", "untested")
    Path("untested/report.json").unlink()
    said = invoke("predict", "untested", "--input", "the bank")
    assert "untested isn't finished: its test hasn't been taken" in said.err
    assert "the bank" in said.out
    shutil.copytree("run/model", "copied")
    assert "finished" not in invoke("predict", "copied", "--input", "the bank").err


def test_predict_prints_one_json_object_for_inputs_and_files(invoke: Invoke) -> None:
    inputs = invoke("predict", "run", "--input", "the bank", "--input", "the flu, naïve", "--json").result
    assert [line["text"] for line in inputs["answers"]] == ["the bank", "the flu, naïve"]
    file = invoke("predict", "run", "news.csv", "--json").result
    assert (file["rows"], file["answered"], file["rejected"], len(file["answers"])) == (120, 120, 0, 120)
    written = invoke("predict", "run", "news.csv", "-o", "answers.jsonl", "--json").result
    assert written == {
        "rows": 120,
        "answered": 120,
        "rejected": 0,
        "truncated": 0,
        "file": "answers.jsonl",
    }


# Recipes.


def test_fitting_a_runs_recipe_repeats_it_beside_it(invoke: Invoke) -> None:
    invoke("fit", "news.csv", *quick("first"))
    said = invoke("fit", "first/recipe.yaml", "--json")
    assert said.code == 0
    again = json.loads(Path("first-2/report.json").read_text())
    assert said.result == again
    assert again["test"] == json.loads(Path("first/report.json").read_text())["test"]
    assert invoke("fit", "first/recipe.yaml", "--json").code == 0
    assert Path("first-3/report.json").is_file()


def test_options_win_over_a_recipe_and_set_over_both(invoke: Invoke) -> None:
    Path("mine.yaml").write_text(
        "data: {train: news.csv, label: label}\nbase: nowhere\napproach: {kind: lora, rank: 2}\n"
        "evaluate: {baselines: none, resamples: 100}\nseed: 3\nout: elsewhere\n"
    )
    changes = ["--base", "base", "--approach", "frozen", "--seed", "4", "--set", "seed=5", "--out", "mine"]
    said = invoke("fit", "mine.yaml", *changes, "--json")
    assert (said.code, said.result["seed"], said.result["approach"]) == (0, 5, "frozen")
    assert not Path("elsewhere").exists()
    assert "label: label" in Path("mine/recipe.yaml").read_text()


# Names that a terminal could take for something else.


def test_brackets_in_names_are_not_taken_for_markup(invoke: Invoke) -> None:
    lines = Path("news.csv").read_text().splitlines()
    Path("odd.csv").write_text("\n".join(["[/b],[red]", *lines[1:]]) + "\n")
    columns = ["--text", "[/b]", "--label", "[red]"]
    checked = invoke("check", "odd.csv", *columns, "--base", "base", "--no-estimate")
    assert "text: [/b] label: [red]" in checked.words
    said = invoke("fit", "odd.csv", *columns, *quick("runs[/x]"))
    assert said.code == 0
    assert "runs[/x] classification" in said.words
    assert "gptailor serve 'runs[/x]'" in said.words


def test_bytes_that_are_no_text_are_printed_as_escapes(invoke: Invoke) -> None:
    said = invoke("predict", "run", "--input", "the bank \udcff", "--json")
    assert said.code == 0
    assert said.result["answers"][0]["text"] == "the bank \udcff"


# Texts that answer texts.


def test_two_files_that_keep_step_are_fitted_and_repeated(place: Path, invoke: Invoke) -> None:
    write_two_languages(place)
    sides = ["--source", "english.txt", "--target", "welsh.txt"]
    said = invoke("fit", *sides, *quick_text("welsh"), "--json")
    assert said.code == 0
    assert (said.result["task"], said.result["data"]["read"]) == ("completion", 40)
    assert "bleu" in said.result["test"]
    assert "task: completion (another: --task)" in said.words
    again = invoke("fit", *sides, *quick_text("welsh"), "--json")
    assert again.result == said.result
    assert "finished; nothing to do" in again.err
    repeated = invoke("fit", "welsh/recipe.yaml", "--json")
    assert repeated.code == 0
    assert Path("welsh-2/report.json").is_file()
    assert repeated.result["test"] == said.result["test"]
    assert invoke("evaluate", "welsh", "english.txt", "--target", "welsh.txt").code == 0


def test_source_and_target_may_be_columns(place: Path, invoke: Invoke) -> None:
    write_two_languages(place)
    checked = invoke("check", "pairs.csv", "--source", "welsh", "--target", "english", "--base", "base",
                     "--no-estimate", "--json")  # fmt: skip
    assert checked.code == 0
    (taken,) = [note for note in checked.result["notes"] if "translation" in note]
    assert "source=welsh, target=english" in taken
    twice = invoke("check", "pairs.csv", "--source", "welsh", "--completion", "english")
    assert twice.code == 2
    assert "--source says what --completion would" in twice.err


def test_a_template_over_columns_is_what_is_asked(place: Path, invoke: Invoke) -> None:
    write_two_languages(place)
    template = ["--prompt", "In {{Welsh}}: {english} =", "--completion", " {welsh}."]
    template += ["--set", "evaluate.metrics=[rouge_2, f1]"]
    assert invoke("fit", "pairs.csv", *template, *quick_text("template")).code == 0
    lines = Path("english.txt").read_text().splitlines()
    with Path("template/predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            asked = lines[int(row["row"]) - 2]
            assert row["prompt"] == f"In {{Welsh}}: {asked} ="
            assert row["reference"].endswith(".")
    said = invoke("predict", "template", "--input", lines[0], "--json")
    whole = invoke("predict", "template", "--input", f"In {{Welsh}}: {lines[0]} =", "--json")
    assert said.result["answers"][0]["answer"] == whole.result["answers"][0]["answer"]

    scored = invoke("evaluate", "template", "pairs.csv", "--json").result
    for scores in (scored["scores"], json.loads(Path("template/report.json").read_text())["test"]):
        assert {"rouge_2", "f1"} < set(scores)
        assert "rouge_l" not in scores

    def drawn(*options: str) -> str:
        answered = invoke("predict", "template", "--input", lines[0], "--json", *options)
        assert answered.code == 0, answered.words
        answer: str = answered.result["answers"][0]["answer"]
        return answer

    greedy = said.result["answers"][0]["answer"]
    once = drawn("--temperature", "3", "--seed", "1")
    assert once == drawn("--temperature", "3", "--seed", "1")
    assert once != drawn("--temperature", "3", "--seed", "2")
    for likeliest in (["--top-k", "1"], ["--top-p", "1e-9"], ["--min-p", "1"]):
        assert drawn("--temperature", "3", "--seed", "1", *likeliest) == greedy
    assert drawn("--repetition-penalty", "5") != greedy
    assert drawn("--stop", greedy[3:6]) == greedy[: greedy.index(greedy[3:6])].strip()
    assert drawn("--beams", "2")
    idle = invoke("predict", "template", "--input", lines[0], "--top-p", "0.5")
    assert idle.code == 1
    assert "--top-p" in idle.words
    assert "nothing to draw from" in idle.words
    wrong = invoke("predict", "template", "--input", lines[0], "--temperature", "1", "--top-p", "2")
    assert wrong.code == 1
    assert "top_p is 2.0" in wrong.words


def test_columns_named_for_languages_are_asked_about(place: Path, invoke: Invoke) -> None:
    rows = [{"en": texts.words(seed, 6), "cy": texts.words(seed + 60, 4)} for seed in range(40)]
    texts.write_csv(place / "tongues.csv", [{"en": row["en"], "de": row["cy"]} for row in rows])
    arguments = ["check", "tongues.csv", "--task", "completion", "--base", "base", "--no-estimate", "--json"]
    refused = invoke(*arguments)
    assert refused.code == 1
    assert "2 columns are named for languages" in refused.words
    assert "--prompt en --completion de" in refused.words
    said = invoke(*arguments, typed="fr\nde\n")
    assert said.code == 0
    assert "It is one of en, de." in said.words
    assert any("de" in note and "en" in note for note in said.result["notes"])


# Questions.


def test_on_a_terminal_an_unclear_column_is_asked_about(invoke: Invoke) -> None:
    write_two_labels(Path("two.csv"))
    said = invoke("fit", "two.csv", *quick("asked"), "--json", typed="nothing\nfirst\nheading+story\n")
    assert said.code == 0
    assert said.result["data"]["read"] == 120
    for word in ("Which is the label?", "It is one of first, second.", "Which is the text?", "'good', 'bad'"):
        assert word in said.words
    resolved = Path("asked/recipe.yaml").read_text()
    assert "label: first" in resolved
    assert "text: heading+story" in resolved


def test_asking_with_overwrite_moves_the_old_run_aside_once(invoke: Invoke) -> None:
    write_two_labels(Path("two.csv"))
    columns = ["--text", "heading", "--label", "first"]
    assert invoke("fit", "two.csv", *columns, *quick("twice")).code == 0
    answered = invoke("fit", "two.csv", "--overwrite", *quick("twice"), typed="second\nstory\n")
    assert answered.code == 0
    assert len(list(Path().glob("twice.old-*"))) == 1


def test_check_evaluate_and_predict_ask_too(invoke: Invoke) -> None:
    write_two_labels(Path("two.csv"))
    checked = invoke("check", "two.csv", "--base", "base", "--no-estimate", "--json", typed="first\nstory\n")
    assert (checked.result["text"], checked.result["label"]) == ("story", "first")
    scored = invoke("evaluate", "run", "two.csv", "--json", typed="first\nstory\n")
    assert scored.result["rows"] == 120
    answered = invoke("predict", "run", "two.csv", typed="story\n")
    rows = answered.out.splitlines()
    assert len(rows) == 121
    assert rows[0].startswith('"source","row","text"')
    assert '"it is said that' in rows[1]


@pytest.mark.parametrize("typed", ["", "first\n"])
def test_a_question_without_an_answer_is_refused_with_the_candidates(typed: str, invoke: Invoke) -> None:
    write_two_labels(Path("two.csv"))
    said = invoke("check", "two.csv", "--base", "base", typed=typed)
    assert (said.code, said.out) == (1, "")
    assert ("--label first" if not typed else "--text heading+story") in said.words


def test_a_person_at_standard_input_is_told_what_is_awaited(invoke: Invoke) -> None:
    class Keyboard(Terminal):
        buffer = io.BytesIO(b"the bank\nthe flu\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", Keyboard())
        said = invoke("predict", "run", "--json")
    assert "one text per line" in said.words
    assert said.result["rows"] == 2


# In a process of its own.


@pytest.mark.parametrize("unbuffered", ["", "1"])  # found out at the end, or while a command prints
def test_whoever_closes_the_pipe_early_is_no_error(unbuffered: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gptailor", "help-settings"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_compare_prints_one_object_and_writes_a_page(invoke: Invoke, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "compared.html"
    said = invoke("compare", "run", "--page", str(page), "--json")
    assert said.code == 0
    assert [run["run"] for run in said.result["runs"]] == ["run"]
    assert page.read_text().rstrip().endswith("</html>")
    said = invoke("compare", "run")
    assert (said.code, said.out) == (0, "")
    assert "macro-F1" in said.words


def test_predict_orders_rows_by_what_labelling_them_teaches(invoke: Invoke) -> None:
    said = invoke("predict", "run", "news.csv", "--rank", "uncertain", "--json")
    assert said.code == 0
    answers = said.result["answers"]
    assert len({(one["source"], one["row"]) for one in answers}) == len(answers)
    assert answers[0]["doubt"] >= answers[-1]["doubt"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["curve", "run", "--seed", "0", "--base", "gpt2"], 2, "--base, --seed can't be used here"),
        (["predict", "run", "--input", "x", "--out", "a.csv"], 2, "--out can't be used here"),
        (["predict", "run", "news.csv", "--input", "x"], 2, "not both"),
        (["predict", "run", "--input", "x", "--temperature", "1"], 1, "draws nothing"),
        (["evaluate", "run", "news.csv", "--target", "news.csv"], 1, "for completion and chat"),
    ],
)
def test_no_option_is_passed_over(
    arguments: list[str], code: int, words: str, invoke: Invoke, place: Path
) -> None:
    said = invoke(*arguments)
    assert said.code == code
    assert words in " ".join(said.err.replace("│", " ").split())
    assert not (place / "a.csv").exists()


def test_labels_are_not_taken_for_markup(place: Path, invoke: Invoke) -> None:
    rows = [
        f"town {n} and the {'cup' if n % 2 else 'bank'} again {n * n},{'[/INST]' if n % 2 else '[b]'}"
        for n in range(60)
    ]
    (place / "marks.csv").write_text("text,label\n" + "\n".join(rows))
    said = invoke("suspects", "marks.csv", "--base", "base", "--out", "marks-suspects.csv", "--top", "5")
    assert said.code == 0
    assert "[/INST]" in said.err or "[b]" in said.err


def test_a_page_goes_into_a_folder_that_is_made(place: Path, invoke: Invoke) -> None:
    tiny.write_news(place / "longer.csv", rows=240)
    said = invoke("curve", "longer.csv", "--base", "base", "--more", "100", "--page", "new/curve.html")
    assert said.code == 0
    assert (place / "new" / "curve.html").is_file()
    assert invoke("curve", "longer.csv", "--base", "base", "--page", "new").code == 2


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(28, "No space left on device", "file"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
        OSError("1000 requested and 12 written"),
    ],
    ids=["os", "safetensors", "copytree", "numpy"],
)
def test_a_full_disk_is_not_our_fault_whoever_tells_it(
    trouble: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fall(**_: object) -> None:
        raise trouble

    monkeypatch.setattr(cli, "app", fall)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert "our fault" not in told


def test_our_fault_is_told_even_where_no_log_can_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fall(**_: object) -> None:
        raise ValueError("odd")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "app", fall)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 3
    assert "ValueError: odd" in capsys.readouterr().err


def test_a_question_whose_answer_changes_nothing_is_asked_once(place: Path, invoke: Invoke) -> None:
    rows = [{"one": texts.chats(1)[0]["messages"], "other": row["messages"]} for row in texts.chats(40)]
    texts.write_jsonl(place / "two-chats.jsonl", rows)
    arguments = ["check", "two-chats.jsonl", "--task", "chat", "--base", "base", "--no-estimate", "--json"]
    refused = invoke(*arguments)
    assert refused.code == 1
    assert "--text one or --text other" in refused.words
    assert invoke(*arguments, typed="other\n").code == 0
    assert invoke(*arguments, "--text", "other").code == 0


def test_a_recipe_leaves_open_what_it_does_not_say(place: Path) -> None:
    """Preferences have no dropout unless somebody asks for it, from the command line as from Python."""
    shipped = Path(__file__).parents[1] / "recipes" / "preferences.yaml"
    assert settle_task(recipe_from(str(shipped), {})).train.dropout == 0
    assert settle_task(recipe_from(str(shipped), {"settings": ["train.dropout=0.2"]})).train.dropout == 0.2


def test_another_base_has_commits_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {train: news.csv}\nbase: gpt2\nrevision: 607a30d\n")
    assert recipe_from(str(path), {}).revision == "607a30d"
    assert recipe_from(str(path), {"base": "gpt2"}).revision == "607a30d"
    assert recipe_from(str(path), {"base": "distilgpt2"}).revision is None
    assert recipe_from(str(path), {"settings": ["base=distilgpt2"]}).revision is None
    asked = recipe_from(str(path), {"base": "distilgpt2", "settings": ["revision=abc"]})
    assert asked.revision == "abc"


@pytest.mark.parametrize("by", ["option", "environment", ""])
def test_serve_is_given_its_key_address_and_port(
    by: str, place: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("gptailor.serve.run.serve", lambda *_, **named: given.append(named))
    monkeypatch.delenv("GPTAILOR_API_KEY", raising=False)
    if by == "environment":
        monkeypatch.setenv("GPTAILOR_API_KEY", "s3cret")
    key = ["--api-key", "s3cret"] if by == "option" else []
    assert invoke("serve", "run", "--host", "0.0.0.0", "--port", "9", *key).code == 0
    [named] = given
    assert (named["host"], named["port"], named["api_key"]) == ("0.0.0.0", 9, "s3cret" if by else None)


def test_an_empty_key_in_the_environment_is_not_taken_for_none(
    place: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its variable wasn't filled in; a server without a guard is not what was meant."""
    monkeypatch.setenv("GPTAILOR_API_KEY", "")
    said = invoke("serve", "run", "--port", "0")
    assert said.code == 1
    assert "The API key is empty" in said.err


OFFLINE = """
import os, sys
import gptailor.cli

seen = []
def watch(event, arguments):
    host = str(arguments[1][0]) if event == "socket.connect" and isinstance(arguments[1], tuple) else ""
    if event == "socket.connect" and host not in ("127.0.0.1", "::1", ""):
        seen.append((event, host))
    elif event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "::1", "localhost", None):
        seen.append((event, arguments[0]))
    elif event == "pickle.find_class":
        seen.append((event, arguments))
sys.addaudithook(watch)
for words in sys.argv[1].split(";"):
    sys.argv = ["gptailor", *words.split()]
    try:
        gptailor.cli.main()
    except SystemExit as left:
        assert not left.code, (words, left.code)
assert not seen, seen
"""


def test_nothing_is_asked_of_a_network_and_nothing_is_unpickled(place: Path) -> None:
    """Without the variable that keeps this suite offline, from the file to the answer and the export."""
    fit = " ".join(["fit", "news.csv", *quick("alone")])
    words = f"check news.csv --base base;{fit};predict alone --input cup;evaluate alone news.csv;export alone"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, words],
        cwd=place,
        capture_output=True,
        text=True,
        env={**environment, "GPTAILOR_CACHE": str(place / "alone-cache")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
