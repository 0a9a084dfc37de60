"""The verbs: each a thin function over one importable function. Heavy imports wait until they are needed."""

from __future__ import annotations

import contextlib
import enum
import errno
import inspect
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from gptailor.errors import GptailorError, Interrupted

Result = TypeVar("Result")

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)


class Rank(enum.StrEnum):
    """By what `predict` orders rows."""

    uncertain = "uncertain"


app = typer.Typer(
    name="gptailor",
    help="Fine-tune a GPT to your own text: look, clean, split, train, evaluate honestly, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Data = Annotated[
    str, typer.Argument(help="CSV, TSV, JSON, JSONL, Parquet or text file, a folder, or hub:owner/name")
]
DataOrRecipe = Annotated[
    str, typer.Argument(help="a data file or folder, or a RECIPE.yaml", show_default=False)
]
RunFolder = Annotated[Path, typer.Argument(help="a run folder made by fit")]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task", help="classification, completion, chat, preference or language (default: by the columns)"
    ),
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help='column of the prompt, or a template: "Title: {title}"')
]
CompletionOption = Annotated[
    str | None, typer.Option("--completion", help="column of the answer, or a template")
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="translation, summarization, question_answering, data_to_text, ..."),
]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", help="translation: file (instead of DATA) or column to translate from"),
]
TargetOption = Annotated[
    str | None, typer.Option("--target", help="translation: its other side, line by line")
]
TestTargetOption = Annotated[str | None, typer.Option("--test-target", help="the other side of --test")]
ValidationTargetOption = Annotated[
    str | None, typer.Option("--validation-target", help="the other side of --validation")
]
TextOption = Annotated[str | None, typer.Option("--text", help="column of the text; a+b joins two")]
LabelOption = Annotated[str | None, typer.Option("--label", help="column of the label")]
FixOption = Annotated[
    str | None, typer.Option("--fix", help="suspects.csv with its column `correction` filled in")
]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", help="names for a headerless file: label,text+text")
]
NamesOption = Annotated[
    str | None, typer.Option("--label-names", help="names for bare labels: 0=World,1=Sports")
]
TestOption = Annotated[str | None, typer.Option("--test", help="test on this file instead of a share")]
TestColumnsOption = Annotated[str | None, typer.Option("--test-columns", help="--columns for the test file")]
TestNamesOption = Annotated[
    str | None, typer.Option("--test-label-names", help="--label-names for the test file")
]
ValidationOption = Annotated[
    str | None, typer.Option("--validation", help="validate on this file instead of a share")
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="starter, a folder, a run, or a hub name such as gpt2")
]
ApproachOption = Annotated[str | None, typer.Option("--approach", help="auto, full, lora, frozen or scratch")]
OutOption = Annotated[str | None, typer.Option("--out", help="run folder (default: runs/<file stem>)")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="of everything random (default: 0)")]
MinutesOption = Annotated[
    float | None, typer.Option("--minutes", help="train at most about so long; steps are measured once")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="any setting: key.path=value; may be repeated")
]
BaselinesOption = Annotated[str | None, typer.Option("--baselines", help="quick, all or none")]
SliceOption = Annotated[
    list[str] | None, typer.Option("--slice", help="column to score the test by; may be repeated")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="move an old run aside and begin anew")]
PrecisionOption = Annotated[
    Literal["fp32", "bf16"],
    typer.Option("--precision", help="classifiers: bf16 is faster and rounds the probabilities a little"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="the result as one JSON object on standard output")]


@app.command()
def demo(out: OutOption = None, overwrite: OverwriteOption = False, as_json: JsonOption = False) -> None:
    """The whole way on the bundled sample with the bundled base; offline, in minutes."""
    from gptailor.report.terminal import print_summary

    sample = Path(__file__).parent / "data" / "sample" / "headlines.csv"
    folder = out or "runs/demo"
    values = {"data": {"train": str(sample), "text": "headline", "label": "topic"}, "out": folder}
    with _talking() as (console, narrator):
        narrator.say("760 headlines and articles on six topics, with the usual mess: finding the mess first")
        _look(_recipe_of(values), console, narrator)
        run = _fit(_recipe_of(values), overwrite=overwrite, narrator=narrator)
        report = run.report
        if not as_json:
            print_summary(console, report, folder=folder)
            _point(console, f"\nReport:  {folder}/report.html")
            _point(
                console, f'Next:    gptailor predict {folder} --input "Coach quits two days before the final"'
            )
    _emit(report, as_json)


@app.command()
def check(
    data: DataOrRecipe = "",
    task: TaskOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    fix: FixOption = None,
    prompt: PromptOption = None,
    completion: CompletionOption = None,
    preset: PresetOption = None,
    source: SourceOption = None,
    target: TargetOption = None,
    columns: ColumnsOption = None,
    label_names: NamesOption = None,
    test: TestOption = None,
    test_target: TestTargetOption = None,
    test_columns: TestColumnsOption = None,
    test_label_names: TestNamesOption = None,
    validation: ValidationOption = None,
    validation_target: ValidationTargetOption = None,
    base: BaseOption = None,
    approach: ApproachOption = None,
    seed: SeedOption = None,
    minutes: MinutesOption = None,
    settings: SetOption = None,
    slices: SliceOption = None,
    no_estimate: Annotated[bool, typer.Option("--no-estimate", help="don't measure a real step")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look before anyone trains: what would be dropped and why, balance, lengths, cost."""
    recipe = _recipe(data, locals())
    with _talking() as (console, narrator):
        from gptailor.pipeline.check import check_recipe
        from gptailor.report.checked import print_check, print_estimate

        def show(found: Any) -> None:
            if not as_json:
                print_check(console, found.summary, rendered=found.rendered)

        found = _asking(
            lambda chosen: check_recipe(
                _with_columns(recipe, chosen), estimate=not no_estimate, say=narrator.say, show=show
            ),
            console,
        )
        if found.estimate is not None and not as_json:
            print_estimate(console, found.summary, found.estimate)
    _emit({**found.summary, "estimate": found.estimate}, as_json)


@app.command()
def suspects(
    data: Data,
    text: TextOption = None,
    label: LabelOption = None,
    columns: ColumnsOption = None,
    label_names: NamesOption = None,
    base: BaseOption = None,
    top: Annotated[
        int | None,
        typer.Option("--top", min=1, help="how many rows to rank (default: as many as seem wrong)"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="file to write")] = Path("suspects.csv"),
    seed: SeedOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the labels of a file, the most likely wrong first, for `fit --fix`."""
    recipe = _recipe(data, {name: value for name, value in locals().items() if name != "out"})
    with _talking() as (console, narrator):
        from gptailor.pipeline.out_of_fold import rank_suspects
        from gptailor.report.terminal import print_table

        found = _asking(
            lambda chosen: rank_suspects(_with_columns(recipe, chosen), top=top, out=out, say=narrator.say),
            console,
        )
        if not as_json:
            rows = [(f"{s.label} → {s.suggestion or '?'}", s.text[:70]) for s in found[:10]]
            print_table(console, f"{len(found):,} labels to look at, the most suspect first", rows)
            _point(console, f"\nWritten: {out}")
            _point(
                console,
                "Next:    fill the column `correction` with a label or drop (empty: leave it), then "
                f"gptailor fit {data} --fix {out}",
            )
    _emit({"out": str(out), "suspects": len(found)}, as_json)


@app.command()
def fit(
    data: DataOrRecipe = "",
    task: TaskOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    fix: FixOption = None,
    prompt: PromptOption = None,
    completion: CompletionOption = None,
    preset: PresetOption = None,
    source: SourceOption = None,
    target: TargetOption = None,
    columns: ColumnsOption = None,
    label_names: NamesOption = None,
    test: TestOption = None,
    test_target: TestTargetOption = None,
    test_columns: TestColumnsOption = None,
    test_label_names: TestNamesOption = None,
    validation: ValidationOption = None,
    validation_target: ValidationTargetOption = None,
    base: BaseOption = None,
    approach: ApproachOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    minutes: MinutesOption = None,
    settings: SetOption = None,
    slices: SliceOption = None,
    baselines: BaselinesOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """The main job: from a file to a tested model. Run it again, and it goes on where it stopped."""
    recipe = _recipe(data, locals())
    with _talking() as (console, narrator):
        from gptailor.report.terminal import print_summary

        run = _asking(
            lambda chosen: _fit(
                _with_columns(recipe, chosen), overwrite=overwrite and not chosen, narrator=narrator
            ),
            console,
        )
        report = run.report
        if not as_json:
            print_summary(console, report, folder=str(run.folder))
            _point(console, f"\nReport:  {run.folder}/report.html")
            _point(console, f"Next:    gptailor serve {run.folder}")
    _emit(report, as_json)


def tune(**options: Any) -> None:
    """Search for better settings, compare them fairly with the default, fit the best. Resumes by itself."""
    from gptailor.launch import use_one_heap

    recipe = _recipe(options["data"], options)
    use_one_heap()  # before the imports that start threads
    with _talking() as (console, narrator):
        from gptailor.pipeline.place import Listener
        from gptailor.report.terminal import print_summary
        from gptailor.search.tune import tune_recipe

        listener = Listener(say=narrator.say, show=narrator.show)
        tuned = _asking(
            lambda chosen: tune_recipe(
                _with_columns(recipe, chosen),
                overwrite=options["overwrite"] and not chosen,
                listener=listener,
            ),
            console,
        )
        folder = tuned.run.folder
        if not options["as_json"]:
            print_summary(console, tuned.run.report, folder=str(folder))
            _point(console, f"\n{tuned.result['says']}")
            _point(console, f"\nSearch:  {folder}/tune.html\nReport:  {folder}/report.html")
            _point(console, f"Next:    gptailor serve {folder}")
    _emit(tuned.result, options["as_json"])


class BudgetOptions:
    """What `tune` has beside everything that `fit` has."""

    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="how many settings to try (default: 20)")
    ] = None
    time: Annotated[str | None, typer.Option("--time", help="about how long to search, such as 30m")] = None
    storage: Annotated[
        str | None, typer.Option("--storage", help="database of the trials (default: in the run folder)")
    ] = None


def _with_options_of_fit(verb: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb the options of `fit` and those of the budget, so that they are written once."""
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=getattr(BudgetOptions, name), annotation=annotation
        )
        for name, annotation in inspect.get_annotations(BudgetOptions, eval_str=True).items()
    ]
    theirs = inspect.signature(fit, eval_str=True).parameters.values()
    every = [*(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in theirs), *added]
    verb.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]  # Typer reads it
    return verb


app.command()(_with_options_of_fit(tune))


@app.command()
def evaluate(
    run: RunFolder,
    data: Data,
    text: TextOption = None,
    label: LabelOption = None,
    columns: ColumnsOption = None,
    label_names: NamesOption = None,
    target: TargetOption = None,
    slices: SliceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run on a new file with known answers."""
    with _talking() as (console, narrator):
        from gptailor.pipeline.run import load
        from gptailor.report.terminal import print_slices, print_table, score_text

        narrator.say(f"loading {run}")
        opened, names = load(run), _pairs(label_names, "--label-names")
        result = _asking(
            lambda chosen: opened.evaluate(
                data,
                columns=columns,
                label_names=names,
                target=target,
                slices=slices or (),
                **{"text": text, "label": label, **chosen},
            ),
            console,
        )
        if not as_json:
            scores, shown = result["scores"], list(result["scores"])
            left_out = f" ({result['left_out']:,} can't be used)" if result["left_out"] else ""
            title = f"{result['rows']:,} of {result['read']:,} rows{left_out}"
            if "answers" in result:
                title += f", {result['answers']:,} answers written"
            elif opened.task == "language":
                shown, title = ["bits_per_byte", "perplexity"], f"{title}, {result['bytes']:,} bytes"
            elif opened.task == "classification":
                shown = list(opened.shown_scores)
            print_table(
                console, title, [(name.replace("_", " "), score_text(scores[name])) for name in shown]
            )
            print_slices(console, result)
            if "note" in result:
                _point(console, result["note"])
    _emit(result, as_json)


@app.command()
def curve(
    data: Annotated[
        str, typer.Argument(help="a data file or folder, a RECIPE.yaml, or a run folder", show_default=False)
    ],
    text: TextOption = None,
    label: LabelOption = None,
    columns: ColumnsOption = None,
    label_names: NamesOption = None,
    test: TestOption = None,
    test_columns: TestColumnsOption = None,
    test_label_names: TestNamesOption = None,
    validation: ValidationOption = None,
    base: BaseOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    more: Annotated[
        list[int] | None, typer.Option("--more", min=1, help="so many more rows; may be repeated")
    ] = None,
    page: Annotated[Path | None, typer.Option("--page", help="write a page with the plot here")] = None,
    as_json: JsonOption = False,
) -> None:
    """How many more labels? The score over the number of rows, measured and carried on."""
    given = {name: value for name, value in locals().items() if name not in NOT_OF_THE_RECIPE}
    is_run = (Path(data) / "recipe.yaml").is_file()
    _refuse_given(given if is_run else {}, "a run folder has its own data and settings")
    place = Path(data) if is_run else _recipe(data, given)
    with _talking() as (console, narrator):
        from gptailor.launch import write_atomically
        from gptailor.pipeline.curve_new import curve_of, curve_page
        from gptailor.report.terminal import print_curve

        _make_room(page)

        result = _asking(
            lambda chosen: curve_of(
                place if is_run else _with_columns(place, chosen), more=more or (), say=narrator.say
            ),
            console,
        )
        if not as_json:
            print_curve(console, result)
        if page is not None:
            write_atomically(page, curve_page(result, title=data))
            _point(console, f"Page:    {page}")
    _emit(result, as_json)


@app.command()
def predict(
    run: RunFolder,
    data: Annotated[str, typer.Argument(help="a file, or - for standard input")] = "-",
    given: Annotated[list[str] | None, typer.Option("--input", help="a text; may be repeated")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write here (.csv or .jsonl)")] = None,
    text: TextOption = None,
    columns: ColumnsOption = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="runs that write: 0 takes the likeliest, 1 draws freely")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="runs that write: longest answer")] = None,
    seed: Annotated[int | None, typer.Option(help="runs that write: of what is drawn")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="runs that write: of the likeliest tokens that together reach this probability"),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="runs that write: of so many tokens; 0 is off")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="runs that write: of tokens this fraction as likely as the likeliest")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="runs that write: above 1, words are less likely again")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="runs that write: a text that ends the answer; may be repeated")
    ] = None,
    beams: Annotated[
        int | None, typer.Option(help="runs that write: beam search over so many answers at a time")
    ] = None,
    precision: PrecisionOption = "fp32",
    rank: Annotated[
        Rank | None, typer.Option("--rank", help="rows of a file worth labelling first come first")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Labels with probabilities, or written answers, for a file, standard input or --input texts."""
    wanted = {
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or None,
        "num_beams": beams,
    }
    sampling = {name: value for name, value in wanted.items() if value is not None}
    with _talking() as (console, narrator):
        from gptailor.pipeline.answers import predict_inputs, predict_to

        beside = {"rank": rank, "out": out, "text": text, "columns": columns}
        _refuse_given(beside if given else {}, "--input texts are answered where they are given")
        if given and data != "-":
            raise typer.BadParameter("give a file or --input texts, not both")
        narrator.say(f"loading {run}")
        if given:
            answers = predict_inputs(run, given, sampling=sampling, precision=precision)
            if not as_json:
                for line in answers:
                    print(_answer_line(line))
            result: dict[str, Any] = {"answers": answers}
        else:
            if data == "-" and sys.stdin.isatty():
                narrator.say("reading standard input: one text per line, then Ctrl-D")
            result = _asking(
                lambda chosen: predict_to(
                    run,
                    data,
                    out=out,
                    columns=columns,
                    to_stdout=not as_json,
                    sampling=sampling,
                    precision=precision,
                    rank=rank is not None,
                    say=narrator.say,
                    **{"text": text, **chosen},
                ),
                console,
            )
            written = f"; written to {out}" if out else ""
            narrator.say(
                f"{result['rows']:,} rows: {result['answered']:,} answered, {result['rejected']:,} without "
                f"an answer (the reason stands in their row){written}"
            )
    _emit(result, as_json)


def _answer_line(answer: Mapping[str, Any]) -> str:
    """What a person reads of one answer to an --input text."""
    if "continuation" in answer:
        return str(answer["text"] + answer["continuation"])
    if "answer" in answer:
        return str(answer["answer"])
    sure = " (not sure)" if answer["abstained"] else ""
    probability = "" if answer["probability"] is None else f"{answer['probability']:.3f}"
    return f"{answer['label']}\t{probability}{sure}\t{answer['text']}"


@app.command()
def label(
    data: Data,
    labels: Annotated[str | None, typer.Option("--labels", help="names to choose from: a,b,c")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="a run: its labels, and its doubts decide the order")
    ] = None,
    text: TextOption = None,
    columns: ColumnsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="write here (default: <file stem>.labels.csv)")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one")] = 0,
) -> None:
    """A local page to label rows by keyboard or touch; goes on where it stopped."""
    with _talking() as (console, narrator):
        from gptailor.serve.label import label_file, serve_label_page

        names = [name for name in (labels or "").split(",") if name.strip()]
        file = _asking(
            lambda chosen: label_file(
                data,
                labels=names,
                run=run,
                columns=columns,
                out=out,
                say=narrator.say,
                **{"text": text, **chosen},
            ),
            console,
        )
        if file.answers:
            narrator.say(f"going on: {len(file.answers):,} rows stand in {file.out}")
        serve_label_page(file, port=port, announce=narrator.say)
        narrator.say(f"{len(file.answers):,} of {len(file.rows):,} rows are labelled, in {file.out}")


@app.command()
def serve(
    runs: Annotated[list[Path], typer.Argument(help="one or more run folders")],
    host: Annotated[str, typer.Option(help="address to bind to")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="GPTAILOR_API_KEY",
            help="guards what answers; the page, /health and /ready stay open",
        ),
    ] = None,
    precision: PrecisionOption = "fp32",
) -> None:
    """An HTTP server with a page to try the model in a browser."""
    with _talking() as (_, narrator):
        from gptailor.models.answerer import load_answerer
        from gptailor.models.bundle import find_model_folder, read_bundle
        from gptailor.models.predictor import load_predictor
        from gptailor.pipeline.run import refuse_precision
        from gptailor.serve.run import serve as serve_models

        predictors, answerers = [], []
        for run in runs:
            narrator.say(f"loading {run}")
            refuse_precision(run, precision)
            if read_bundle(find_model_folder(run)).task == "classification":
                predictors.append(load_predictor(run, precision=precision))
            else:
                answerers.append(load_answerer(run))
                answerers[-1].verify_probes()
        serve_models(
            predictors, answerers=answerers, host=host, port=port, api_key=api_key, announce=narrator.say
        )


@app.command()
def export(
    run: RunFolder,
    to: Annotated[str, typer.Option("--to", help="hf, merged, adapter, onnx or gguf")] = "hf",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder to write")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="of gguf's weights: fp32 (default), bf16 or fp16")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The model for other tools, with a parity check."""
    with _talking() as (console, narrator):
        from gptailor.pipeline.export import export_run

        narrator.say(f"loading {run}")
        result = export_run(run, to=to, out=out, precision=precision)
        for key in ("note", "warning"):
            if key in result:
                narrator.say(result[key])
        narrator.say(f"written to {result['folder']}; largest difference of logits {result['parity']:.1e}")
        _point(console, f"Load:    {result['load']}")
    _emit(result, as_json)


@app.command()
def report(run: RunFolder, as_json: JsonOption = False) -> None:
    """Print a run's summary and name its page."""
    with _talking() as (console, _):
        from gptailor.pipeline.run import Run
        from gptailor.report.terminal import print_summary

        result = Run(run).report
        if not as_json:
            print_summary(console, result, folder=str(run))
            _point(console, f"\nReport:  {run}/report.html")
    _emit(result, as_json)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="finished run folders")],
    page: Annotated[Path | None, typer.Option("--page", help="also write a page (.html) here")] = None,
    as_json: JsonOption = False,
) -> None:
    """A leaderboard of runs, with paired tests against the best and the settings that differ."""
    with _talking() as (console, narrator):
        from gptailor.launch import write_atomically
        from gptailor.pipeline.compare import compare_runs
        from gptailor.report.comparison import print_comparison, render_comparison

        _make_room(page)
        found = compare_runs(runs)
        if not as_json:
            print_comparison(console, found)
        if page is not None:
            write_atomically(page, render_comparison(found))
            narrator.say(f"written to {page}")
    _emit(found, as_json)


@app.command()
def doctor(
    clear_cache: Annotated[bool, typer.Option("--clear-cache", help="empty the cache")] = False,
    as_json: JsonOption = False,
) -> None:
    """What this machine has and what is missing."""
    with _talking() as (console, narrator):
        from gptailor.pipeline.doctor import examine
        from gptailor.report.terminal import bytes_text, print_table

        if clear_cache:
            from gptailor.cache import clear_cache as clear

            narrator.say(f"cache cleared: {bytes_text(clear())} freed")
        result = examine()
        if not as_json:
            print_table(console, "this machine", list(result["machine"].items()))
            print_table(console, "libraries", list(result["libraries"].items()))
            for advice in result["advice"]:
                narrator.say(advice)
    _emit(result, as_json)


@app.command()
def bases(as_json: JsonOption = False) -> None:
    """What --base can name: what is here already, and common names of the hub."""
    with _talking() as (console, narrator):
        from gptailor.models.catalog import as_values, in_words, read_catalog, shortest_name
        from gptailor.report.terminal import print_table

        found = read_catalog()
        if not as_json:
            for title, entries in (("here, no network needed", found.offline), ("on the hub", found.hub)):
                print_table(console, title, [(shortest_name(entry), in_words(entry)) for entry in entries])
            for left in found.left_out:
                narrator.say(f"{left.name} is here and can't be a base: {left.reason}")
            narrator.say("any other causal language model with safetensors weights: --base OWNER/NAME")
            narrator.say("gated: accept its terms on its page of the hub, then `hf auth login`")
    _emit(as_values(found), as_json)


@app.command(name="help-settings", hidden=True)
def help_settings() -> None:
    """Every setting with its default, for --set and recipes."""
    from gptailor.recipe import describe_settings

    for key, default, words in describe_settings():
        print(f"{key} = {default}\n    {words}")


def main() -> None:
    """Runs the command line; turns our errors into messages and exit codes."""
    for stream in (sys.stdout, sys.stderr):  # what we print is UTF-8, whatever the machine's custom
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        # Typer returns the code of an Exit, such as 130 where a KeyboardInterrupt came.
        code = app(prog_name="gptailor", standalone_mode=False)
        sys.stdout.flush()
    except GptailorError as error:
        _complain(error)
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(Interrupted.exit_code) from None
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as error:  # Typer's own way out of a closed pipe
        raise SystemExit(0 if isinstance(error.__context__, BrokenPipeError) else error.code) from None
    except Exception as error:
        _complain_of_disk(error)
    else:
        raise SystemExit(code or 0)


def _complain_of_disk(error: Exception) -> None:
    """A full, failing or closed disk isn't our fault; any other error is."""
    found = _disk_trouble(error)
    if found is None:
        return _fall(error)
    return _complain(
        GptailorError(
            f"can't be written or read: {found}.",
            where=str(getattr(error, "filename", None) or "the disk"),
            fix="Free some space, or choose a folder you may write to; what was begun goes on from there.",
        )
    )


def _disk_trouble(error: BaseException | None) -> str | None:
    """What the system says of the disk, also where a library wrapped it in an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            return str(error.strerror)
        told = str(error)
        for number in DISK_TROUBLE:
            if os.strerror(number) in told or f"os error {number}" in told:
                return os.strerror(number)
        if isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", told):  # NumPy's
            return os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return None


def _complain(error: GptailorError) -> None:
    from rich.console import Console
    from rich.text import Text

    if os.environ.get("GPTAILOR_TRACEBACK"):
        raise error
    console = Console(stderr=True, highlight=False)
    kind = "stopped" if isinstance(error, Interrupted) else "error"
    where = f"{error.where}: " if error.where else ""
    console.print(Text(f"{kind}: ", style="bold red") + Text(f"{where}{error.what}"), soft_wrap=True)
    if error.fix:
        console.print(Text(error.fix, style="dim"), soft_wrap=True)
    raise SystemExit(error.exit_code)


def _fall(error: Exception) -> None:
    """Usage errors leave with 2; anything else is ours, and we say what to send."""
    format_message = getattr(error, "format_message", None)  # Typer carries its own click
    if format_message is not None:
        is_help = type(error).__name__ == "NoArgsIsHelpError"
        words = format_message() if is_help else f"usage: {format_message()}\nTry `gptailor --help`."
        print(words, file=sys.stderr)
        raise SystemExit(2)
    import tempfile
    import traceback

    told = " ".join(sys.argv) + "\n" + "".join(traceback.format_exception(error))
    what = "this"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="gptailor-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(told)
        what = file.name
    except OSError:  # no room for a log
        print(told, file=sys.stderr)
    print(
        f"internal error: {type(error).__name__}: {error}\nThis is our fault. Please send us {what} "
        "and, if you can, the first rows of your file.",
        file=sys.stderr,
    )
    raise SystemExit(3)


@contextlib.contextmanager
def _talking() -> Iterator[tuple[Any, Any]]:
    """A console on standard error and a narrator on it."""
    from rich.console import Console

    from gptailor.report.terminal import Narrator

    console = Console(stderr=True, highlight=False)
    narrator = Narrator(console)
    try:
        yield console, narrator
    finally:
        narrator.close()


def _emit(result: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False))


def _make_room(page: Path | None) -> None:
    """The folder of a page, before anything is measured for it."""
    if page is None:
        return
    if page.is_dir():
        raise typer.BadParameter(f"--page {page} is a folder; name a file")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"--page {page} can't be written: {error.strerror or error}") from None


def _point(console: Any, line: str) -> None:
    """A line with a path or a command in it: not broken, nothing in it taken for markup."""
    from rich.text import Text

    console.print(Text(line), soft_wrap=True)


NOT_OF_THE_RECIPE = ("data", "more", "page", "as_json")  # what `curve` takes beside one
# Options that are settings of the same name under `data`.
DATA_OPTIONS = (
    *("text", "label", "fix", "prompt", "completion", "preset", "columns"),
    *("test", "test_target", "test_columns", "validation", "validation_target"),
)


def _asking(attempt: Callable[[dict[str, str]], Result], console: Any) -> Result:
    """Attempts; where several columns fit and there is a terminal, asks which, and attempts again."""
    from gptailor.data.roles import AmbiguousColumnError
    from gptailor.tasks.columns import AmbiguousRoleError

    chosen: dict[str, str] = {}
    while True:
        try:
            return attempt(chosen)
        except (AmbiguousColumnError, AmbiguousRoleError) as error:
            answer = _ask(error, console) if sys.stdin.isatty() else None
            if answer is None:
                raise
            chosen[error.role] = answer


def _ask(error: Any, console: Any) -> str | None:
    """The column a person chooses for a role; for the text also two as `a+b`. None at the end of input."""
    _point(console, error.what)
    while True:
        try:
            answer = console.input(f"Which is the {error.role}? ").strip()
        except EOFError:
            return None
        parts = answer.split("+") if error.role == "text" else [answer]
        if answer in error.candidates or set(parts) <= set(error.candidates):
            return str(answer)
        _point(console, f"It is one of {', '.join(error.candidates)}.")


def _with_columns(recipe: Any, chosen: Mapping[str, str]) -> Any:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=dict(chosen))})


def _fit(recipe: Any, *, overwrite: bool, narrator: Any) -> Any:
    from gptailor.launch import choose_heaps

    choose_heaps(recipe.approach.kind)  # before the imports that start threads
    from gptailor.pipeline.fit import fit_recipe
    from gptailor.pipeline.place import Listener

    return fit_recipe(recipe, overwrite=overwrite, listener=Listener(say=narrator.say, show=narrator.show))


def _look(recipe: Any, console: Any, narrator: Any) -> None:
    from gptailor.pipeline.check import check_recipe
    from gptailor.report.checked import print_check

    found = check_recipe(recipe, estimate=False, say=narrator.say)
    print_check(console, found.summary, rendered=found.rendered)


def _recipe(data: str, options: Mapping[str, Any]) -> Any:
    """The recipe of a file and options."""
    from gptailor.pipeline.folder import folder_to_repeat
    from gptailor.recipe import load_recipe, with_changes

    data, given = _with_sides(data, options, _values(options))
    if data.endswith((".yaml", ".yml")):
        path = Path(data)
        values = load_recipe(path).model_dump(mode="json")
        beside = folder_to_repeat(path)
        if beside is not None:
            given.setdefault("out", str(beside))
        if given.get("approach") == values["approach"]["kind"]:
            del given["approach"]  # the recipe says more of it
        for key, value in given.items():
            values[key] = {**values[key], **value} if key in ("data", "train", "tune", "evaluate") else value
    else:
        values = given
        values["data"] = {"train": data, **values.get("data", {})}
    return _recipe_of(with_changes(values, options.get("settings") or []))


def _with_sides(data: str, options: Mapping[str, Any], values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """DATA and the settings with `--source` and `--target`: two files, or two columns of DATA."""
    source, target = options.get("source"), options.get("target")
    if not data and not (source and target):
        raise typer.BadParameter("give a data file, a folder or a recipe, or --source FILE --target FILE")
    sides = {"target": target} if target else {}
    if data and source:
        sides = {"prompt": source, "completion": target, "preset": "translation"}
    if sides:
        values["data"] = {**values.get("data", {}), **sides}
    return data or str(source), values


def _recipe_of(values: Mapping[str, Any]) -> Any:
    from gptailor.recipe import build_recipe

    return build_recipe(values, where="these settings")


def _values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, as the nested settings they stand for."""
    data = {key: options.get(key) for key in DATA_OPTIONS if options.get(key) is not None}
    for key, flag in (("label_names", "--label-names"), ("test_label_names", "--test-label-names")):
        if options.get(key):
            data[key] = _pairs(options[key], flag)
    values: dict[str, Any] = {"data": data} if data else {}
    for key in ("task", "base", "approach", "seed", "out"):
        if options.get(key) is not None:
            values[key] = options[key]
    if options.get("minutes") is not None:
        values["train"] = {"minutes": options["minutes"]}
    budget = {key: options[key] for key in ("trials", "time", "storage") if options.get(key) is not None}
    if budget:
        values["tune"] = budget
    evaluate = {key: options[key] for key in ("baselines", "slices") if options.get(key)}
    if evaluate:
        values["evaluate"] = evaluate
    return values


def _refuse_given(options: Mapping[str, Any], why: str) -> None:
    """Refuses options that would be passed over."""
    flags = {"settings": "set", "slices": "slice"}
    told = {name: flags.get(name, name.replace("_", "-")) for name in options}
    if given := [f"--{told[name]}" for name, value in options.items() if value is not None]:
        raise typer.BadParameter(f"{', '.join(given)} can't be used here: {why}")


def _pairs(text: str | None, flag: str) -> dict[str, str]:
    """`0=World,1=Sports` to a mapping."""
    from gptailor.errors import RecipeError

    pairs: dict[str, str] = {}
    for part in (text or "").split(","):
        bare, equals, name = part.partition("=")
        if part.strip() and not (equals and name.strip()):
            raise RecipeError(f"{part!r} is not a pair.", where=flag, fix=f"Write {flag} 0=World,1=Sports.")
        if bare.strip() in pairs:
            raise RecipeError(f"{bare.strip()!r} is named twice.", where=flag, fix="Name each label once.")
        if part.strip():
            pairs[bare.strip()] = name.strip()
    return pairs
