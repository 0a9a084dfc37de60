"""The model card: Markdown with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from gptailor.report.facts import (
    bytes_text,
    clip,
    count_text,
    finite,
    inside,
    interval_text,
    ladder,
    longest_sequence,
    mapping,
    measured,
    noise_told,
    primary,
    reason_text,
    rows_of,
    score_text,
    scores,
    scores_told,
    share_text,
    task_of,
    tested_on,
    token_names,
    visible,
)
from gptailor.report.usage import usage
from gptailor.report.words import (
    APPROACHES,
    READS_A_WINDOW,
    READS_THE_END,
    READS_THE_HEAD,
    READS_WINDOWS,
)

Values = Mapping[str, Any]

_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$]|^[-+=]|(?<=\d)[.)](?=\s))")
_LINKS = re.compile(r"(?i)((?:https?|ftp)(?=:)|www(?=\.)|@)")
_FOLDERS = re.compile(r"(?<![^\s'\"=])(?:~|[A-Za-z]:\\|/)[^\s'\"]*[/\\]")
_HUB_METRICS = {"micro_f1": "f1", "mae": "mae", "pearson": "pearsonr", "spearman": "spearmanr",
                "macro_f1": "f1", "accuracy": "accuracy", "macro_precision": "precision",
                "macro_recall": "recall",
                "bleu": "bleu", "chrf": "chrf", "rouge_l": "rouge", "perplexity": "perplexity",
                "exact_match": "exact_match", "f1": "f1"}  # fmt: skip


def render_card(report: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """`README.md` of a run from `report.json` and the run's details.

    Every key of `details` may be missing. The licence is the person's to choose, so the front matter
    leaves it open. Text from a person is escaped: it can't become markup, a link or a heading.
    """
    sections = [
        f"# {_plain(details.get('title') or 'Model')}",
        _summary(report, details),
        usage(report, details),
        _section("Scores", _scores(report)),
        _section("Baselines", _ladder(report, details)),
        _section("Calibration", _calibration(report, details)),
        _section("Data", _data(report, details)),
        _section("Training", _training(report, details)),
        _section("Limits", _limits(report, details)),
        _section("The sealed test set", _openings(details)),
        _section("Licence and attribution", _licence(report, details)),
        f"Written by {_version(details)}. The whole report is `report.html`, its numbers `report.json`.",
    ]
    return _front_matter(report, details) + "\n\n".join(s for s in sections if s) + "\n"


def _version(details: Values) -> str:
    version = details.get("version")
    return f"Gptailor {_plain(version)}" if version else "Gptailor"


def _one_line(value: Any) -> str:
    """No line ends: a line of dashes would end the front matter."""
    return re.sub(r"\s+", " ", visible(str(value))).strip()


def _plain(value: Any, length: int = 200) -> str:
    """A person's text on one line of Markdown, with nothing in it that could be markup."""
    text = _one_line(clip(value, length)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A zero-width space keeps addresses from turning into links by themselves.
    return _LINKS.sub(r"\1&#8203;", _MARKDOWN.sub(r"\\\1", text))


def _command(value: Any) -> str:
    """A command line without the folders of the person's machine."""
    return _plain(_FOLDERS.sub("", str(value)), 300)


def _base_name(report: Values, details: Values) -> str:
    """The base's name; of a folder only its own name, never where it lay."""
    name = _one_line(mapping(details.get("base_details")).get("name") or report.get("base") or "")
    is_path = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name


def _is_of_the_hub(report: Values, details: Values) -> bool:
    return report.get("approach") != "scratch" and mapping(details.get("base_details")).get("kind") == "hub"


def _front_matter(report: Values, details: Values) -> str:
    pipeline = task_of(report).pipeline
    known = [(key, metric, score) for key, metric, score in scores(report.get("test")) if key in _HUB_METRICS]
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": pipeline,
        # Weights that began at random come from nobody, and a folder's name may be a stranger's on the hub.
        "base_model": _base_name(report, details) if _is_of_the_hub(report, details) else "",
        "tags": [
            "gptailor",
            "gpt",
            pipeline,
            *([_one_line(report["approach"])] if report.get("approach") else []),
        ],
        "metrics": list(dict.fromkeys(_HUB_METRICS[key] for key, _, _ in known)),
    }
    if known:
        title = _one_line(details.get("title") or "model")
        slug = re.sub(r"[^\w.-]+", "-", title, flags=re.ASCII).strip("-.") or "data"
        found = [
            {"type": _HUB_METRICS[key], "name": metric.title, "value": round(score.value, 6)}
            for key, metric, score in known
        ]
        result = {
            "task": {"type": pipeline},
            "dataset": {"name": title, "type": slug, "split": "test"},
            "metrics": found,
        }
        values["model-index"] = [{"name": title, "results": [result]}]
    written = yaml.safe_dump({k: v for k, v in values.items() if v}, sort_keys=False, allow_unicode=True)
    return (
        f"---\n# license: choose one before you publish; see the section on licence below\n{written}---\n\n"
    )


def _section(title: str, lines: Iterator[str]) -> str:
    body = "\n".join(lines).strip()
    return f"## {title}\n\n{body}" if body else ""


def _table(heads: list[str], rows: list[list[str]], *, right: Sequence[int] = ()) -> Iterator[str]:
    if not rows:
        return
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "|".join(" ---: " if index in right else " --- " for index in range(len(heads))) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _summary(report: Values, details: Values) -> str:
    how = {
        "full": "fine-tuned from {}, every weight",
        "lora": "fine-tuned from {} with low-rank adapters, which are merged into it",
        "frozen": "a head fitted on the frozen features of {}",
        "scratch": "the architecture of {}, trained from random weights",
    }.get(str(report.get("approach")), "fine-tuned from {}")
    base = f"the base model **{_plain(_base_name(report, details) or 'unknown')}**"
    task = task_of(report)
    lines = [f"A {task.kind}: " + how.replace("{}", base) + "."]
    if task.purpose:
        lines.append(task.purpose)
    if says := mapping(report.get("verdict")).get("says"):
        lines.append(f"\n**{_plain(says, 600)}**")
    return "\n".join(lines)


def _scores(report: Values) -> Iterator[str]:
    validation = {key: score for key, _, score in scores(report.get("validation"))}
    rows = [
        [
            m.title,
            score_text(s.value),
            interval_text(s) or "–",
            score_text(v.value) if (v := validation.get(k)) else "–",
        ]
        for k, m, s in scores(report.get("test"))
    ]
    yield from _table(["", "test", "95 % interval", "validation"], rows, right=(1, 2, 3))
    if rows and (on := tested_on(report)):
        yield f"\n{on}"
    classes = []
    for name, raw in mapping(mapping(report.get("test")).get("per_class")).items():
        found = [measured(mapping(raw).get(key)) for key in ("precision", "recall", "f1")]
        cells = [score_text(score.value) if score else "–" for score in found]
        classes.append([_plain(name, 80), *cells, interval_text(found[2]) or "–"])
    if classes:
        yield "\n### Per class\n"
        yield from _table(
            ["label", "precision", "recall", "F1", "95 % interval of F1"], classes, right=(1, 2, 3, 4)
        )


def _ladder(report: Values, details: Values) -> Iterator[str]:
    rungs = ladder(report, details)
    if all(rung.own for rung in rungs):
        return
    metric, task = primary(report), task_of(report)
    rows = []
    for rung in rungs:
        title = _plain(rung.title) + (" (best on validation)" if rung.best_baseline else "")
        value = score_text(rung.measured.value) if rung.measured else "not run"
        note = _plain(rung.note, 300)
        rows.append([f"**{title}**" if rung.own else title, value, interval_text(rung.measured) or "–", note])
    order = "" if metric.higher_is_better else ", lower is better"
    yield from _table(["", metric.title + order, "95 % interval", "note"], rows, right=(1, 2))
    gap = measured(mapping(report.get("verdict")).get("difference"))
    if gap:
        between = f" (95 % interval {interval_text(gap)})" if interval_text(gap) else ""
        sign = "" if metric.higher_is_better else f" {inside(metric.title)}; below zero is better"
        told = f"{score_text(gap.value)}{between}{sign}"
        yield f"\nDifference to the best baseline on the same test {task.many}: {told}."


def _calibration(report: Values, details: Values) -> Iterator[str]:
    error = measured(mapping(report.get("test")).get("calibration_error"))
    temperature, threshold = finite(details.get("temperature")), finite(details.get("threshold"))
    if error:
        between = f" ({interval_text(error)})" if interval_text(error) else ""
        yield f"- Calibration error on test: {score_text(error.value)}{between}{noise_told(error, details)}."
    if temperature is not None:
        yield f"- Temperature {temperature:.3g}, fitted on validation; logits are divided by it."
    if threshold is not None:
        at = mapping(details.get("at_threshold"))
        covered, right = measured(at.get("coverage")), measured(at.get("accuracy"))
        told = f": {share_text(covered.value)} of the test rows are answered" if covered else ""
        told += f", {share_text(right.value)} of them rightly" if covered and right else ""
        yield f"- Threshold {threshold:.3g}: below it the answer is marked `abstained`{told}."
    elif "threshold" in details:
        yield "- No threshold: none that keeps 20 validation rows reaches 95 % accuracy on them."
    if (cutoff := finite(details.get("cutoff"))) is not None:
        yield f"- Cutoff {cutoff:.3g}: a label is given from this probability on, the same for all labels. It"
        yield "  gave the best micro-F1 on validation."


def _data(report: Values, details: Values) -> Iterator[str]:
    data, task = mapping(report.get("data")), task_of(report)
    rows = [[name, count_text(data[key])] for key, name in _ROWS if finite(data.get(key)) is not None]
    for reason, count in mapping(data.get("dropped")).items():
        if finite(count):
            rows.append([f"dropped: {_plain(reason_text(reason, task))}", count_text(count)])
    yield from _table([task.many, "count"], rows, right=(1,))
    if data.get("divided") is True:
        yield f"\nSo few {task.many} are divided: the counts are of those with text in that part."
    sizes = mapping(data.get("bytes"))
    told = [f"{bytes_text(sizes[key])} {name}" for key, name in _ROWS if finite(sizes.get(key)) is not None]
    if told:
        yield f"\nText: {', '.join(told)}."
    tokens = mapping(data.get("tokens"))
    named = token_names(task).items()
    told = [f"{count_text(tokens[key])} {name}" for key, name in named if finite(tokens.get(key)) is not None]
    if told:
        yield f"\nTokens: {', '.join(told)}."
    names = [_plain(name, 60) for name in rows_of(details.get("label_names"))]
    if names:
        yield f"\nLabels ({len(names)}): {', '.join(names)}."


_ROWS = (("read", "read"), ("train", "trained on"), ("validation", "validation"), ("test", "test"))


def _training(report: Values, details: Values) -> Iterator[str]:
    training = mapping(report.get("training"))
    approach = str(report.get("approach") or "")
    if approach:
        seed = _plain(report.get("seed", 0))
        yield f"- Approach: {_plain(APPROACHES.get(approach, approach))}, seed {seed}."
    steps, best = finite(training.get("steps")), finite(training.get("best_step"))
    if steps:
        yield f"- Steps: {count_text(steps)}" + (
            f", the best at {count_text(best)}." if best is not None and details.get("curves") else "."
        )
    if overfitting := training.get("overfitting"):
        yield f"- {_plain(overfitting, 400)}"
    if details.get("command"):
        yield f"- Command: {_command(details['command'])}"
    yield "- Every setting is in `recipe.yaml`; `gptailor fit recipe.yaml` repeats the run."


def _limits(report: Values, details: Values) -> Iterator[str]:
    classes = mapping(mapping(report.get("test")).get("per_class"))
    tested = {name: mapping(raw) for name, raw in classes.items() if mapping(raw).get("support") != 0}
    f1 = {name: measured(one.get("f1")) for name, one in tested.items()}
    weak = sorted((score.value, str(name)) for name, score in f1.items() if score)
    if weak := weak[: min(3, len(f1) // 2)]:
        told = ", ".join(f"{_plain(name, 60)} (F1 {score_text(value)})" for value, name in weak)
        yield f"- Weakest on: {told}."
    task, limit = task_of(report), longest_sequence(details)
    otherwise = {READS_THE_HEAD: READS_WINDOWS} if details.get("too_long") == "window" else {}
    if column := details.get("context_column"):
        otherwise[READS_THE_END] = READS_A_WINDOW.replace("{column}", _plain(column, 60))
    for line in (otherwise.get(line, line) for line in task.limits):
        if limit or "{limit}" not in line:
            yield f"- {line.replace('{limit}', count_text(limit))}"
    like = f"text like the test {task.many}"
    yield f"- The scores hold for {like}. For other text, measure with `gptailor evaluate`."
    yield "- It can repeat what was in its data, biases and private details included."


def _openings(details: Values) -> Iterator[str]:
    rows = [
        [_plain(one.get("when", "")), _command(one.get("command", "")), scores_told(one)]
        for one in map(mapping, rows_of(details.get("openings")))
    ]
    if rows:
        yield f"Opened {'once' if len(rows) == 1 else f'{len(rows)} times'}; each look is listed.\n"
        yield from _table(["when", "by", "scores"], rows)


def _licence(report: Values, details: Values) -> Iterator[str]:
    base = mapping(details.get("base_details"))
    name = _plain(_base_name(report, details) or "the base model")
    revision = f", revision {_plain(base['revision'])}" if base.get("revision") else ""
    parameters = finite(base.get("parameters"))
    size = f", {parameters / 1e6:,.1f} million parameters" if parameters else ""
    if report.get("approach") == "scratch":
        yield f"The architecture is that of **{name}**{revision}{size}; this model has none of its weights."
        yield "\nThe licence of this model is yours to choose, within what the data allow."
        return
    yield f"Built on **{name}**{revision}{size}."
    if base.get("license"):
        licence = _plain(base["license"])
        yield f"\nThe base model's licence: {licence}. It and its attribution go with this model."
    else:
        yield "\nThe base model's licence isn't known here. Look it up before you publish this model."
    yield "\nThe licence of this model is yours to choose, within what the base and the data allow."
