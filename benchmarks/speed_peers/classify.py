"""Classification by transformers' Trainer: full, frozen body, or LoRA by peft."""

from __future__ import annotations

import torch
from meter import Meter
from metered import metered, run
from rows import as_dataset, common_arguments, dropout_of, read_job, read_rows
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def main() -> None:
    """Trains as the job says and writes what the meter saw."""
    job = read_job()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], dtype=torch.float32, **dropout_of(job)
    )
    if job["approach"] == "frozen":
        for weight in model.base_model.parameters():
            weight.requires_grad = False
    if job["approach"] == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True, **job["lora"]))
    pad = {"pad_id": tokenizer.pad_token_id, "pad_all": job["pad_all"]}
    trainer = metered(Trainer)(
        model=model,
        args=TrainingArguments(**common_arguments(job)),
        train_dataset=as_dataset(read_rows(job["rows"]), **pad),
        eval_dataset=as_dataset(read_rows(job["validation"]), **pad),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    run(trainer, Meter(), validate=job["validate"], result=job["result"])


if __name__ == "__main__":
    main()
