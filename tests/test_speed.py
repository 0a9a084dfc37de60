"""benchmarks/speed.py: rates, ratios, bars and what stands on the page. Nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import speed
import speed_matmul
import speed_setup
import speed_table
import speed_works
from speed_bench import Bench, refuse_other_tokens
from speed_table import BARS, Bar, Line, Spread, judge, make_line, make_share_line, rate

import tiny
from gptailor.pipeline.task import settle_task


def run(
    seconds: Sequence[float],
    *,
    tokens: int = 100,
    compiling: Sequence[float] = (),
    memory: int = 1000,
    loss: float | None = None,
) -> dict[str, Any]:
    compiling = compiling or [0.0] * len(seconds)
    steps = [
        {"seconds": second, "compile_seconds": spent, "tokens": tokens, "loss": 2.0}
        for second, spent in zip(seconds, compiling, strict=True)
    ]
    return {
        "steps": steps,
        "peak_memory_bytes": memory,
        "startup_seconds": 1.0,
        "compile_seconds": sum(compiling),
        "validation_loss": loss,
    }


def line(median: float, *, pairs: int = 5, difference: float | None = 0.0, **others: Any) -> Line:
    return Line("w", 0.1, "usual", pairs, speed=Spread(median, 1, 9), loss_difference=difference, **others)


def reached(found: Line, bar: Bar, **others: Any) -> tuple[str, bool, str]:
    told = judge(bar, [found], dropout=0.1, checks=others.get("checks", {"w": 0.0}))
    return told["reached"], told["settled"], told["why"]


# Arithmetic.


def test_the_rate_leaves_out_the_warm_up_and_compiling() -> None:
    assert rate(run([50, 50, 50, 1, 1])) == 100
    assert rate(run([9, 9, 9, 1, 5], compiling=[8, 8, 8, 0, 4])) == 100
    assert rate(run([2])) == 50  # features: the whole job is one step
    assert rate(run([50, 50, 50, 1]), epochs=5) == 20


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [
        {"ours": run([1], memory=600, loss=1.0), "usual": run([4], memory=1000, loss=1.01)},
        {"ours": run([2], memory=700, loss=1.0), "usual": run([10], memory=1000, loss=1.0)},
        {"ours": run([1], memory=650, loss=1.0), "usual": run([6], memory=1000, loss=0.9)},
    ]
    found = make_line("w", 0.1, "usual", rounds)
    assert found.speed == Spread(5, 4, 6)
    assert found.memory == Spread(0.65, 0.6, 0.7)
    assert found.loss_difference == pytest.approx(1 / 9), "the largest: every pair must agree"
    assert found.ours["tokens_per_second"] == 100
    assert make_line("w", 0.1, "usual", rounds, epochs=5).speed == Spread(25, 20, 30)


def test_the_share_counts_six_operations_per_weight_that_is_needed() -> None:
    assert speed_table.training_operations(12, 768) == 6 * 84_934_656
    rounds = [{"ours": run([1]), "machine": {"operations_per_second": 200 * 6 * 3 * 4}}]
    found = make_share_line("w", 0.1, rounds, layers=1, width=2)
    assert found.share == Spread(0.5, 0.5, 0.5)


def test_a_block_multiplies_each_weight_three_times() -> None:
    shapes = speed_matmul.products(5, 8)
    operations = sum(2 * rows * inner * columns for rows, inner, columns in shapes)
    assert operations == 5 * speed_table.training_operations(1, 8)


def test_first_steps_are_compared_as_far_as_both_went() -> None:
    ours, theirs = run([1, 1, 1]), run([1, 1])
    theirs["steps"][1]["loss"] = 2.5
    assert speed_table.first_steps_differ(ours, theirs) == pytest.approx(0.2)


# Bars.


def test_a_bar_is_judged_by_the_median() -> None:
    bar = Bar("w", "usual", "speed", 5, 6)
    assert reached(line(6), bar) == ("aim", True, "")
    assert reached(line(5), bar) == ("must", True, "")
    assert reached(line(4.99), bar) == ("nothing", True, "")
    assert reached(line(2), Bar("w", "usual", "speed", 2)) == ("must", True, "")


def test_less_memory_is_better() -> None:
    bar = Bar("w", "usual", "memory", 0.7, 0.6)
    for ratio, told in ((0.6, "aim"), (0.7, "must"), (0.71, "nothing")):
        assert reached(line(1, memory=Spread(ratio, 0, 1)), bar)[0] == told


def test_few_pairs_or_other_losses_settle_nothing() -> None:
    bar = Bar("w", "usual", "speed", 5, 6)
    assert reached(line(6, pairs=4), bar) == ("aim", False, "4 of 5 pairs")
    assert reached(line(6, difference=0.021), bar) == ("aim", False, "losses differ by 2.1%")
    assert reached(line(6), bar, checks={"w": 0.01}) == ("aim", False, "first steps differ by 1.0e-02")
    why = "losses after training and of the first steps not compared"
    assert reached(line(6, difference=None), bar, checks={}) == ("aim", False, why)
    frozen = dataclasses.replace(line(6, difference=None), work="w frozen")
    told = judge(Bar("w frozen", "usual", "speed", 5), [frozen], dropout=0.1, checks={})
    assert told["settled"], "a frozen head isn't trained by steps"


def test_a_bar_wants_its_own_dropout() -> None:
    bar = Bar("w", "usual", "speed", 5, 6)
    told = judge(bar, [line(9)], dropout=0.0, checks={})
    assert (told["reached"], told["why"]) == (None, "not measured")


def test_every_bar_has_its_work_and_its_peer() -> None:
    peers = {work.name: set(work.peers) or {"machine"} for work in speed_works.WORKS}
    assert all(bar.against in peers[bar.work] for bar in BARS)
    assert all(set(bar.values) and speed_works.DECIDING_DROPOUT[bar.work] == 0.1 for bar in BARS)


# Texts.


def test_the_page_shows_each_bar_beside_its_ratio() -> None:
    bar = Bar("w", "usual", "speed", 5, 6)
    found = line(5.5, ours={"tokens_per_second": 550, "compile_seconds": 30, "startup_seconds": 9})
    bars = [judge(bar, [found], dropout=0.1, checks={"w": 0.0})]
    [_, _, row] = speed_table.table([found], bars).split("\n")
    assert row.startswith("| w | 0.1 | usual | 5.50 (1.00 to 9.00) | 5 x / 6 x | must | 5 | 550 / – |")
    other = Line("w", 0.0, "usual", 5, speed=Spread(7, 7, 7))
    assert "| 7.00 | – | – |" in speed_table.table([other], bars)  # no dropout decides nothing


def test_a_bar_that_is_missed_stands_out() -> None:
    assert speed_table.reached_text({"reached": "nothing", "why": ""}) == "**no**"
    assert speed_table.reached_text({"reached": "aim", "why": "1 of 5 pairs"}) == "aim (1 of 5 pairs)"


# The rows.


@pytest.mark.parametrize("work", speed_works.WORKS, ids=lambda work: work.name)
def test_the_product_takes_the_recipe_of_every_work(work: speed_works.Work, tmp_path: Path) -> None:
    rows = speed_setup.Rows(tmp_path, tmp_path / "base", work.task)
    recipe = speed_setup.recipe_for(work, rows, dropout=0.1, out=tmp_path / "run")
    assert settle_task(recipe).task == work.task
    assert recipe.data.teach_names is (work.task != "classification"), "the peers learn no labels' names"


def test_peers_get_our_tokens_in_our_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    news = [(text.rsplit(",", 1)[0], text.rsplit(",", 1)[1]) for text in news_lines(tmp_path)]
    monkeypatch.setitem(speed_setup.READERS, "classification", lambda _: news)
    work = next(work for work in speed_works.WORKS if work.name == "classification full")
    base = tiny.build_base(tmp_path / "base")
    rows = speed_setup.make_rows(tmp_path / "rows", work, base=base, data=tmp_path, steps=3)
    tokens = speed_setup.read_lines(rows.tokens)
    lengths = [len(row["input_ids"]) for row in tokens]
    assert len(tokens) == 3 * work.batch_size
    assert all(lengths[at] >= lengths[at + 1] for at in range(work.batch_size - 1))  # longest first in a step
    assert {row["labels"] for row in tokens} == {0, 1, 2}
    assert rows.tokens_of_steps(work.batch_size) == [sum(lengths[at : at + 16]) for at in (0, 16, 32)]
    labels = json.loads((rows.model / "config.json").read_text())["id2label"]
    assert set(labels.values()) == {"sports", "business", "health"}  # the model with the head that we draw


def news_lines(folder: Path) -> list[str]:
    return tiny.write_news(folder / "news.csv", 300).read_text(encoding="utf-8").splitlines()[1:]


# The command.


def test_a_quick_run_is_one_pair_of_a_few_works() -> None:
    wanted = speed.parse_arguments(["--quick"])
    assert (wanted.pairs, wanted.dropouts, wanted.works) == (1, [0.1], list(speed.QUICK))
    assert speed.parse_arguments([]).works == [work.name for work in speed_works.WORKS]


def test_a_round_that_was_measured_is_found_again(tmp_path: Path) -> None:
    work = speed_works.WORKS[0]
    bench = Bench(tmp_path, tmp_path, tmp_path, "tiny", Path("python"), 13, 0, "cpu")
    assert bench.find(work, 0.1, 1) is None
    bench.keep(work, 0.1, 1, {"ours": run([1])})
    found = bench.find(work, 0.1, 1)
    assert found is not None
    assert found["ours"] == run([1])
    assert bench.find(work, 0.0, 1) is None
    assert replace(bench, steps=20).find(work, 0.1, 1) is None  # other settings, other rounds


def test_a_round_holds_both_sides_and_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared, alone = speed_works.WORKS[0], speed_works.WORKS[-1]
    bench = Bench(tmp_path, tmp_path, tmp_path, "tiny", Path("python"), 13, 0, "cpu")
    monkeypatch.setattr(Bench, "rows", lambda *_: speed_setup.Rows(tmp_path, tmp_path, "classification"))
    monkeypatch.setattr(Bench, "ours", lambda *_: run([1], loss=1.0))
    monkeypatch.setattr(Bench, "peer", lambda *_: run([2], loss=1.0))
    monkeypatch.setattr(Bench, "products", lambda *_: {"operations_per_second": 5.0})
    for work in (compared, alone):
        bench.measure(work, 0.1, 1)
    found, share = bench.find(compared, 0.1, 1), bench.find(alone, 0.1, 1)
    assert found is not None
    assert set(found) == {"when", "load", "load_before", "ours", "usual", "best"}
    assert share is not None
    assert set(share) == {"when", "load", "load_before", "ours", "machine"}


def test_sides_that_saw_other_tokens_are_refused() -> None:
    work = speed_works.WORKS[0]
    ours, theirs = run([1, 1], loss=1.0), run([1, 1], tokens=99, loss=1.0)
    with pytest.raises(RuntimeError, match="different tokens"):
        refuse_other_tokens(work, {"ours": ours, "usual": theirs})
    refuse_other_tokens(work, {"ours": ours, "usual": ours})
