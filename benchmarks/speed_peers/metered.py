"""A Trainer with a meter on it: transformers' own or TRL's, otherwise as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from meter import Meter
from transformers import Trainer, TrainerCallback


class StepWatch(TrainerCallback):
    """Tells the meter when training begins, a step ends, and training ends."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.tokens, self.loss = meter, 0, torch.zeros(())

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.meter.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.step(tokens=self.tokens, loss=float(self.loss))
        self.tokens, self.loss = 0, torch.zeros(())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.meter.end()


def metered(kind: type[Trainer]) -> type[Any]:
    """The trainer with its training step overridden to count what it is given."""

    class Metered(kind):  # type: ignore[misc, valid-type]
        watch: StepWatch

        def training_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> torch.Tensor:
            mask = inputs.get("attention_mask")
            # Without a mask the rows lie end to end and there is no padding.
            tokens = inputs["input_ids"].numel() if mask is None else int(mask.sum())
            loss = super().training_step(model, inputs, *arguments, **named)
            self.watch.tokens += tokens
            self.watch.loss = self.watch.loss + loss.detach().cpu()
            return loss

    return Metered


def run(trainer: Any, meter: Meter, *, validate: bool, result: str) -> None:
    """Trains, then takes the loss on the validation rows, all of them in one batch."""
    trainer.watch = StepWatch(meter)
    trainer.add_callback(trainer.watch)
    trainer.train()
    if validate:
        meter.validation_loss = trainer.evaluate()["eval_loss"]
    meter.write(Path(result))
