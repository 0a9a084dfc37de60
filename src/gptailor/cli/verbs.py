"""The verbs: each a thin function over one importable function. Heavy imports wait until they are needed."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gptailor.cli.options import (
    ApproachOption,
    BaselinesOption,
    BaseOption,
    BudgetOptions,
    ColumnsOption,
    CompletionOption,
    Data,
    DataOrRecipe,
    DemoOutOption,
    FixOption,
    JsonOption,
    LabelOption,
    MinutesOption,
    NamesOption,
    OutOption,
    OverwriteOption,
    PrecisionOption,
    PresetOption,
    PromptOption,
    Rank,
    RunFolder,
    SeedOption,
    SetOption,
    SliceOption,
    SourceOption,
    TargetOption,
    TaskOption,
    TestColumnsOption,
    TestNamesOption,
    TestOption,
    TestTargetOption,
    TextOption,
    ValidationOption,
    ValidationTargetOption,
    pairs_in,
    recipe_from,
    recipe_of,
    refuse_given,
    with_columns,
)
from gptailor.cli.talk import asking, emit, make_room, point, talking

NOT_OF_THE_RECIPE = ("data", "more", "page", "as_json")  # what `curve` takes beside a recipe

app = typer.Typer(
    name="gptailor",
    help="Fine-tune a GPT to your own text: look, clean, split, train, evaluate honestly, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def demo(out: DemoOutOption = None, overwrite: OverwriteOption = False, as_json: JsonOption = False) -> None:
    """The whole way on the bundled sample, offline, in minutes."""
    from gptailor.report.terminal import print_summary

    sample = Path(__file__).parents[1] / "data" / "sample" / "headlines.csv"
    folder = out or "runs/demo"
    values = {"data": {"train": str(sample), "text": "headline", "label": "topic"}, "out": folder}
    with talking() as (console, narrator):
        narrator.say("760 headlines and articles on six topics, with the usual mess: finding the mess first")
        _look(recipe_of(values), console, narrator)
        run = _fit(recipe_of(values), overwrite=overwrite, narrator=narrator)
        report = run.report
        if not as_json:
            print_summary(console, report, folder=folder)
            point(console, f"\nReport:  {folder}/report.html")
            point(
                console, f'Next:    gptailor predict {folder} --input "Coach quits two days before the final"'
            )
    emit(report, as_json)


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
    out: OutOption = None,
    seed: SeedOption = None,
    minutes: MinutesOption = None,
    settings: SetOption = None,
    baselines: BaselinesOption = None,
    slices: SliceOption = None,
    overwrite: OverwriteOption = False,  # nothing is written; a fit's command can be checked
    no_estimate: Annotated[bool, typer.Option("--no-estimate", help="don't measure a real step")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look before anyone trains. What would be dropped and why, balance, lengths, cost."""
    recipe = recipe_from(data, locals())
    with talking() as (console, narrator):
        from gptailor.pipeline.check import check_recipe
        from gptailor.report.checked import print_check, print_estimate

        def show(found: Any) -> None:
            if not as_json:
                print_check(console, found.summary, rendered=found.rendered)

        found = asking(
            lambda chosen: check_recipe(
                with_columns(recipe, chosen), estimate=not no_estimate, say=narrator.say, show=show
            ),
            console,
        )
        if found.estimate is not None and not as_json:
            print_estimate(console, found.summary, found.estimate)
    emit({**found.summary, "estimate": found.estimate}, as_json)


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
    """Find wrong labels. Ranks the rows of a file, the most likely wrong first, for `fit --fix`."""
    recipe = recipe_from(data, {name: value for name, value in locals().items() if name != "out"})
    with talking() as (console, narrator):
        from gptailor.pipeline.out_of_fold import rank_suspects
        from gptailor.report.terminal import print_table

        found = asking(
            lambda chosen: rank_suspects(with_columns(recipe, chosen), top=top, out=out, say=narrator.say),
            console,
        )
        if not as_json:
            rows = [(f"{s.label} → {s.suggestion or '?'}", s.text[:70]) for s in found[:10]]
            print_table(console, f"{len(found):,} labels to look at, the most suspect first", rows)
            flags = ("--text", "--label", "--columns", "--label-names")
            named = zip(flags, (text, label, columns, label_names), strict=True)
            columns_given = [part for flag, name in named if name for part in (flag, name)]
            point(console, f"\nWritten: {out}")
            point(
                console,
                "Next:    fill the column `correction` with a label or drop (empty: leave it), then "
                + shlex.join(["gptailor", "fit", data, *columns_given, "--fix", str(out)]),
            )
    emit({"out": str(out), "suspects": len(found)}, as_json)


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
    recipe = recipe_from(data, locals())
    with talking() as (console, narrator):
        from gptailor.report.terminal import print_summary

        run = asking(
            lambda chosen: _fit(
                with_columns(recipe, chosen), overwrite=overwrite and not chosen, narrator=narrator
            ),
            console,
        )
        report = run.report
        if not as_json:
            print_summary(console, report, folder=str(run.folder))
            point(console, f"\nReport:  {run.folder}/report.html")
            _point_next(console, report, run.folder)
    emit(report, as_json)


def tune(**options: Any) -> None:
    """Search for better settings. The best are compared fairly with the default, and what wins is fitted."""
    from gptailor.launch import use_one_heap

    recipe = recipe_from(options["data"], options)
    use_one_heap()  # before the imports that start threads
    with talking() as (console, narrator):
        from gptailor.pipeline.place import Listener
        from gptailor.report.terminal import print_summary
        from gptailor.search.tune import tune_recipe

        listener = Listener(say=narrator.say, show=narrator.show)
        tuned = asking(
            lambda chosen: tune_recipe(
                with_columns(recipe, chosen),
                overwrite=options["overwrite"] and not chosen,
                listener=listener,
            ),
            console,
        )
        folder = tuned.run.folder
        if not options["as_json"]:
            print_summary(console, tuned.run.report, folder=str(folder))
            point(console, f"\n{tuned.result['says']}")
            point(console, f"\nSearch:  {folder}/tune.html\nReport:  {folder}/report.html")
            _point_next(console, tuned.run.report, folder)
    emit(tuned.result, options["as_json"])


def _point_next(console: Any, report: Mapping[str, Any], folder: Path) -> None:
    from gptailor.report.terminal import next_command

    if command := next_command(report, folder=str(folder)):
        point(console, f"Next:    {command}")


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
    with talking() as (console, narrator):
        from gptailor.pipeline.run import load
        from gptailor.report.terminal import print_slices, print_table, score_with_interval

        _say_what_is_loaded(run, narrator)
        opened, names = load(run), pairs_in(label_names, "--label-names")
        result = asking(
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
                console,
                title,
                [(name.replace("_", " "), score_with_interval(scores[name])) for name in shown],
            )
            print_slices(console, result)
            if "note" in result:
                point(console, result["note"])
    emit(result, as_json)


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
    """What more rows would bring. The score over the number of rows, measured and forecast."""
    given = {name: value for name, value in locals().items() if name not in NOT_OF_THE_RECIPE}
    is_run = (Path(data) / "recipe.yaml").is_file()
    refuse_given(given if is_run else {}, "a run folder has its own data and settings")
    place = Path(data) if is_run else recipe_from(data, given)
    with talking() as (console, narrator):
        from gptailor.launch import write_atomically
        from gptailor.pipeline.curve_new import curve_of, curve_page
        from gptailor.report.terminal import print_curve

        make_room(page)

        result = asking(
            lambda chosen: curve_of(
                place if is_run else with_columns(place, chosen), more=more or (), say=narrator.say
            ),
            console,
        )
        if not as_json:
            print_curve(console, result)
        if page is not None:
            write_atomically(page, curve_page(result, title=data))
            point(console, f"Page:    {page}")
    emit(result, as_json)


@app.command()
def predict(
    run: RunFolder,
    data: Annotated[str, typer.Argument(help="a file, or - for standard input")] = "-",
    given: Annotated[list[str] | None, typer.Option("--input", help="a text; may be repeated")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write here (.csv or .jsonl)")] = None,
    text: TextOption = None,
    columns: ColumnsOption = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="column of the file to write beside the answers; may be repeated"),
    ] = None,
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
    """Answer a file, standard input or --input texts. Labels with probabilities, or written answers."""
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
    with talking() as (console, narrator):
        from gptailor.pipeline.answers import predict_inputs, predict_to

        beside = {"rank": rank, "out": out, "text": text, "columns": columns, "keep": keep}
        refuse_given(beside if given else {}, "--input texts are answered where they are given")
        if given and data != "-":
            raise typer.BadParameter("give a file or --input texts, not both")
        _say_what_is_loaded(run, narrator)
        if given:
            answers = predict_inputs(run, given, sampling=sampling, precision=precision)
            if not as_json:
                for line in answers:
                    print(_answer_line(line))
            cut = [str(place) for place, answer in enumerate(answers, 1) if answer["truncated"]]
            if cut:
                narrator.say(
                    f"--input {', '.join(cut)}: longer than the model reads; part of it was left out"
                )
            result: dict[str, Any] = {"answers": answers}
        else:
            if data == "-" and sys.stdin.isatty():
                narrator.say("reading standard input: one text per line, then Ctrl-D")
            result = asking(
                lambda chosen: predict_to(
                    run,
                    data,
                    out=out,
                    columns=columns,
                    keep=keep or (),
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
            cut_rows = result["truncated"]
            in_part = f"; {cut_rows:,} longer than the model reads, part of each left out" if cut_rows else ""
            narrator.say(
                f"{result['rows']:,} rows: {result['answered']:,} answered, {result['rejected']:,} without "
                f"an answer (the reason stands in their row){in_part}{written}"
            )
    emit(result, as_json)


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
    """A local page to label rows by keyboard or touch. Goes on where it stopped."""
    with talking() as (console, narrator):
        from gptailor.serve.label import label_file, serve_label_page

        names = [name for name in (labels or "").split(",") if name.strip()]
        file = asking(
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
    with talking() as (_, narrator):
        from gptailor.models.answerer import load_answerer
        from gptailor.models.bundle import find_model_folder, read_bundle
        from gptailor.models.predictor import load_predictor
        from gptailor.pipeline.run import refuse_precision
        from gptailor.serve.run import serve as serve_models

        if api_key is None:  # an empty variable is no key, and no wish to go without one either
            api_key = os.environ.get("GPTAILOR_API_KEY")
        predictors, answerers = [], []
        for run in runs:
            _say_what_is_loaded(run, narrator)
            refuse_precision(run, precision)
            if read_bundle(find_model_folder(run)).task == "classification":
                predictors.append(load_predictor(run, precision=precision))
            else:
                answerers.append(load_answerer(run))
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
    with talking() as (console, narrator):
        from gptailor.pipeline.export import export_run

        _say_what_is_loaded(run, narrator)
        result = export_run(run, to=to, out=out, precision=precision)
        for key in ("note", "warning"):
            if key in result:
                narrator.say(result[key])
        narrator.say(f"written to {result['folder']}; largest difference to the run {result['parity']:.1e}")
        point(console, f"Load:    {result['load']}")
    emit(result, as_json)


@app.command()
def report(run: RunFolder, as_json: JsonOption = False) -> None:
    """Print a run's summary and name its page."""
    with talking() as (console, _):
        from gptailor.pipeline.finished import read_report
        from gptailor.report.terminal import print_summary

        result = read_report(run)
        if not as_json:
            print_summary(console, result, folder=str(run))
            point(console, f"\nReport:  {run}/report.html")
    emit(result, as_json)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="finished run folders")],
    page: Annotated[Path | None, typer.Option("--page", help="also write a page (.html) here")] = None,
    as_json: JsonOption = False,
) -> None:
    """A leaderboard of runs. With paired tests against the best, and the settings that differ."""
    with talking() as (console, narrator):
        from gptailor.launch import write_atomically
        from gptailor.pipeline.compare import compare_runs
        from gptailor.report.comparison import print_comparison, render_comparison

        make_room(page)
        found = compare_runs(runs)
        if not as_json:
            print_comparison(console, found)
        if page is not None:
            write_atomically(page, render_comparison(found))
            narrator.say(f"written to {page}")
    emit(found, as_json)


@app.command()
def doctor(
    clear_cache: Annotated[bool, typer.Option("--clear-cache", help="empty the cache")] = False,
    as_json: JsonOption = False,
) -> None:
    """What this machine has and what is missing."""
    with talking() as (console, narrator):
        from gptailor.pipeline.doctor import examine
        from gptailor.report.facts import bytes_text
        from gptailor.report.terminal import print_table

        if clear_cache:
            from gptailor.cache import clear_cache as clear

            narrator.say(f"cache cleared: {bytes_text(clear())} freed")
        result = examine()
        if not as_json:
            print_table(console, "this machine", list(result["machine"].items()))
            print_table(console, "libraries", list(result["libraries"].items()))
            for advice in result["advice"]:
                narrator.say(advice)
    emit(result, as_json)


@app.command()
def bases(as_json: JsonOption = False) -> None:
    """List what --base can name. What is here already, and common names of the hub."""
    with talking() as (console, narrator):
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
    emit(as_values(found), as_json)


@app.command(name="help-settings")
def help_settings() -> None:
    """Every setting with its default, for --set and recipes."""
    from gptailor.recipe import describe_settings

    for key, default, words in describe_settings():
        print(f"{key} = {default}\n    {words}")


def _fit(recipe: Any, *, overwrite: bool, narrator: Any) -> Any:
    from gptailor.launch import choose_heaps

    choose_heaps(recipe.approach.kind)  # before the imports that start threads
    from gptailor.pipeline.fit import fit_recipe
    from gptailor.pipeline.place import Listener

    return fit_recipe(recipe, overwrite=overwrite, listener=Listener(say=narrator.say, show=narrator.show))


def _say_what_is_loaded(run: Path, narrator: Any) -> None:
    from gptailor.pipeline.finished import what_is_missing

    narrator.say(f"loading {run}")
    if missing := what_is_missing(run):
        narrator.say(missing)


def _look(recipe: Any, console: Any, narrator: Any) -> None:
    from gptailor.pipeline.check import check_recipe
    from gptailor.report.checked import print_check

    found = check_recipe(recipe, estimate=False, say=narrator.say)
    print_check(console, found.summary, rendered=found.rendered)
