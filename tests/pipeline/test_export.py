"""A run's model in other formats gives the run's answers, or nothing is left behind."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

import tiny
from gptailor.errors import GptailorError, MissingExtraError, ModelError, RunError
from gptailor.models import onnx_file, replay
from gptailor.models.approach import adapt_full, adapt_lora
from gptailor.models.bundle import read_bundle, write_bundle
from gptailor.models.gguf_words import PATTERNS, read_vocabulary
from gptailor.models.load import load_classifier, load_tokenizer, load_trainable_language_model
from gptailor.models.names import Base, resolve_base
from gptailor.models.predictor import Predictor, load_predictor
from gptailor.models.saved import save_model
from gptailor.pipeline.causal import save_causal
from gptailor.pipeline.export import export_run, what_others_leave_out, what_repeats
from gptailor.types import AnswerForm, Bundle

TEXTS = ("the cup final went to extra time", "the bank raised its rate again", "flu")
LABELS = ("sports", "business", "health")


def roughen(model: Any, seed: int = 0) -> None:
    """Other weights, biases and norms, wherever they may change: a swapped or forgotten tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)


def bundle_in(run: Path, base: Base, task: Any, probes: Any, **values: Any) -> Bundle:
    bundle = Bundle(
        path=run / "model",
        task=task,
        base=base.name,
        base_revision=base.revision,
        approach=values.pop("approach", "full"),
        label_names=values.pop("label_names", ()),
        max_tokens=32,
        too_long="cut",
        temperature=values.pop("temperature", 1.0),
        threshold=None,
        clean={},
        scores={},
        probes=probes,
    )
    write_bundle(bundle)
    return bundle


def make_text_run(run: Path, base_folder: Path, *, lora: bool = False, begins: bool = True) -> Path:
    """A run whose answer is text, as the pipeline leaves it, with weights that weren't trained."""
    base = resolve_base(str(base_folder))
    tokenizer: Any = load_tokenizer(base)
    model = load_trainable_language_model(base, tokenizer)
    adapted = adapt_full(model)
    if lora:
        adapted = adapt_lora(model, rank=2, alpha=4, dropout=0.0, targets=(), seed=0)
    roughen(adapted.trained)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = tokenizer.backend_tokenizer.encode(" ".join(TEXTS), add_special_tokens=False).ids
    run.mkdir()
    probe = [begin, *ids] if begins else ids
    probes, _ = save_causal(run, adapted, tokenizer, base=base, probe=probe, decode=tokenizer.decode)
    bundle_in(run, base, "language", probes, approach="lora" if lora else "full")
    return run


def make_classifier_run(run: Path, base_folder: Path) -> Path:
    base = resolve_base(str(base_folder))
    tokenizer = load_tokenizer(base)
    model = load_classifier(base, tokenizer, label_names=LABELS, seed=0)
    roughen(model)
    model.eval()
    run.mkdir()
    save_model(run / "model", model=model, tokenizer=tokenizer)
    settings: dict[str, Any] = {"label_names": LABELS, "temperature": 1.7}
    bundle_in(run, base, "classification", (), **settings)
    predictor = Predictor(run / "model")
    probes = []
    for text in TEXTS:
        encoded = predictor.encode(text)
        ids = [list(sequence) for sequence in encoded.sequences]
        probes.append({"text": text, "token_ids": ids, "logits": predictor.logits([encoded])[0].tolist()})
    bundle_in(run, base, "classification", probes, **settings)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bases: dict[str, Path]) -> Mapping[str, Path]:
    """A run of every kind."""
    folder = tmp_path_factory.mktemp("export")
    made = {
        family: make_text_run(folder / family, tiny_bases[family])
        for family in ("gpt2", "gpt_neo", "llama", "qwen2")
    }
    made["classifier"] = make_classifier_run(folder / "classifier", tiny_bases["gpt2"])
    return made


def written(folder: Path) -> Any:
    return json.loads((folder / "export.json").read_text(encoding="utf-8"))


# Folders of transformers and peft.


@pytest.mark.parametrize("to", ["hf", "merged"])
@pytest.mark.parametrize("kind", ["classifier", "llama"])
def test_a_folder_answers_as_the_run_does(
    to: str, kind: str, runs: Mapping[str, Path], tmp_path: Path
) -> None:
    result = export_run(runs[kind], to=to, out=tmp_path / "out")
    assert result["parity"] < 1e-5
    assert result == written(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert str(tmp_path / "out") in result["load"]
    assert ("note" in result) == (to == "merged")


def test_what_other_tools_leave_out_is_said(runs: Mapping[str, Path], tmp_path: Path) -> None:
    """Their pipelines know no temperature, so their probabilities are others."""
    bundle = read_bundle(runs["classifier"] / "model")
    warm = replace(bundle, temperature=2.5)
    assert "divides the logits by 2.5" in what_others_leave_out(warm)
    several = replace(warm, answer=AnswerForm("multiple", cutoff=0.6))
    assert "gives a label from 0.6 on" in what_others_leave_out(several)
    number = replace(bundle, answer=AnswerForm("score", mean=3.0, deviation=2.0))
    assert "3 + 2 times it" in what_others_leave_out(number)
    plain = replace(bundle, temperature=1.0, max_tokens=40)
    assert "reads the first 40 tokens of a text (`truncation=True`); other" in what_others_leave_out(plain)
    assert "in windows of 40 tokens" in what_others_leave_out(replace(plain, too_long="window"))
    assert what_repeats(replace(bundle, form={})) == ""
    assert "`no_repeat_ngram_size=3`" in what_repeats(replace(bundle, form={"no_repeat": 3}))
    told = export_run(runs["classifier"], to="hf", out=tmp_path / "hf")
    assert told.get("warning", "") == what_others_leave_out(bundle)


def test_an_empty_folder_that_is_there_is_filled(
    runs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one stands, or behind a link: neither can be renamed away."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_run(runs["classifier"].resolve(), to="hf", out=Path())
    assert (tmp_path / "here" / "export.json").is_file()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export_run(runs["classifier"].resolve(), to="hf", out=tmp_path / "link")
    assert (tmp_path / "real" / "model.safetensors").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_exports_that_lie_in_the_model_folder_are_not_copied(
    runs: Mapping[str, Path], tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(runs["classifier"] / "model", copied)
    before = {path.name for path in copied.iterdir()}
    for out in ("one", "two"):
        export_run(copied, to="hf", out=copied / out)
        assert {path.name for path in (copied / out).iterdir()} == {*before, "export.json"}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by an old name
def test_an_adapter_on_its_base_answers_as_the_run_does(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    run = make_text_run(tmp_path / "run", tiny_bases["gpt2"], lora=True)
    result = export_run(run, to="adapter", out=None)
    assert result["folder"] == str(run / "export" / "adapter")
    assert result["parity"] < 1e-4
    assert (run / "export" / "adapter" / "adapter_model.safetensors").is_file()
    assert AutoTokenizer.from_pretrained(run / "export" / "adapter").pad_token_id is not None
    assert "merged" in export_run(run, to="merged", out=None)["note"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    base = tiny.build_base(tmp_path / "base")
    run = make_text_run(tmp_path / "run", base, lora=True)
    tiny.build_base(base, seed=1)
    with pytest.raises(ModelError, match="has changed since the run"):
        export_run(run, to="adapter", out=None)


@pytest.mark.parametrize("begins", [True, False])
def test_the_tokenizer_adds_what_training_added(begins: bool, tmp_path: Path) -> None:
    """The base's own ends each text, which a classifier reads; a server's prompt would be over with it."""
    base = tiny.build_base(tmp_path / "base")
    path = base / "tokenizer.json"
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    backend = tokenizer.backend_tokenizer
    end = "<|endoftext|>"
    backend.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 0)])
    backend.save(str(path))
    run = make_text_run(tmp_path / "run", base, begins=begins)
    kept = (run / "model" / "tokenizer.json").read_bytes()
    result = export_run(run, to="hf", out=tmp_path / "out")
    assert "warning" not in result
    before = AutoTokenizer.from_pretrained(run / "model")("the bank")["input_ids"]
    after = AutoTokenizer.from_pretrained(tmp_path / "out")("the bank")["input_ids"]
    assert before[-1] == 0
    assert after == ([0] if begins else []) + before[:-1]
    assert (run / "model" / "tokenizer.json").read_bytes() == kept


# ONNX.


def need_onnx() -> Any:
    pytest.importorskip("onnx", reason="the extra onnx isn't installed")
    pytest.importorskip("onnxscript", reason="the extra onnx isn't installed")
    return pytest.importorskip("onnxruntime", reason="the extra onnx isn't installed")


def test_onnx_gives_the_predictors_probabilities(runs: Mapping[str, Path], tmp_path: Path) -> None:
    runtime = need_onnx()
    result = export_run(runs["classifier"], to="onnx", out=tmp_path / "out")
    assert result["parity"] < 1e-4
    assert result["parity_random"] <= result["parity"]
    assert result == written(tmp_path / "out")
    predictor = load_predictor(runs["classifier"])
    encoded = [predictor.encode(text) for text in TEXTS]
    sequences = [list(item.sequences[0]) for item in encoded]
    ids = np.full((len(sequences), 30), 7)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    last = np.array([len(sequence) - 1 for sequence in sequences])
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    logits, probabilities = session.run(["logits", "probabilities"], {"input_ids": ids, "last": last})
    np.testing.assert_allclose(logits, predictor.logits(encoded), atol=1e-5)
    np.testing.assert_allclose(probabilities, predictor.run(encoded), atol=1e-5)
    names = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert list(names.values()) == list(LABELS)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS[0])["input_ids"] == sequences[0]
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_onnx_of_a_language_model_reads_any_batch_and_length(
    family: str, runs: Mapping[str, Path], tmp_path: Path
) -> None:
    runtime = need_onnx()
    assert export_run(runs[family], to="onnx", out=tmp_path / "out")["parity"] < 1e-4
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    model = AutoModelForCausalLM.from_pretrained(runs[family] / "model")
    for batch, length in ((1, 1), (4, 9), (1, 64)):
        ids = torch.randint(0, 400, (batch, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected = model(ids).logits.numpy()
        np.testing.assert_allclose(session.run(None, {"input_ids": ids.numpy()})[0], expected, atol=1e-4)


def test_a_graph_that_answers_differently_is_not_left(
    runs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the last norm is 1 % larger in the file, as a broken exporter might have it."""
    need_onnx()
    export = onnx_file._export

    def break_it(graph: Any, path: Path, *, where: str) -> int:
        weight = graph.model.transformer.ln_f.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(1.01)
        opset = export(graph, path, where=where)
        with torch.no_grad():
            weight.copy_(kept)
        return opset

    monkeypatch.setattr(onnx_file, "_export", break_it)
    with pytest.raises(ModelError, match="answers differently"):
        export_run(runs["gpt2"], to="onnx", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# GGUF.


def need_gguf() -> Any:
    return pytest.importorskip("gguf", reason="the extra gguf isn't installed")


def fields_of(folder: Path) -> dict[str, Any]:
    reader = need_gguf().GGUFReader(folder / "model.gguf")
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_gguf_reads_back_as_the_same_model(family: str, runs: Mapping[str, Path], tmp_path: Path) -> None:
    need_gguf()
    result = export_run(runs[family], to="gguf", out=tmp_path / "out")
    assert result["parity"] < 1e-5
    assert result == written(tmp_path / "out")
    fields = fields_of(tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(runs[family] / "model")
    assert fields["general.architecture"] == family
    assert fields["general.name"] == family
    assert fields[f"{family}.context_length"] == 64
    assert fields["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    kinds = fields["tokenizer.ggml.token_type"]
    assert {i for i, kind in enumerate(kinds) if kind == 3} == set(tokenizer.all_special_ids)
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_eos_token"] is False
    first = json.loads((runs[family] / "model" / "gptailor.json").read_text())["probes"][0]["token_ids"][0]
    assert fields["tokenizer.ggml.bos_token_id"] == first


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_gguf_rounds_matrices_and_nothing_else(
    precision: str, runs: Mapping[str, Path], tmp_path: Path
) -> None:
    gguf = need_gguf()
    export_run(runs["gpt2"], to="gguf", out=tmp_path / "out", precision=precision)
    saved = AutoModelForCausalLM.from_pretrained(runs["gpt2"] / "model").state_dict()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    for ours, theirs in (
        ("h.1.mlp.c_fc.weight", "blk.1.ffn_up.weight"),
        ("h.0.ln_1.bias", "blk.0.attn_norm.bias"),
        ("wpe.weight", "position_embd.weight"),
    ):
        tensor = tensors[theirs]
        found = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        value = saved[f"transformer.{ours}"]
        if ours.startswith("h.1"):
            value = value.T.to(dtype).float()
        assert torch.equal(found, value)


def test_gguf_says_no_begin_token_where_training_had_none(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    """As chats have it, whose template writes what they begin with; the template travels along."""
    need_gguf()
    run = make_text_run(tmp_path / "run", tiny_bases["qwen2"], begins=False)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (run / "model" / "chat_template.jinja").write_text(template)
    export_run(run, to="gguf", out=None)
    fields = fields_of(run / "export" / "gguf")
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.ggml.bos_token_id" not in fields
    assert fields["tokenizer.chat_template"] == template


@pytest.mark.parametrize(
    ("rope", "factors"),
    [
        ({"rope_type": "linear", "factor": 4.0}, [4, 4, 4]),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            [1, None, 8],
        ),
    ],
)
def test_gguf_tells_how_far_rotary_positions_are_stretched(
    rope: dict[str, Any], factors: list[float | None], tmp_path: Path
) -> None:
    gguf = need_gguf()
    base = tiny.build_base(tmp_path / "base", "llama")
    size = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "head_dim": 6}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=400, **size, **heads, rope_parameters={"rope_theta": 1e4, **rope})
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    run = make_text_run(tmp_path / "run", base)
    export_run(run, to="gguf", out=None)
    tensors = {t.name: t for t in gguf.GGUFReader(run / "export" / "gguf" / "model.gguf").tensors}
    found = tensors["rope_freqs.weight"].data
    for value, expected in zip(found, factors, strict=True):
        assert expected is None or value == pytest.approx(expected)
    assert sorted(found) == list(found)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_llama_cpp_gives_the_same_tokens_and_answers(
    family: str, runs: Mapping[str, Path], tmp_path: Path
) -> None:
    need_gguf()
    pytest.importorskip("llama_cpp", reason="llama-cpp-python isn't installed (it has to be compiled)")
    found = export_run(runs[family], to="gguf", out=tmp_path / "out")["llama_cpp"]
    assert found["difference"] < 0.01  # GPT-2's GELU is a table of half precision there


def test_without_llama_cpp_the_reason_is_told(
    runs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_gguf()
    forbid(monkeypatch, "llama_cpp")
    result = export_run(runs["gpt2"], to="gguf", out=tmp_path / "out")
    assert result["llama_cpp"] == {"skipped": "llama-cpp-python isn't installed"}


def tokenizer_with(pre: Any, **model: Any) -> Any:
    tokenizer = tiny.build_tokenizer("gpt2")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["pre_tokenizer"] = pre
    state["model"] |= model
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|endoftext|>", pad_token="!"
    )


def bytes_step(*, use_regex: bool, add_prefix_space: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def steps(first: dict[str, Any], *, use_regex: bool) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [first, bytes_step(use_regex=use_regex)]}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


LLAMA, QWEN = PATTERNS
CUTS: dict[str, tuple[Any, dict[str, Any], str | None]] = {
    "gpt-2": (bytes_step(use_regex=True), {}, "gpt-2"),
    "smollm": (steps({"type": "Digits", "individual_digits": True}, use_regex=True), {}, "smollm"),
    "llama 3": (steps(split(LLAMA), use_regex=False), {"ignore_merges": True}, "llama-bpe"),
    "qwen": (steps(split(QWEN), use_regex=False), {}, "qwen2"),
    "llama 3 that merges": (steps(split(LLAMA), use_regex=False), {}, None),
    "an unknown pattern": (steps(split(r"\w+"), use_regex=False), {}, None),
    "a blank before": (bytes_step(use_regex=True, add_prefix_space=True), {}, None),
    "no bytes": ({"type": "Whitespace"}, {}, None),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_tokenizer_is_named_or_refused(name: str) -> None:
    pre, model, expected = CUTS[name]
    tokenizer = tokenizer_with(pre, **model)
    if expected is None:
        with pytest.raises(ModelError, match="can't be written as GGUF"):
            read_vocabulary(tokenizer, size=400, begin=0, where="run")
        return
    found = read_vocabulary(tokenizer, size=410, begin=0, where="run")
    assert found.cut == expected
    assert len(set(found.tokens)) == 410, "llama.cpp wants every token once, the rows without one too"
    assert found.kinds[-1] == 5


# What goes wrong.


def forbid(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Importing it fails, as where it isn't installed."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == library:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize(("to", "library"), [("onnx", "onnxruntime"), ("gguf", "gguf")])
def test_a_missing_extra_says_what_to_install(
    to: str, library: str, runs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if to == "onnx":
        need_onnx()
    forbid(monkeypatch, library)
    with pytest.raises(MissingExtraError, match=rf"pip install 'gptailor\[{to}\]'"):
        export_run(runs["gpt2"], to=to, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


MISTAKES: dict[str, tuple[str, str, str | None, type[GptailorError], str]] = {
    "unknown format": ("gpt2", "onx", None, RunError, "Did you mean 'onnx'"),
    "classifier as gguf": ("classifier", "gguf", None, RunError, "no place for its head"),
    "gpt-neo as gguf": ("gpt_neo", "gguf", None, ModelError, "'gpt_neo'"),
    "no adapter": ("gpt2", "adapter", None, RunError, "its approach was full"),
    "unknown precision": ("gpt2", "gguf", "fp61", RunError, "Did you mean 'fp16'"),
    "precision elsewhere": ("gpt2", "hf", "fp16", RunError, "only gguf can round"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_and_leaves_nothing(name: str, runs: Mapping[str, Path], tmp_path: Path) -> None:
    kind, to, precision, error, words = MISTAKES[name]
    if to == "gguf":
        need_gguf()
    with pytest.raises(error, match=words):
        export_run(runs[kind], to=to, out=tmp_path / "out", precision=precision)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_and_an_unfinished_run_are_refused(runs: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        export_run(runs["gpt2"], to="hf", out=tmp_path)
    with pytest.raises(RunError, match="is a file"):
        export_run(runs["gpt2"], to="hf", out=tmp_path / "kept.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ModelError, match="no finished model"):
        export_run(tmp_path / "run", to="hf", out=None)


@pytest.mark.parametrize("difference", [0.002, float("nan")])
def test_a_difference_is_refused_and_so_is_no_number(difference: float) -> None:
    assert replay.refuse_difference(0.0005, where=Path("run")) == 0.0005
    with pytest.raises(ModelError, match="answers differently"):
        replay.refuse_difference(difference, where=Path("run"))


def test_a_begin_token_that_a_template_writes_is_not_added_again(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    """A chat whose template begins with the base's begin token; the base's tokenizer adds none itself."""
    run = make_text_run(tmp_path / "run", tiny_bases["qwen2"])
    path = run / "model" / "gptailor.json"
    bundle = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**bundle, "form": {"prefix": []}}), encoding="utf-8")
    export_run(run, to="hf", out=tmp_path / "out")
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("the bank")["input_ids"]
    assert ids[0] != bundle["probes"][0]["token_ids"][0]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_opens_as_its_last_line_says(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    """Also where the tokenizer has a pad token that the base had not: a batch has pads."""
    run = make_text_run(tmp_path / "run", tiny_bases["gpt2"], lora=True)
    result = export_run(run, to="adapter", out=tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_bases["gpt2"])
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) > model.config.vocab_size
    names: dict[str, Any] = {"peft": peft, "model": model}
    exec(result["load"].replace("peft.PeftModel", "opened = peft.PeftModel"), names)
    batch = tokenizer(["the bank raised its rate", "flu"], padding=True, return_tensors="pt")
    assert tokenizer.pad_token_id in batch["input_ids"]
    assert torch.isfinite(names["opened"](**batch).logits).all()
