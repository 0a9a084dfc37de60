"""The report's words as data: scores, baselines, approaches, reasons, and what each task calls its things."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Tone = Literal["good", "unclear", "worse", "none"]

# Of which rows the score of a finalist is, when `tune` fits it again.
HELD_OUT = "on rows held out"
WHAT_CHOSE = "with other seeds on the validation rows that chose it"


@dataclass(frozen=True, slots=True)
class Metric:
    """How a score is called and read."""

    title: str
    explains: str
    higher_is_better: bool = True
    top: float | None = 1.0  # the end of its scale, None where there is none


@dataclass(frozen=True, slots=True)
class Baseline:
    """How a simpler means is called: with room, on one line, and what it is where the name doesn't say."""

    title: str
    short: str
    explains: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """How the report of a task speaks, and which scores it is about."""

    kind: str  # what the model is
    purpose: str  # what it is for, a sentence of the model card
    one: str  # what the data consists of
    many: str
    metrics: tuple[str, ...]  # the first one that was measured decides
    keys: tuple[str, ...]  # asked for right after it
    context: str  # what became of the tokens that were neither learned nor cut
    loss_unit: str
    batch_of: str  # what a training batch holds
    limit: str  # what the longest sequence is called beside a number
    window: str  # what `check` says of it
    uncut: str
    limits: tuple[str, ...]  # on the model card; `{limit}` is the longest sequence
    learned: str  # what `check` marks in its examples
    pipeline: str  # of the Hugging Face hub


METRICS: dict[str, Metric] = {
    "micro_f1": Metric("Micro-F1", "F1 of all labels of all rows taken together"),
    "macro_f1": Metric("Macro-F1", "the mean of the classes' F1, every class counted alike"),
    "accuracy": Metric("Accuracy", "the share of rows answered rightly"),
    "subset_accuracy": Metric("Rows wholly right", "the share of rows with exactly the right labels"),
    "hamming_loss": Metric(
        "Hamming loss", "the share of wrong decisions, a label of a row each", higher_is_better=False
    ),
    "micro_precision": Metric("Micro precision", "how often a given label is right"),
    "micro_recall": Metric("Micro recall", "how many of the labels are found"),
    "macro_precision": Metric("Macro precision", "how often an answer is right, averaged over the classes"),
    "macro_recall": Metric("Macro recall", "how many of a class are found, averaged over the classes"),
    "rmse": Metric(
        "Root mean square error",
        "how far off the numbers are, in their own unit; large misses weigh more",
        higher_is_better=False,
        top=None,
    ),
    "mae": Metric(
        "Mean absolute error", "how far off the numbers are on average", higher_is_better=False, top=None
    ),
    "pearson": Metric("Pearson's correlation", "how well the numbers rise and fall with the true ones"),
    "spearman": Metric("Spearman's correlation", "how well the order of the rows is found"),
    "calibration_error": Metric(
        "Calibration error",
        "how far the probabilities stand from the truth",
        higher_is_better=False,
    ),
    "preference_accuracy": Metric("Preference accuracy", "how often the preferred answer is ranked first"),
    "exact_match": Metric("Exact match", "the share of answers equal to the expected text"),
    "f1": Metric("Word F1", "the overlap of words with the expected text"),
    "bleu": Metric("BLEU", "the overlap of word runs with the reference, up to 100", top=100.0),
    "chrf": Metric("chrF", "the overlap of character runs with the reference, up to 100", top=100.0),
    "rouge_1": Metric("ROUGE-1", "the words shared with the reference"),
    "rouge_2": Metric("ROUGE-2", "the word pairs shared with the reference"),
    "rouge_l": Metric("ROUGE-L", "the longest common run of words with the reference"),
    "distinct_1": Metric("Distinct-1", "the share of different words among all written"),
    "distinct_2": Metric("Distinct-2", "the share of different word pairs among all written"),
    "repetition": Metric("Repetition", "how much of a text it says twice", higher_is_better=False),
    "length_ratio": Metric("Length ratio", "words written for each of the reference, 1 is even", top=None),
    "stop_rate": Metric("Stop rate", "the share of texts that end by themselves"),
    "bits_per_byte": Metric(
        "Bits per byte",
        "how many bits one byte of unseen text costs",
        higher_is_better=False,
        top=None,
    ),
    "perplexity": Metric(
        "Perplexity",
        "how many tokens it hesitates between at each place",
        higher_is_better=False,
        top=None,
    ),
    "loss": Metric("Loss", "nats per token", higher_is_better=False, top=None),
}

BASELINES: dict[str, Baseline] = {
    "majority": Baseline("Most frequent answer", "most frequent answer"),
    "mean": Baseline("Mean of the training rows", "mean of the training rows"),
    "tfidf": Baseline("TF-IDF + logistic regression", "TF-IDF + logistic regression"),
    "tfidf_ridge": Baseline("TF-IDF + ridge regression", "TF-IDF + ridge regression"),
    "zero_shot": Baseline("Base model, zero-shot", "zero-shot"),
    "few_shot": Baseline("Base model, few-shot", "few-shot"),
    "frozen": Baseline("Frozen features", "frozen features"),
    "copy": Baseline("The prompt, copied", "copying the prompt"),
    "lead": Baseline("The prompt's first sentence", "the first sentence"),
    "nearest": Baseline("Nearest training row", "the nearest row's answer", "found by TF-IDF"),
    "base": Baseline("Base model, as it came", "the base as it came", "before it was trained on this text"),
    "longer": Baseline("The longer answer", "the longer answer"),
    "shorter": Baseline("The shorter answer", "the shorter answer"),
    "unigram": Baseline(
        "Token frequencies", "token frequencies", "how often each token stands in the training text"
    ),
    "xz": Baseline("xz, a compressor", "xz, a compressor", "after it has read the training text"),
}

APPROACHES: dict[str, str] = {
    "full": "full fine-tune",
    "lora": "LoRA",
    "frozen": "frozen features",
    "scratch": "from scratch",
}

# `{one}` is what the task calls one piece of its data.
REASONS: dict[str, str] = {
    "unreadable": "could not be read",
    "no_text": "no text",
    "no_label": "no label",
    "duplicate": "duplicate of an earlier {one}",
    "conflict": "same text, different labels",
    "rare_label": "label too rare to learn",
    "leak_exact": "stands in the test or validation file",
    "leak_near": "nearly stands in the test or validation file",
    "leak_group": "of a group that stands in the test or validation file",
    "too_long": "too long",
    "nothing_to_learn": "no token to learn from",
    "reviewed": "dropped by your corrections",
}

HEADLINES: dict[Tone, str] = {
    "good": "Worth it",
    "unclear": "No clear difference",
    "worse": "Worse than the baseline",
    "none": "No verdict",
}
HARDLY = "Hardly a difference"  # a sure one that nobody notices

READS_THE_HEAD = "It reads {limit} tokens of a text; what comes after is not seen."
READS_WINDOWS = (
    "It reads a text in windows of {limit} tokens, each by itself, and takes the mean of what it finds."
)
READS_THE_END = "Prompt and answer together have at most {limit} tokens; of a longer prompt the end is read."
READS_A_WINDOW = (
    "Prompt and answer together have at most {limit} tokens; of a longer `{column}` the sentences are read "
    "that suit the question best."
)

TEXT = Task(
    kind="text model",
    purpose="",
    one="row",
    many="rows",
    metrics=("bleu", "chrf", "rouge_l", "exact_match", "f1", "bits_per_byte", "perplexity", "accuracy"),
    keys=(),
    context="read as context",
    loss_unit="nats per target",
    batch_of="rows",
    limit="limit",
    window="the model reads up to {limit}",
    uncut="None was cut.",
    limits=(READS_THE_HEAD,),
    learned="the learned tokens in green",
    pipeline="text-generation",
)

CLASSIFICATION = Task(
    kind="text classifier",
    purpose="",
    one="row",
    many="rows",
    metrics=("macro_f1", "accuracy"),
    keys=("accuracy", "calibration_error"),
    context="read as context",
    loss_unit="nats per target",
    batch_of="rows",
    limit="limit",
    window="the model reads up to {limit}",
    uncut="None was cut.",
    limits=(
        "It knows only the labels above and answers with one of them, also for text of another kind.",
        READS_THE_HEAD,
    ),
    learned="the learned position in green",
    pipeline="text-classification",
)

# What the report calls an answer that isn't one label a row.
ANSWERS = {"multiple": "several labels a row", "score": "a number a row"}

TASKS: dict[str, Task] = {
    "classification": CLASSIFICATION,
    "classification, several labels a row": replace(
        CLASSIFICATION,
        kind="text classifier that gives a text as many labels as fit it",
        metrics=("micro_f1", "macro_f1"),
        keys=("macro_f1", "subset_accuracy"),
        loss_unit="nats per row",
        limits=(
            "It knows only the labels above; text of another kind gets some of them, or none.",
            CLASSIFICATION.limits[1],
        ),
    ),
    "classification, a number a row": replace(
        CLASSIFICATION,
        kind="model that reads a number off a text",
        metrics=("rmse", "mae"),
        keys=("mae", "spearman"),
        loss_unit="squared deviations",
        limits=("It gives any text a number, also text of another kind.", CLASSIFICATION.limits[1]),
    ),
    "language": Task(
        kind="language model",
        purpose="It continues a text in the manner of the documents it was trained on, and tells how likely "
        "a text is.",
        one="document",
        many="documents",
        metrics=("bits_per_byte", "perplexity"),
        keys=("perplexity",),
        context="held out",
        loss_unit="nats per token",
        batch_of="blocks",
        limit="block",
        window="the model learns in blocks of {limit} tokens",
        uncut="None was cut: what is longer than a block goes on in the next one.",
        limits=(
            "It writes what is likely, not what is true. Check what it says before you rely on it.",
            "It follows no instructions: it goes on from where your text ends.",
            "It was trained on blocks of {limit} tokens; what stands further back was never in its sight.",
        ),
        learned="every token is learned; the shades tell them apart",
        pipeline="text-generation",
    ),
    "completion": Task(
        kind="completion model",
        purpose="It answers a prompt in the manner of the answers it was trained on.",
        one="row",
        many="rows",
        metrics=("f1", "rouge_l", "bleu", "chrf", "bits_per_byte", "perplexity"),
        keys=("stop_rate", "perplexity"),
        context="read as context",
        loss_unit="nats per token of an answer",
        batch_of="rows",
        limit="limit",
        window="prompt and answer together have up to {limit} tokens",
        uncut="None was cut.",
        limits=(
            "It writes what is likely, not what is true. Check what it says before you rely on it.",
            "It expects prompts of the form it was trained on; `model/gptailor.json` holds the form.",
            READS_THE_END,
        ),
        learned="the learned tokens in green",
        pipeline="text-generation",
    ),
    "chat": Task(
        kind="chat model",
        purpose="It answers in a conversation, in the manner of the conversations it was trained on.",
        one="conversation",
        many="conversations",
        metrics=("chrf", "rouge_l", "bits_per_byte", "perplexity"),
        keys=("stop_rate", "perplexity"),
        context="read as context",
        loss_unit="nats per token of an answer",
        batch_of="conversations",
        limit="limit",
        window="a conversation has up to {limit} tokens",
        uncut="None was cut.",
        limits=(
            "It writes what is likely, not what is true. Check what it says before you rely on it.",
            "A conversation and its next answer have at most {limit} tokens.",
        ),
        learned="the learned tokens in green",
        pipeline="text-generation",
    ),
    "preference": Task(
        kind="chat model",
        purpose="It answers in a conversation; it was taught which of two answers people preferred.",
        one="pair",
        many="pairs",
        metrics=("preference_accuracy", "bits_per_byte", "perplexity"),
        keys=("perplexity",),
        context="read as context",
        loss_unit="nats per pair",
        batch_of="pairs",
        limit="limit",
        window="a prompt and one answer have up to {limit} tokens",
        uncut="None was cut.",
        limits=(
            "It writes what is likely, not what is true. Check what it says before you rely on it.",
            "What people preferred in the data is all it knows of right and wrong.",
            "A conversation and its next answer have at most {limit} tokens.",
        ),
        learned="the learned tokens in green",
        pipeline="text-generation",
    ),
}
