"""Named uses of completion: a template, its metrics, and how long an answer may get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gptailor.tasks.pattern import Template


@dataclass(frozen=True, slots=True)
class Preset:
    """One use of completion; every part is a default that a recipe can change.

    `template` is written over role names; `names` holds the column names that each role is known by.
    """

    template: Template
    metrics: tuple[str, ...]  # the first is the primary one
    max_new_tokens: int
    purpose: str
    names: Mapping[str, tuple[str, ...]]
    answer: str  # the role that is learned
    context: str = ""  # the role that may be long; shortened where the whole doesn't fit
    question: str = ""  # the role that decides which part of a long context is read
    keep_together: tuple[str, ...] = ()  # roles whose equal values stay in one part
    is_new_form: bool = False  # answers are of a form or a language that a small base has hardly seen
    unpacks: bool = False  # arrays of texts are sentences to join, or answers that are all right; else JSON


PROMPTS = ("prompt", "input", "question", "query", "instruction", "source_text")
ANSWERS = ("completion", "response", "answer", "output", "reply", "target", "target_text")

PRESETS: dict[str, Preset] = {
    "question_answering": Preset(
        template=Template("{context}\nQuestion: {question}\nAnswer:", " {answers}"),
        metrics=("f1", "exact_match"),
        max_new_tokens=48,
        purpose="answer a question about a text",
        names={
            "context": ("context", "passage", "paragraph"),
            "question": ("question", "query"),
            "answers": ("answers", "answer", "answer_text"),
        },
        answer="answers",
        context="context",
        question="question",
        keep_together=("context",),
        unpacks=True,
    ),
    "instruction": Preset(
        template=Template(
            "Instruction: {instruction}\nInput: {input}\nAnswer:",
            " {output}",
            optional="input",
            short="Instruction: {instruction}\nAnswer:",
        ),
        metrics=("rouge_l", "chrf", "rouge_1", "rouge_2"),
        max_new_tokens=256,
        purpose="follow an instruction, with or without an input",
        names={
            "instruction": ("instruction", "instructions"),
            "input": ("input", "context"),
            "output": ("output", "response", "answer", "completion"),
        },
        answer="output",
        context="input",
        question="instruction",
    ),
    "summarization": Preset(
        # GPT-2 was asked for summaries with "TL;DR:" (Radford et al. 2019, section 3.6).
        template=Template("{document}\nTL;DR:", " {summary}"),
        metrics=("rouge_l", "rouge_1", "rouge_2"),
        max_new_tokens=128,
        purpose="say a long text in few words",
        names={
            "document": ("document", "article", "dialogue", "text", "body", "content", "source"),
            "summary": ("summary", "highlights", "abstract", "tldr", "summaries", "headline", "target"),
        },
        answer="summary",
        context="document",
        unpacks=True,
    ),
    "translation": Preset(
        template=Template("{source}\nTranslation:", " {target}"),
        metrics=("bleu", "chrf"),
        max_new_tokens=128,
        purpose="say a text in another language",
        names={
            "source": ("source", "src", "source_text"),
            "target": ("target", "tgt", "target_text", "translation"),
        },
        answer="target",
        is_new_form=True,
        unpacks=True,
    ),
    "data_to_text": Preset(
        template=Template("{data}\nText:", " {text}"),
        metrics=("bleu", "chrf", "rouge_l"),
        max_new_tokens=128,
        purpose="say a record of facts in words",
        names={
            "data": ("mr", "meaning_representation", "triples", "linearized_input", "data", "table"),
            "text": ("ref", "reference", "references", "human_reference", "text", "target"),
        },
        answer="text",
        is_new_form=True,
        unpacks=True,
    ),
    "completion": Preset(
        template=Template("{prompt}\n", "{completion}"),
        metrics=("chrf", "rouge_l", "exact_match"),
        max_new_tokens=128,
        purpose="go on from a prompt",
        names={"prompt": PROMPTS, "completion": ANSWERS},
        answer="completion",
    ),
    "generation": Preset(
        template=Template("", "{text}"),
        metrics=("perplexity", "bits_per_byte", "distinct_2", "repetition"),
        max_new_tokens=256,
        purpose="write more texts of the same kind, from nothing",
        names={"text": ("text", "content", "body", "document")},
        answer="text",
    ),
}

# Column names that are language codes (ISO 639-1), and what the template calls them.
LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
