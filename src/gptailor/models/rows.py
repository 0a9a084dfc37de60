"""Of a large vocabulary, a person's texts use a small part: train that, and leave the rest as it is.

GPT-2's embedding is a third of its weights, and a step would read and write all of it, with two moments,
though nearly all of its gradient is zero. Rows of tokens that no training text holds have no gradient ever;
what is left out with them is AdamW's decay, which would shrink what nobody trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from gptailor.types import IntArray

LARGEST_SHARE = 0.5  # of the vocabulary; above, nothing is gained


class UsedRows(nn.Module):
    """An embedding whose parameter holds only some rows; the others are looked up where they were.

    `weight` (U, H) has the name that the whole embedding's weight had.
    """

    place: Tensor

    def __init__(self, embedding: nn.Embedding, used: IntArray) -> None:
        super().__init__()
        whole = embedding.weight.detach()
        self.used = torch.from_numpy(used).to(whole.device)
        self.weight = nn.Parameter(whole[self.used])
        self.whole = [whole]  # in a list, so that it isn't moved, saved or counted with the module
        place = torch.full((len(whole),), -1, dtype=torch.int64, device=whole.device)
        place[self.used] = torch.arange(len(used), device=whole.device)
        self.register_buffer("place", place, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids of any shape to one more dimension, H."""
        places = self.place[ids]
        found = functional.embedding(places.clamp(min=0), self.weight)
        if self.training:
            return found  # all of them are trained rows, but for padding, which nobody reads
        return torch.where(places[..., None] >= 0, found, functional.embedding(ids, self.whole[0]))


@contextmanager
def used_rows_only(model: PreTrainedModel, used: IntArray | None) -> Iterator[None]:
    """While inside, the embedding's trained rows are the `used` ones; afterwards it is whole again.

    Nothing changes where that gains nothing, where the embedding isn't trained, where it is the output layer,
    too, or where it does more than look up, such as Gemma's, which scales what it finds.
    """
    embedding: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings()
    if (
        used is None
        or not only_looks_up(embedding)
        or not embedding.weight.requires_grad
        or (output is not None and output.weight is embedding.weight)
        or len(used) > LARGEST_SHARE * embedding.num_embeddings
    ):
        yield
        return
    parent, name = _place_of(model, embedding)
    rows = UsedRows(embedding, used).train(embedding.training)
    setattr(parent, name, rows)
    try:
        yield
    finally:
        with torch.no_grad():
            embedding.weight[rows.used] = rows.weight
        setattr(parent, name, embedding.train(rows.training))


def only_looks_up(embedding: nn.Module) -> bool:
    """Whether it is a table and nothing else: a subclass or a hook may compute something."""
    hooks = (embedding._forward_hooks, embedding._forward_pre_hooks)
    return type(embedding) is nn.Embedding and not any(hooks)


def _place_of(model: nn.Module, wanted: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds another, and under which name."""
    return next(
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if child is wanted
    )
