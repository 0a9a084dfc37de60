"""Prompt and completion by TRL's SFTTrainer: full, or LoRA by peft."""

from __future__ import annotations

import torch
from meter import Meter
from metered import metered, run
from rows import as_dataset, common_arguments, dropout_of, read_job, read_rows
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Trains as the job says and writes what the meter saw."""
    job = read_job()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, **dropout_of(job))
    lora = None
    if job["approach"] == "lora":
        from peft import LoraConfig

        lora = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **job["lora"])
    arguments = {**common_arguments(job), "completion_only_loss": True, "eval_packing": False}
    trainer = metered(SFTTrainer)(
        model=model,
        args=SFTConfig(**arguments),
        train_dataset=as_dataset(read_rows(job["rows"]), pad_id=tokenizer.pad_token_id),
        eval_dataset=as_dataset(read_rows(job["validation"]), pad_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
        peft_config=lora,
    )
    run(trainer, Meter(), validate=job["validate"], result=job["result"])


if __name__ == "__main__":
    main()
