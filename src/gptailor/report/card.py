"""The model card: Markdown with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from gptailor.report.facts import (
    APPROACHES,
    METRICS,
    REASONS,
    clip,
    count_text,
    finite,
    interval_text,
    ladder,
    mapping,
    measured,
    primary_metric,
    rows_of,
    score_text,
    scores,
    share_text,
    visible,
)

Values = Mapping[str, Any]

_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$]|^[-+=]|(?<=\d)[.)](?=\s))")
_LINKS = re.compile(r"(?i)((?:https?|ftp)(?=:)|www(?=\.)|@)")
_FOLDERS = re.compile(r"(?<![^\s'\"=])(?:~|[A-Za-z]:\\|/)[^\s'\"]*[/\\]")
_PIPELINES = {"classification": "text-classification"}
_HUB_METRICS = {"macro_f1": "f1", "accuracy": "accuracy", "precision": "precision", "recall": "recall",
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
        _usage(report, details),
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


def _front_matter(report: Values, details: Values) -> str:
    task = str(report.get("task") or "")
    pipeline = _PIPELINES.get(task, "text-generation")
    known = [(key, metric, score) for key, metric, score in scores(report.get("test")) if key in _HUB_METRICS]
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": pipeline,
        "base_model": _base_name(report, details),
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
        "frozen": "a logistic head on the frozen features of {}",
        "scratch": "the architecture of {}, trained from random weights",
    }.get(str(report.get("approach")), "fine-tuned from {}")
    base = f"the base model **{_plain(_base_name(report, details) or 'unknown')}**"
    what = "text classifier" if report.get("task") == "classification" else "text model"
    lines = [f"A {what}: " + how.replace("{}", base) + "."]
    if says := mapping(report.get("verdict")).get("says"):
        lines.append(f"\n**{_plain(says, 600)}**")
    return "\n".join(lines)


def _usage(report: Values, details: Values) -> str:
    limit = finite(mapping(details.get("lengths")).get("max_tokens"))
    cut = f", truncation=True, max_length={limit:.0f}" if limit else ""
    classifies = report.get("task", "classification") == "classification"
    code = _CLASSIFY if classifies else _GENERATE
    temperature = finite(details.get("temperature")) or 1.0
    return code.replace("{cut}", cut).replace("{temperature}", f"{temperature:.4g}").strip()


_WITH_GPTAILOR = """
## Use it

Run these in the folder that holds this file. With Gptailor, which also cleans the text as it did in training:

```bash
gptailor predict . --input "your text"
```

```python
import gptailor

gptailor.load(".").predict(["your text"])
```
"""

_CLASSIFY = (
    _WITH_GPTAILOR
    + """
With transformers alone:

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForSequenceClassification.from_pretrained("model").eval()
with torch.no_grad():
    logits = model(**tokenizer("your text", return_tensors="pt"{cut})).logits
probabilities = (logits / {temperature}).softmax(-1)[0]  # the temperature calibrates them
print(model.config.id2label[int(probabilities.argmax())], float(probabilities.max()))
```
"""
)

_GENERATE = (
    _WITH_GPTAILOR
    + """
With transformers alone (the prompt must have the form it had in training; `model/gptailor.json` holds it):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForCausalLM.from_pretrained("model").eval()
prompt = tokenizer("your prompt", return_tensors="pt", add_special_tokens=False)
written = model.generate(**prompt, max_new_tokens=64)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(written, skip_special_tokens=True))
```
"""
)


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
    tested = finite(mapping(report.get("data")).get("test"))
    if rows and tested:
        yield f"\nMeasured on {count_text(tested)} rows that neither training nor the settings' choice saw."
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
    metric = METRICS.get(primary_metric(report), METRICS["macro_f1"])
    rows = []
    for rung in rungs:
        title = _plain(rung.title) + (" (best on validation)" if rung.best_baseline else "")
        value = score_text(rung.measured.value) if rung.measured else "not run"
        note = _plain(rung.note, 300)
        rows.append([f"**{title}**" if rung.own else title, value, interval_text(rung.measured) or "–", note])
    yield from _table(["", metric.title, "95 % interval", "note"], rows, right=(1, 2))
    gap = measured(mapping(report.get("verdict")).get("difference"))
    if gap:
        between = f" (95 % interval {interval_text(gap)})" if interval_text(gap) else ""
        yield f"\nDifference to the best baseline on the same test rows: {score_text(gap.value)}{between}."


def _calibration(report: Values, details: Values) -> Iterator[str]:
    error = measured(mapping(report.get("test")).get("calibration_error"))
    temperature, threshold = finite(details.get("temperature")), finite(details.get("threshold"))
    if error:
        between = f" ({interval_text(error)})" if interval_text(error) else ""
        yield f"- Calibration error on test: {score_text(error.value)}{between}."
    if temperature is not None:
        yield f"- Temperature {temperature:.3g}, fitted on validation; logits are divided by it."
    if threshold is not None:
        at = mapping(details.get("at_threshold"))
        covered, right = measured(at.get("coverage")), measured(at.get("accuracy"))
        told = f": {share_text(covered.value)} of the test rows are answered" if covered else ""
        told += f", {share_text(right.value)} of them rightly" if covered and right else ""
        yield f"- Threshold {threshold:.3g}: below it the answer is marked `abstained`{told}."
    elif "threshold" in details:
        yield "- No threshold: none reaches 95 % accuracy on validation."


def _data(report: Values, details: Values) -> Iterator[str]:
    data = mapping(report.get("data"))
    rows = [[name, count_text(data[key])] for key, name in _ROWS if finite(data.get(key)) is not None]
    for reason, count in mapping(data.get("dropped")).items():
        if finite(count):
            rows.append([f"dropped: {_plain(REASONS.get(str(reason), reason))}", count_text(count)])
    yield from _table(["rows", "count"], rows, right=(1,))
    tokens = mapping(data.get("tokens"))
    told = [
        f"{count_text(tokens[key])} {name}" for key, name in _TOKENS if finite(tokens.get(key)) is not None
    ]
    if told:
        yield f"\nTokens: {', '.join(told)}."
    names = [_plain(name, 60) for name in rows_of(details.get("label_names"))]
    if names:
        yield f"\nLabels ({len(names)}): {', '.join(names)}."


_ROWS = (("read", "read"), ("train", "trained on"), ("validation", "validation"), ("test", "test"))
_TOKENS = (("trained", "trained on"), ("context", "context"), ("padding", "padding"), ("cut", "cut off"))


def _training(report: Values, details: Values) -> Iterator[str]:
    training = mapping(report.get("training"))
    approach = str(report.get("approach") or "")
    if approach:
        seed = _plain(report.get("seed", 0))
        yield f"- Approach: {_plain(APPROACHES.get(approach, approach))}, seed {seed}."
    steps, best = finite(training.get("steps")), finite(training.get("best_step"))
    if steps:
        yield f"- Steps: {count_text(steps)}" + (
            f", the best at {count_text(best)}." if best is not None else "."
        )
    if details.get("overfitting"):
        yield f"- {_plain(details['overfitting'], 400)}"
    if details.get("command"):
        yield f"- Command: {_command(details['command'])}"
    yield "- Every setting is in `recipe.yaml`; `gptailor fit recipe.yaml` repeats the run."


def _limits(report: Values, details: Values) -> Iterator[str]:
    classes = mapping(mapping(report.get("test")).get("per_class"))
    f1 = {name: measured(mapping(raw).get("f1")) for name, raw in classes.items()}
    weak = sorted((score.value, str(name)) for name, score in f1.items() if score)[:3]
    if len(f1) > 1 and weak:
        told = ", ".join(f"{_plain(name, 60)} (F1 {score_text(value)})" for value, name in weak)
        yield f"- Weakest on: {told}."
    if report.get("task") == "classification":
        yield "- It knows only the labels above and answers with one of them, also for text of another kind."
    limit = finite(mapping(details.get("lengths")).get("max_tokens"))
    if limit:
        yield f"- It reads {count_text(limit)} tokens of a text; what comes after is not seen."
    yield "- The scores hold for text like the test rows. For other text, measure with `gptailor evaluate`."
    yield "- It can repeat what was in its data, biases and private details included."


def _openings(details: Values) -> Iterator[str]:
    rows = []
    for one in map(mapping, rows_of(details.get("openings"))):
        told = ", ".join(
            f"{m.title} {score_text(s.value)}" for _, m, s in list(scores(one.get("scores")))[:3]
        )
        rows.append([_plain(one.get("when", "")), _command(one.get("command", "")), told])
    if rows:
        yield f"Opened {'once' if len(rows) == 1 else f'{len(rows)} times'}; each look is listed.\n"
        yield from _table(["when", "by", "scores"], rows)


def _licence(report: Values, details: Values) -> Iterator[str]:
    base = mapping(details.get("base_details"))
    name = _plain(_base_name(report, details) or "the base model")
    revision = f", revision {_plain(base['revision'])}" if base.get("revision") else ""
    parameters = finite(base.get("parameters"))
    size = f", {parameters / 1e6:,.1f} million parameters" if parameters else ""
    yield f"Built on **{name}**{revision}{size}."
    if base.get("license"):
        licence = _plain(base["license"])
        yield f"\nThe base model's licence: {licence}. It and its attribution go with this model."
    else:
        yield "\nThe base model's licence isn't known here. Look it up before you publish this model."
    if base.get("attribution"):
        yield f"\n{_plain(base['attribution'], 600)}"
    yield "\nThe licence of this model is yours to choose, within what the base and the data allow."
