"""How to use a run's model, as the model card shows it: with Gptailor and with transformers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gptailor.report.facts import finite, mapping, rows_of

_WITH_GPTAILOR = """
## Use it

Run these in the folder that holds this file. With Gptailor, which also cleans the text as it did in training:

```bash
gptailor predict . --input "{input}"
```

```python
import gptailor

gptailor.load(".").predict(["{input}"])
```
"""

_WITH_COLUMNS = """
## Use it

A prompt is made of several columns: {columns}. Run this in the folder that holds this file, with a CSV or
JSON file of these columns. Gptailor also cleans the texts as it did in training:

```bash
gptailor predict . rows.csv
```

`gptailor serve .` takes them by name: `"values": {{values}}` in place of the prompt of `/v1/completions`.
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
with torch.no_grad():{windows}
    logits = model(**tokenizer("your text", return_tensors="pt"{cut})).logits
{reading}
```
"""
)
_HEAD_ALONE = "  # of a longer text the beginning; Gptailor reads all of it, in windows"
_READINGS = {
    "single": """\
probabilities = (logits / {temperature}).softmax(-1)[0]  # the temperature calibrates them
print(model.config.id2label[int(probabilities.argmax())], float(probabilities.max()))""",
    "multiple": """\
probabilities = (logits / {temperature}).sigmoid()[0]  # the temperature calibrates them
print([model.config.id2label[i] for i, p in enumerate(probabilities.tolist()) if p >= {cutoff}])""",
    "score": """\
print({mean} + {deviation} * float(logits[0, 0]))  # the head was trained on standardized numbers""",
}

_GENERATE = (
    _WITH_GPTAILOR
    + """
With transformers alone (the prompt must have the form it had in training; `model/gptailor.json` holds it):

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForCausalLM.from_pretrained("model").eval()
begin = {begin}  # every prompt began with these tokens in training
ids = torch.tensor([begin + tokenizer("your prompt", add_special_tokens=False)["input_ids"]])
written = model.generate(ids, max_new_tokens=64)[0, ids.shape[1] :]
print(tokenizer.decode(written, skip_special_tokens=True))
```
"""
)

_CONTINUE = (
    _WITH_GPTAILOR
    + """
With transformers alone:

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForCausalLM.from_pretrained("model").eval()
begin = {begin}  # every document began with these tokens in training
ids = torch.tensor([begin + tokenizer("{input}", add_special_tokens=False)["input_ids"]])
written = model.generate(ids, max_new_tokens=100, do_sample=True, top_p=0.95)[0]
print(tokenizer.decode(written, skip_special_tokens=True))
```
"""
)

_CHAT = (
    _WITH_GPTAILOR
    + """
With transformers alone:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForCausalLM.from_pretrained("model").eval()
turns = [{"role": "user", "content": "{input}"}]
text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
tokenizer.split_special_tokens = False  # the template's own marks are tokens; keep it on for people's texts
prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)
written = model.generate(**prompt, max_new_tokens=200)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(written, skip_special_tokens=True))
```
"""
)

_BY_TASK = {
    "classification": (_CLASSIFY, "your text"),
    "language": (_CONTINUE, "The beginning of a text"),
    "completion": (_GENERATE, "your prompt"),
    "chat": (_CHAT, "your question"),
    "preference": (_CHAT, "your question"),
}


def usage(report: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """The card's section on use, with the run's own length and temperature in its code."""
    limit = finite(mapping(details.get("lengths")).get("max_tokens"))
    cut = f", truncation=True, max_length={limit:.0f}" if limit else ""
    temperature = finite(details.get("temperature")) or 1.0
    code, given = _BY_TASK.get(str(report.get("task", "classification")), (_GENERATE, "your text"))
    numbers = {name: finite(details.get(name)) or 0.0 for name in ("cutoff", "mean", "deviation")}
    values = {
        "{reading}": _READINGS.get(str(report.get("answer")), _READINGS["single"]),
        "{cut}": cut,
        "{windows}": _HEAD_ALONE if details.get("too_long") == "window" else "",
        "{temperature}": f"{temperature:.4g}",
        **{f"{{{name}}}": repr(number) for name, number in numbers.items()},
        "{input}": given,
        "{begin}": str([token for token in rows_of(details.get("begin_ids")) if isinstance(token, int)]),
    }
    if columns := [str(column) for column in rows_of(details.get("columns"))]:
        code = code.replace(_WITH_GPTAILOR, _WITH_COLUMNS)
        on_one_line = (" ".join(column.replace("`", "'").split()) for column in columns)
        values["{columns}"] = ", ".join(f"`{column}`" for column in on_one_line)
        values["{values}"] = ", ".join(
            f'{json.dumps(column, ensure_ascii=False)}: "..."' for column in columns
        )
    for name, value in values.items():
        code = code.replace(name, value)
    return code.strip()
