"""Small files of every text task's layout, and runs made of them on the tiny bases."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny
from crashed import Crash
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.place import Listener
from gptailor.pipeline.run import Run
from gptailor.recipe import Recipe, build_recipe

STEPS = 4
WORDS = sorted(set(tiny.WORDS.split()))


def words(seed: int, count: int = 10) -> str:
    """So many words; two seeds have hardly three in a row in common."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def pairs(count: int, first: int = 0) -> list[dict[str, str]]:
    """Prompts and answers: the answer is the prompt's first two words."""
    prompts = [words(seed) for seed in range(first, first + count)]
    return [{"prompt": prompt, "completion": " ".join(prompt.split()[:2])} for prompt in prompts]


def squad(articles: int, questions: int = 3) -> dict[str, Any]:
    """SQuAD's nested layout: each article one context, whose middle sentence holds the answer."""
    found = []
    for number in range(articles):
        answer = f"{WORDS[number % len(WORDS)]} {WORDS[(7 * number) % len(WORDS)]}"
        context = f"{words(3000 + number, 12)}. it was {answer}. {words(4000 + number, 12)}."
        asked = [
            {"id": f"{number}-{place}", "question": f"{words(9 * number + place, 3)} it was?", "answers": []}
            for place in range(questions)
        ]
        for question in asked:
            question["answers"] = [{"text": answer, "answer_start": context.index(answer)}] * 2
        found.append({"title": f"t{number}", "paragraphs": [{"context": context, "qas": asked}]})
    return {"version": "1.1", "data": found}


def chat(*texts: str) -> dict[str, Any]:
    """OpenAI's layout: the user and the assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]}


def chats(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Conversations of one question and its answer, every fourth of two."""
    found = []
    for seed in range(first, first + count):
        asked = words(seed, 6)
        more = [words(seed + 500, 4), asked.split()[1]] if seed % 4 == 0 else []
        found.append(chat(asked, asked.split()[0], *more))
    return found


def preferences(count: int, first: int = 0) -> list[dict[str, str]]:
    """The preferred answer is one word of the prompt, the other one is two that aren't."""
    found = []
    for seed in range(first, first + count):
        prompt = words(seed, 6)
        found.append(
            {"prompt": prompt, "chosen": prompt.split()[0], "rejected": f"no {words(seed + 900, 1)}"}
        )
    return found


class Place:
    """A folder with tiny bases, and what is fitted there."""

    def __init__(self, folder: Path, bases: Mapping[str, Path]) -> None:
        self.folder, self.bases = folder, bases
        self.said: list[str] = []

    def recipe(
        self,
        name: str,
        *,
        data: Mapping[str, Any],
        task: str | None = None,
        base: str | Path = "gpt2",
        approach: Any = "full",
        baselines: str = "none",
        seed: int = 0,
        preference: Mapping[str, Any] | None = None,
        **train: Any,
    ) -> Recipe:
        given = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
        rows = Path(given["train"])  # preferences are known by their columns
        writes_nothing = task == "preference" or (rows.is_file() and '"chosen"' in rows.read_text()[:9000])
        return build_recipe(
            {
                "task": task,
                "data": {"max_new_tokens": 8, **given},
                "base": str(self.bases.get(str(base), base)),
                "approach": approach,
                "train": {"length": f"{STEPS} steps", "save_every": "1 steps", **train},
                "preference": dict(preference or {}),
                "evaluate": {
                    "baselines": baselines,
                    "resamples": 100,
                    **({} if writes_nothing else {"generated_rows": 10}),
                },
                "seed": seed,
                "out": str(self.folder / name),
            }
        )

    def fit(self, recipe: Recipe, *, crash_at: int | None = None, crash_on: str | None = None) -> Run:
        """Fits; it ends right after a step was logged, or where something was said."""

        def show(line: Mapping[str, Any]) -> None:
            if line["kind"] == "step" and line["step"] == crash_at:
                raise Crash

        def say(told: str) -> None:
            self.said.append(told)
            if crash_on is not None and crash_on in told:
                raise Crash

        self.said = []
        return fit_recipe(recipe, listener=Listener(say=say, show=show))
