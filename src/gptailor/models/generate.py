"""How a language model goes on with texts: the same code for evaluation, prediction and the server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from transformers import PreTrainedModel

from gptailor.models.decode import Decoder, Generated, Request
from gptailor.models.names import context_length
from gptailor.models.sampling import Sampling

FREELY = Sampling(temperature=0.8, top_k=50)  # how texts go on, where nobody says otherwise


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    *,
    decode: Callable[[Sequence[int]], str],
    end: Collection[int],
    pad: int = 0,
    context: int | None = None,
    top_log_probabilities: int = 0,
) -> list[Generated]:
    """The answer to every prompt (token ids), in order. Each is what it would be alone, bit for bit.

    Args:
        model: A causal language model.
        prompts: Token ids of each.
        sampling: One for all, or one for each.
        decode: From token ids to text, special tokens left out.
        end: Ids of the tokens that end an answer.
        pad: A token id for places that nothing reads.
        context: Tokens of a prompt with its answer; None: as many as the model reads.
        top_log_probabilities: How many of the likeliest tokens of each step are told.

    Raises:
        InputError: a prompt is empty or leaves no room for an answer.
        NonFiniteError: the model's logits are not numbers.
    """
    decoder = Decoder(model, decode=decode, end=end, pad=pad, context=context)
    settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    places = {
        decoder.add(Request(tuple(prompt), own, top_log_probabilities)): place
        for place, (prompt, own) in enumerate(zip(prompts, settings, strict=True))
    }
    answers: dict[int, Generated] = {}
    while decoder.busy:
        for event in decoder.step():
            if event.result is not None:
                answers[places[event.handle]] = event.result
    return [answers[place] for place in range(len(prompts))]


def continue_text(
    model: PreTrainedModel,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    decode: Callable[[Sequence[int]], str],
    end: int,
    pad: int,
) -> str:
    """The text that follows a prompt (token ids). `decode` as in `generate`.

    Of a prompt that leaves too little of the context the end is read, at least half a context of it.
    """
    context = context_length(model.config)
    given = list(prompt)[-max(1, context - min(sampling.max_new_tokens, context // 2)) :]
    (answer,) = generate(model, [given], sampling, decode=decode, end={end}, pad=pad)
    return answer.text
