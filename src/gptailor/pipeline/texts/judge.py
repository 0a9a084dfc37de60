"""How a text model did on the sealed test rows, beside what is simpler, and what that means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptailor.data.ledger import write_csv_safely
from gptailor.evaluate.baselines import strongest
from gptailor.evaluate.language import (
    PieceNats,
    bits_difference,
    loss_difference,
    saves_enough,
    saving_in_words,
    text_scores,
)
from gptailor.evaluate.metrics import as_json, interval_in_words
from gptailor.evaluate.preference import by_length, right_shares, share_difference, share_score
from gptailor.evaluate.resampling import ROWS, Resampling
from gptailor.evaluate.text_baselines import fit_taste
from gptailor.evaluate.text_metrics import METRICS, paired_text_difference, signature, text_answer_scores
from gptailor.models.answerer import Answerer
from gptailor.models.approach import adapt_full
from gptailor.models.load import load_trainable_language_model
from gptailor.pipeline.modest import FEWEST_ROWS, kept_modest
from gptailor.pipeline.texts.answers import (
    PROMPTED,
    VALIDATION_SHARE,
    Rung,
    Sample,
    Written,
    choose_sample,
    climb,
    is_scratch,
    metric_names,
    samplings,
)
from gptailor.pipeline.texts.objective import (
    by_token,
    log_likelihoods,
    margins_as_trained,
    resampling_of,
    row_nats,
)
from gptailor.pipeline.texts.rows import documents_of
from gptailor.report.facts import inside, metric_of, score_text
from gptailor.report.words import BASELINES
from gptailor.types import FloatArray, Part, Score

if TYPE_CHECKING:
    from gptailor.pipeline.texts.road import TextResult
    from gptailor.pipeline.texts.shop import TextShop
    from gptailor.pipeline.texts.tokens import TokenizedRow

ENOUGH_STOP = 0.95  # of the validation answers, or the model is kept from going round in circles
NO_REPEAT = 3  # tokens, as is usual for summaries (Paulus et al. 2018)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tested:
    """All that the report says of the test rows."""

    scores: Mapping[str, Any]
    baselines: Mapping[str, Any]
    verdict: Mapping[str, Any]
    samples: list[dict[str, Any]]
    header: tuple[str, ...]  # of predictions.csv
    lines: list[tuple[object, ...]]
    signatures: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reference: FloatArray | None = None  # (N, 2) log-likelihoods of the base as it came, of preferences
    shares: FloatArray | None = None  # (N,) of preferences: whether the chosen answer is ranked first

    def write_predictions(self, path: Path) -> None:
        """The test rows with what was expected and what came."""
        write_csv_safely(path, self.header, self.lines)


def settle_no_repeat(shop: TextShop, answerer: Answerer, say: Say) -> int:
    """Whether answers must not repeat themselves, by validation: 0, or the tokens that may not come again.

    A small or briefly trained model that writes greedily may go round in circles and never stop. Forbidding
    repeats is kept where more answers stop by themselves and the first score isn't lower.
    """
    sample = choose_sample(shop, "validation", shop.recipe.evaluate.generated_rows // VALIDATION_SHARE)
    if not sample.rows:
        return 0
    free = _write(shop, answerer, sample)
    if free.stop_share >= ENOUGH_STOP:
        return 0
    held = _write(shop, answerer, sample, no_repeat=NO_REPEAT)
    score = metric_names(shop)[0]
    before, after = (
        text_answer_scores(one.beside(sample), metrics=[score], resampling=Resampling(1))[score].value
        for one in (free, held)
    )
    if held.stop_share <= free.stop_share or after < before:
        return 0
    say(
        f"{1 - free.stop_share:.0%} of the validation answers go on without an end; answers that don't "
        f"repeat a run of {NO_REPEAT} tokens do so in {1 - held.stop_share:.0%}, and it stays that way"
    )
    return NO_REPEAT


def judge_answers(
    shop: TextShop, answerer: Answerer, nats: PieceNats, result: TextResult, say: Say
) -> Tested:
    """Writes answers to fixed test rows and compares them with the ladder's."""
    most = shop.recipe.evaluate.generated_rows
    samples: dict[Part, Sample] = {
        "validation": choose_sample(shop, "validation", most // VALIDATION_SHARE),
        "test": choose_sample(shop, "test", most),
    }
    sample = samples["test"]
    drawn = resampling_of(shop, sample.rows)
    say(f"writing {len(sample.rows):,} answers")
    ours = _write(shop, answerer, sample)
    names = metric_names(shop)
    scores = text_answer_scores(ours.beside(sample), metrics=names, resampling=drawn) if sample.rows else {}
    rungs = (
        climb(shop, samples, scratch=is_scratch(result.approach), no_repeat=answerer.no_repeat, say=say)
        if all(one.rows for one in samples.values())
        else {}
    )
    told = {name: _rung_scores(rung, sample, names, drawn) for name, rung in rungs.items()}
    primary = shop.metrics[0]
    if rungs and primary in METRICS:
        verdict = _verdict(primary, rungs, ours, samples, drawn)
    else:
        compares = shop.recipe.evaluate.baselines != "none" and not is_scratch(result.approach)
        base = _base_nats(shop) if compares else None
        if base is not None:
            told["base"] = as_json(text_scores(base, resampling=drawn))
        verdict = _verdict_by_bits(nats, base, drawn)
    return Tested(
        scores={"answers": len(sample.rows), **scores},
        baselines=told,
        verdict=verdict,
        samples=_samples(sample, ours, rungs, str(verdict["best_baseline"])),
        header=("source", "row", "prompt", "reference", "answer", "ended", "group"),
        lines=[
            (row.row.source, row.row.row, row.row.asked, row.row.references[0], text, ended, group)
            for row, text, ended, group in zip(
                sample.rows, ours.texts, ours.stopped, _groups(sample.rows), strict=True
            )
        ],
        signatures={name: signature(name, sample.references) for name in names if signature(name)},
        notes=_notes(shop, sample, no_repeat=answerer.no_repeat, prompted=_prompted(rungs)),
    )


def _groups(rows: Sequence[TokenizedRow]) -> list[int]:
    found: list[int] = documents_of([row.row for row in rows]).tolist()
    return found


def _prompted(rungs: Mapping[str, Rung]) -> bool:
    return any(rungs[name].test is not None for name in PROMPTED if name in rungs)


def _notes(shop: TextShop, sample: Sample, *, no_repeat: int, prompted: bool) -> tuple[str, ...]:
    """What the scores of answers stand on; `prompted`: the base as it came wrote some, too."""
    written = f"answers were written to {len(sample.rows):,} test questions drawn from the seed, greedily"
    if sample.rows and not any(row.row.asked for row in sample.rows):
        written = (
            f"{len(sample.rows):,} texts were written from nothing, drawn at temperature 1 with a seed for "
            "each: greedily they would all be the same"
        )
    if no_repeat:
        base = ", the base's as well" if prompted else ""
        written += f", no run of {no_repeat} tokens twice in one{base} (chosen on validation)"
    long = sum(row.prompt_ids is None for row in shop.tokens.rows["test"])
    if not long:
        return (written,)
    room = f"{shop.feeder.max_tokens - shop.feeder.reserve:,} tokens"
    return (
        written,
        f"{long:,} test conversations are longer than {room}, so no answer was written to them; "
        "a larger data.max_tokens or a smaller data.max_new_tokens leaves more room",
    )


def judge_preferences(shop: TextShop, answerer: Answerer, result: TextResult, say: Say) -> Tested:
    """How often the model ranks the preferred answer first, and how often simpler means do."""
    rows = {part: shop.tokens.rows[part] for part in ("validation", "test")}
    drawn = resampling_of(shop, rows["test"])
    ours = log_likelihoods(adapt_full(answerer.model), rows["test"])
    margins: dict[str, dict[str, FloatArray]] = {"longer": {}, "shorter": {}}
    for part, ones in rows.items():
        longer = by_length([row.row.references[0] for row in ones], [row.row.references[1] for row in ones])
        margins["longer"][part], margins["shorter"][part] = longer, -longer
    reference = None
    if not is_scratch(result.approach):
        say("baselines: the base as it came")
        base = adapt_full(_base(shop))
        margins["base"] = {}
        for part, ones in rows.items():
            theirs = log_likelihoods(base, ones)
            margins["base"][part] = by_token(theirs, ones)
            if part == "test":
                reference = theirs
    if shop.recipe.evaluate.baselines != "none":
        say("baselines: TF-IDF of the answers")
        margins["tfidf"] = _ngram_margins(shop)
    gained = margins_as_trained(shop.recipe.preference.loss, ours, reference, rows["test"])
    if shop.recipe.evaluate.baselines == "none":
        margins = {}
    shares = right_shares(gained)
    best = max(margins, key=lambda name: right_shares(margins[name]["validation"]).mean(), default=None)
    gap = share_difference(shares, right_shares(margins[best]["test"]), resampling=drawn) if best else None
    telling = shares != right_shares(margins[best]["test"]) if best else ()
    told = {
        name: {"preference_accuracy": as_json(share_score(right_shares(own["test"]), resampling=drawn))}
        for name, own in margins.items()
    }
    return Tested(
        scores={"preference_accuracy": share_score(shares, resampling=drawn)},
        baselines=told,
        verdict=_verdict_of("preference_accuracy", best, gap, telling=telling, resampling=drawn),
        samples=[],
        header=("source", "row", "prompt", "chosen", "rejected", "margin", "group"),
        lines=[
            (row.row.source, row.row.row, row.row.asked, *row.row.references, float(margin), group)
            for row, margin, group in zip(rows["test"], gained, _groups(rows["test"]), strict=True)
        ],
        reference=reference,
        shares=shares,
    )


def _ngram_margins(shop: TextShop) -> dict[str, FloatArray]:
    """How much more the chosen answers look chosen than the rejected ones, by part."""
    rows = [row.row for row in shop.tokens.rows["train"]]
    sides = [[row.references[side] for row in rows] for side in (0, 1)]
    taste = fit_taste(*sides, groups=documents_of(rows), seed=shop.recipe.seed)
    found = {}
    for part in ("validation", "test"):
        pairs = [row.row.references for row in shop.tokens.rows[part]]
        found[part] = taste([pair[0] for pair in pairs]) - taste([pair[1] for pair in pairs])
    return found


def against_rival(shop: TextShop, rival: Answerer, nats: PieceNats, tested: Tested) -> dict[str, Any]:
    """A rival's score on the test rows, the one that settings are searched by, and how far we are ahead."""
    rows, model = shop.tokens.rows["test"], adapt_full(rival.model)
    drawn = resampling_of(shop, rows)
    if tested.shares is not None:
        gained = margins_as_trained(
            str(rival.bundle.form["loss"]), log_likelihoods(model, rows), tested.reference, rows
        )
        theirs = right_shares(gained)
        scores = {"preference_accuracy": share_score(theirs, resampling=drawn)}
        gap = share_difference(tested.shares, theirs, resampling=drawn)
    else:
        costs = row_nats(model, rows, shop)
        scores = text_scores(costs, resampling=drawn)
        gap = loss_difference(nats, costs, resampling=drawn)
    return {"approach": rival.bundle.approach, **as_json(scores), "difference": as_json(gap)}


def _write(shop: TextShop, answerer: Answerer, sample: Sample, *, no_repeat: int = 0) -> Written:
    """As the answerer usually does, unless a run of so many tokens may not come twice."""
    usual = replace(answerer.usual, no_repeat=no_repeat or answerer.no_repeat)
    prompts = [ids or shop.text.prefix for ids in sample.prompts]
    made = answerer.answer(prompts, samplings(usual, [one.row for one in sample.rows], seed=shop.recipe.seed))
    return Written(tuple(one.text.strip() for one in made), tuple(one.finished == "stop" for one in made))


def _rung_scores(
    rung: Rung, sample: Sample, names: tuple[str, ...], resampling: Resampling
) -> dict[str, Any]:
    """A rung's scores on the rows it answered; only what writes tells how often it stops."""
    if rung.test is None:
        return {"skipped": rung.skipped}
    chosen = [name for name in names if name != "stop_rate" or not all(rung.test.stopped)]
    size = len(rung.test.texts)
    drawn = resampling.of(slice(size))
    scores = text_answer_scores(rung.test.beside(sample), metrics=chosen, resampling=drawn)
    return {**({"rows": size} if size < len(sample.rows) else {}), **as_json(scores)}


def _verdict(
    primary: str,
    rungs: Mapping[str, Rung],
    ours: Written,
    samples: Mapping[Part, Sample],
    resampling: Resampling,
) -> dict[str, Any]:
    """Against the rung that did best on validation, on the test rows that both answered."""
    answered = {name: rung.validation for name, rung in rungs.items() if rung.validation is not None}
    if not answered:
        return _verdict_of(primary, None, None)

    asked = {name: len(one.texts) for name, one in answered.items()}

    def score(one: str, other: str) -> float:
        answers = answered[one].first(min(asked[one], asked[other])).beside(samples["validation"])
        return float(text_answer_scores(answers, metrics=[primary], resampling=Resampling(1))[primary].value)

    best = strongest(asked, score)
    theirs = rungs[best].test
    assert theirs is not None
    size = len(theirs.texts)
    same = ours.first(size).beside(samples["test"])
    drawn = resampling.of(slice(size))
    gap = paired_text_difference(same, theirs.texts, metric=primary, resampling=drawn)
    metric = METRICS[primary]
    given = [metric.rows(answers) for answers in (same, replace(same, predictions=theirs.texts))]
    telling = (given[0] != given[1]).any(axis=1)
    return _verdict_of(primary, best, gap, telling=telling, resampling=drawn)


def _verdict_of(
    metric: str,
    best: str | None,
    gap: Score | None,
    *,
    telling: Any = (),
    resampling: Resampling = ROWS,
) -> dict[str, Any]:
    """The verdict in numbers and in one sentence; an interval over a handful of rows says nothing.

    `telling`: (N,) whether each row tells the two apart.
    """
    rows = len(telling)
    few = resampling.num_groups(rows) < FEWEST_ROWS
    if best is None or gap is None:
        return {
            "metric": metric,
            "best_baseline": None,
            "difference": None,
            "worth_it": None,
            "says": "No baseline was run.",
        }
    name, title = BASELINES[best].short, inside(metric_of(metric).title)
    between, signed = (
        interval_in_words(gap, score_text),
        ("+" if gap.value > 0 else "") + score_text(gap.value),
    )
    if few:
        says = f"{title} {signed} against {name}, on {resampling.told(rows)}: too few to tell."
    elif gap.low > 0:
        says = f"The model's {title} is {score_text(gap.value)} above {name}{between}: worth it."
    elif gap.high < 0:
        says = f"The model's {title} is {score_text(-gap.value)} below {name}{between}: don't ship it."
    else:
        says = f"No clear difference: {title} {signed} against {name}{between}."
    said = {
        "metric": metric,
        "best_baseline": best,
        "difference": as_json(gap),
        "worth_it": bool(gap.low > 0) and not few,
        "says": says,
        **({"too_few": True} if few else {}),
    }
    return said if few else kept_modest(said, telling, resampling)


def _verdict_by_bits(ours: PieceNats, base: PieceNats | None, resampling: Resampling) -> dict[str, Any]:
    """Where nothing is asked, only the likelihood of the texts can be compared."""
    if base is None:
        return _verdict_of("bits_per_byte", None, None)
    gap = bits_difference(ours, base, resampling=resampling)
    turned = Score(-gap.value, -gap.high, -gap.low)
    between = interval_in_words(turned, score_text)
    drawn, rows = replace(resampling, groups=ours.documents), len(ours.nats)
    few = drawn.num_groups(rows) < FEWEST_ROWS
    says = f"No clear difference to the base as it came{between}."
    if few:
        change = f"{gap.value:+.3f} bits per byte against the base as it came"
        says = f"{change}, on {drawn.told(rows)}: too few to tell."
    elif turned.low > 0:
        says = saving_in_words(gap, base, name="the base as it came")
    elif turned.high < 0:
        says = f"The model needs {score_text(gap.value)} bits per byte more than the base: don't use it."
    return {
        "metric": "bits_per_byte",
        "best_baseline": "base",
        "difference": as_json(gap),
        "worth_it": saves_enough(gap, base) and not few,
        "says": says,
        **({"too_few": True} if few else {}),
    }


def _samples(sample: Sample, ours: Written, rungs: Mapping[str, Rung], best: str) -> list[dict[str, Any]]:
    """Questions with the reference, the model's answer and the best simpler one's."""
    theirs = rungs[best].test if best in rungs else None
    return [
        {
            "prompt": row.row.asked,
            "reference": references[0],
            "after": text,
            **({"baseline": theirs.texts[place]} if theirs and place < len(theirs.texts) else {}),
            **({"baseline_name": BASELINES[best].title} if theirs else {}),
        }
        for place, (row, references, text) in enumerate(
            zip(sample.rows, sample.references, ours.texts, strict=True)
        )
    ]


def _base(shop: TextShop) -> Any:
    model = load_trainable_language_model(shop.base, shop.text.tokenizer)
    model.to(shop.environment["device"])
    model.eval()
    return model


def _base_nats(shop: TextShop) -> PieceNats:
    return row_nats(adapt_full(_base(shop)), shop.tokens.rows["test"], shop)
