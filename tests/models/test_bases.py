"""What may be a base and what may not: every refusal says why and what to do."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BloomConfig,
    GPTJConfig,
    LlamaConfig,
    OpenAIGPTConfig,
    OPTConfig,
    OPTForSequenceClassification,
)

import gptailor
import tiny
from gptailor.errors import Interrupted, ModelError, NonFiniteError, RunError
from gptailor.models import saved
from gptailor.models.dropout import draws_from_the_process
from gptailor.models.forward import (
    compute_features,
    keeps_documents_apart,
    keeps_keys_and_values,
    refuse_looking_ahead,
)
from gptailor.models.load import (
    load_classifier,
    load_config,
    load_language_model,
    load_tokenizer,
    load_trainable_language_model,
)
from gptailor.models.names import read_tokenizer_file, resolve_base
from gptailor.models.predictor import narrow
from gptailor.pipeline.causal import adapt_causal
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.place import Listener
from gptailor.recipe import FullApproach, build_recipe

LABELS = ["business", "health", "sports"]
each_family = pytest.mark.parametrize("family", tiny.FAMILIES)


def open_base(name: str) -> Any:
    base = resolve_base(name)
    tokenizer = load_tokenizer(base)
    load_config(base)
    return load_classifier(base, tokenizer, label_names=LABELS, seed=0)


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """The same weights; a row that was added for the pad token isn't looked at."""
    others = dict(other.named_parameters())
    for name, weight in one.named_parameters():
        rows = min(len(weight), len(others[name]))
        assert torch.equal(weight[:rows], others[name][:rows]), name


def rewrite(**changes: Any) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        path = base / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def replace(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda base: (base / name).write_bytes(content) and None


def pickle_only(base: Path) -> None:
    (base / "model.safetensors").unlink()
    torch.save({"wte": torch.zeros(2)}, base / "pytorch_model.bin")


def half_the_weights(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_shard_missing(base: Path) -> None:
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="20KB")
    (base / "model.safetensors").unlink()
    shards = sorted(base.glob("*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()


def change_weight(base: Path, name: str, value: float) -> None:
    weights = load_file(base / "model.safetensors")
    weights[name].fill_(value)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "no safetensors weights"),
    "pickle only": (pickle_only, "no safetensors weights .pickled weights can run code"),
    "half the weights": (half_the_weights, "weights can't be loaded"),
    "empty weights": (replace("model.safetensors", b""), "weights can't be loaded"),
    "a shard missing": (one_shard_missing, "weights can't be loaded"),
    "weights that are no numbers": (
        lambda base: change_weight(base, "transformer.h.0.mlp.c_fc.weight", float("nan")),
        "NaN or infinite",
    ),
    "fewer layers than said": (rewrite(n_layer=3), r"h\.2\..* is missing"),
    "another width than said": (rewrite(n_embd=32), r"\(48,\) in the file and \(96,\) by config\.json"),
    "another vocabulary": (rewrite(vocab_size=10), r"wte\.weight is \(\d+, 16\) in the file and \(10, 16\)"),
    "heads that don't divide": (rewrite(n_head=3), "weights can't be loaded"),
    "encoder-decoder": (rewrite(model_type="t5", is_encoder_decoder=True), "'t5' is an encoder-decoder"),
    "unsaid encoder-decoder": (rewrite(model_type="t5"), "'t5' is an encoder-decoder"),
    "encoder": (rewrite(model_type="bert"), "'bert' is not a causal language model"),
    "images": (rewrite(model_type="vit"), "'vit' is not a causal language model"),
    "text and images": (rewrite(model_type="gemma3"), "'gemma3' reads more than text"),
    "no classifier": (rewrite(model_type="codegen"), "no classifier for 'codegen'"),
    "unknown architecture": (rewrite(model_type="martian"), "martian"),
    "no architecture": (replace("config.json", b"{}"), "model_type"),
    "config isn't JSON": (replace("config.json", b"{"), "config.json: can't be read"),
    "config isn't text": (replace("config.json", b"\xff\xfe"), "config.json: can't be read"),
    "config is a list": (replace("config.json", b"[]"), "config.json: is not an object"),
    "no tokenizer": (lambda base: (base / "tokenizer.json").unlink(), "tokenizer can't be loaded"),
    "another tokenizer format": (replace("tokenizer.json", b"{}"), "tokenizer can't be loaded"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_base_that_cannot_be_one_is_refused_with_the_reason(
    fault: str, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bases["gpt2"], base)
    spoil, reason = BROKEN[fault]
    spoil(base)
    with pytest.raises(ModelError, match=reason) as caught:
        open_base(str(base))
    assert caught.value.where
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./nowhere", "no such folder"),
        ("~/no/where", "no such folder"),
        ("no/where/at-all", "no such folder"),
        ("", "no name"),
        (" ", "no name"),
        ("a" * 300, "can't be a folder"),
        ("~nobody-of-this-name/base", "can't be a folder"),
        ("my base", "can't be had from the Hugging Face hub"),
        ("a\0b", "can't be had from the Hugging Face hub"),
        ("owner/..", "can't be had from the Hugging Face hub"),
        ("startre", "Did you mean 'starter'"),
        (".", "neither a model folder"),
    ],
)
def test_a_name_that_is_no_base_is_refused_with_the_reason(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=reason) as caught:
        resolve_base(name)
    assert caught.value.fix


def test_code_in_a_base_never_runs(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bases["gpt2"], base)
    classes = ("Config", "ModelForSequenceClassification", "ModelForCausalLM", "Tokenizer")
    rewrite(auto_map={f"Auto{name}": f"code.{name}" for name in classes})(base)
    (base / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    open_base(str(base))  # a known architecture: ours is used
    rewrite(model_type="martian")(base)
    with pytest.raises(ModelError, match="config\\.json can't be used"):
        open_base(str(base))
    assert not (tmp_path / "ran").exists()


def test_weights_in_shards_are_a_base(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    whole, base = open_base(str(tiny_bases["gpt2"])), tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_bases["gpt2"]).save_pretrained(base, max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bases["gpt2"] / name, base)
    assert len(list(base.glob("*.safetensors"))) > 1
    assert_equal(whole, open_base(str(base)))


@each_family
def test_another_tools_classifier_is_a_base(family: str, tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    """Its head has other labels and goes; its body stays."""
    base = tmp_path / "base"
    shutil.copytree(tiny_bases[family], base)
    other = AutoModelForSequenceClassification.from_pretrained(base, num_labels=5)
    other.save_pretrained(base)
    model = open_base(str(base))
    assert model.score.weight.shape[0] == 3
    assert_equal(other.base_model, model.base_model)
    if other.config.tie_word_embeddings:
        load_language_model(resolve_base(str(base)))
    else:
        with pytest.raises(ModelError, match="has no language-model head"):  # its words would be random
            load_language_model(resolve_base(str(base)))


def test_features_that_overflow_are_said_plainly(
    tiny_bases: dict[str, Path], news_csv: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bases["gpt2"], base)
    change_weight(base, "transformer.ln_f.weight", 3e38)
    settings = {"base": str(base), "approach": "frozen", "out": str(tmp_path / "run")}
    with pytest.raises(NonFiniteError, match="are not numbers"):
        gptailor.fit(news_csv, settings=settings)


def test_a_run_does_not_go_on_with_other_weights_under_the_same_name(
    tiny_bases: dict[str, Path], news_csv: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bases["gpt2"], base)
    settings = {"base": str(base), "approach": "lora", "train": {"length": "6 steps"}}
    settings |= {"evaluate": {"baselines": "none", "resamples": 100}, "out": str(tmp_path / "run")}

    def interrupt(line: Any) -> None:
        if line["kind"] == "step":
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        gptailor.fit(news_csv, settings=settings, listener=Listener(show=interrupt))
    tiny.build_base(base, seed=1)
    with pytest.raises(RunError, match=r"base_revision was \w+ when this run was begun"):
        gptailor.fit(news_csv, settings=settings)
    shutil.copytree(tiny_bases["gpt2"], base, dirs_exist_ok=True)
    assert gptailor.fit(news_csv, settings=settings).report["approach"] == "lora"


def test_after_a_wrong_base_the_right_one_may_use_the_same_folder(
    tiny_bases: dict[str, Path], news_csv: Path, tmp_path: Path
) -> None:
    settings = {"approach": "frozen", "evaluate": {"baselines": "none", "resamples": 100}}
    settings["out"] = str(tmp_path / "run")
    with pytest.raises(ModelError):
        gptailor.fit(news_csv, settings={**settings, "base": str(tmp_path / "nowhere")})
    run = gptailor.fit(news_csv, settings={**settings, "base": str(tiny_bases["gpt2"])})
    assert run.report["base"] == str(tiny_bases["gpt2"])
    with pytest.raises(RunError, match="other settings"):
        gptailor.fit(news_csv, settings={**settings, "base": str(tiny_bases["llama"])})


# Other architectures.


def small(**more: Any) -> dict[str, Any]:
    return {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0, **more}


@pytest.mark.parametrize(
    "config",
    [
        GPTJConfig(**small(n_positions=64, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)),
        BloomConfig(**small(hidden_size=16, n_layer=1, n_head=2)),
        OpenAIGPTConfig(vocab_size=400, n_positions=64, n_embd=16, n_layer=1, n_head=2),
    ],
    ids=lambda config: str(config.model_type),
)
def test_an_architecture_without_fused_attention_is_a_base(config: Any, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny.build_tokenizer("gpt2").save_pretrained(tmp_path)
    assert open_base(str(tmp_path)).config.num_labels == 3


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama", "qwen2"])
def test_documents_of_one_row_are_kept_apart(family: str) -> None:
    assert keeps_documents_apart(AutoModelForCausalLM.from_config(tiny.build_config(family, 400)))


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(**small(hidden_size=16, n_layer=2, n_head=2)),
        OpenAIGPTConfig(vocab_size=400, n_positions=64, n_embd=16, n_layer=2, n_head=2),
    ],
    ids=lambda config: str(config.model_type),
)
def test_some_families_let_documents_of_one_row_see_each_other(config: Any) -> None:
    """Then answers lie one to a row, and documents can't be learned."""
    torch.manual_seed(0)
    assert not keeps_documents_apart(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_can_write_keeps_keys_and_values(family: str) -> None:
    assert keeps_keys_and_values(AutoModelForCausalLM.from_config(tiny.build_config(family, 400)))


def test_a_base_without_keys_and_values_is_refused_before_it_is_trained(
    tmp_path: Path, news_csv: Path
) -> None:
    """It would end in a traceback when its first answer is written, after all training."""
    config = OpenAIGPTConfig(vocab_size=400, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny.build_tokenizer("gpt2").save_pretrained(tmp_path)
    recipe = build_recipe({"data": {"train": str(news_csv)}, "base": str(tmp_path), "task": "completion"})
    base = resolve_base(str(tmp_path))
    with pytest.raises(ModelError, match="keeps no keys and values"):
        adapt_causal(recipe, base, load_tokenizer(base), FullApproach(), device="cpu")
    values: dict[str, Any] = {"data": {"train": str(news_csv)}, "base": str(tmp_path)}
    values |= {"approach": {"kind": "frozen", "strengths": [1]}, "evaluate": {"resamples": 100}}
    report = fit_recipe(build_recipe({**values, "out": str(tmp_path / "run")})).report
    assert "can't be asked by prompts" in report["baselines"]["zero_shot"]["skipped"]


def test_a_tokenizer_of_two_files_is_read(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    """GPT-Neo's larger ones have vocab.json and merges.txt: what `fit` takes, `check` takes."""
    folder = Path(shutil.copytree(tiny_bases["gpt2"], tmp_path / "base"))
    expected = read_tokenizer_file(resolve_base(str(folder)))[0].encode("the cup final").ids
    backend = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(backend["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in backend["merges"]))
    (folder / "tokenizer.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))
    assert read_tokenizer_file(resolve_base(str(folder)))[0].encode("the cup final").ids == expected


def test_dropout_that_is_no_layer_is_known() -> None:
    """BLOOM calls a function, attention a fused operation: both draw from the process's one stream."""
    for config, alone in (
        (tiny.build_config("gpt_neo", 400), False),
        (tiny.build_config("llama", 400), False),
        (LlamaConfig(**tiny.build_config("llama", 400).to_dict() | {"attention_dropout": 0.1}), True),
        (BloomConfig(**small(hidden_size=16, n_layer=1, n_head=2, hidden_dropout=0.1)), True),
    ):
        if config.model_type == "gpt_neo":
            config.resid_dropout = config.embed_dropout = 0.1
        model = AutoModelForCausalLM.from_config(config)
        assert draws_from_the_process(model, config.to_dict()) == alone, config.model_type


def test_a_model_that_looks_ahead_is_refused(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding on the right without a mask is exact for a causal model only."""
    model = open_base(str(tiny_bases["llama"]))
    refuse_looking_ahead(model, "llama")

    def forward(input_ids: Tensor, **_: Any) -> Any:
        hidden = model.get_input_embeddings()(input_ids)
        return SimpleNamespace(last_hidden_state=hidden + hidden.mean(dim=1, keepdim=True))

    monkeypatch.setattr(model.base_model, "forward", forward)
    with pytest.raises(ModelError, match="sees the tokens after it"):
        refuse_looking_ahead(model, "llama")


def test_a_last_hidden_state_narrower_than_the_rest_gives_features(tmp_path: Path) -> None:
    """OPT of 350 million parameters: 512 of 1,024."""
    config = OPTConfig(
        vocab_size=64, hidden_size=32, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, do_layer_norm_before=False,
    )  # fmt: skip
    model = OPTForSequenceClassification(config)
    assert compute_features(model, [[5, 6], [7]], pad_id=1).shape == (2, 16)


def test_rotary_frequencies_are_never_narrowed(tiny_bases: dict[str, Path]) -> None:
    """In bf16 position 2,047 is off by most of a radian."""
    base = resolve_base(str(tiny_bases["llama"]))
    model: Any = load_trainable_language_model(base, load_tokenizer(base))
    narrow(model, "bf16")
    kept = [buffer.dtype for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    assert kept
    assert set(kept) == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_base_that_cannot_be_loaded_once_more_has_words_all_the_same(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError, match="no memory is left"):
        load_language_model(resolve_base(str(tiny_bases["gpt2"])))


def test_costs_that_are_no_numbers_are_no_proof(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved, "token_nats", lambda *_: [1.0, math.nan])
    with pytest.raises(ModelError, match="nan"):
        saved.replay_nats(tiny_bases["gpt2"], [{"token_ids": [1, 2, 3], "nats": [1.0, 1.0]}])
