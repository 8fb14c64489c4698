"""Fine-tune a causal language model with Hugging Face's Trainer, and see meanwhile which tasks it holds apart.

    python watch_a_fine_tuning.py MODEL OUT [--steps 200] [--every 100]

It learns six natural tasks that share their inputs, from half of the instructions of each; the looks are at the others.
The Trainer needs the package accelerate.
"""

import argparse
from pathlib import Path

import polars as pl
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import nucleate
from nucleate.model.networks import load_network

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("out", type=Path)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--every", type=int, default=100)
asked = parser.parse_args()

prompts = nucleate.natural_dataset("natural-shared").frame().select("instruction", "input", "output", "task")
held_out = pl.col("instruction").rank("dense").over("task") % 2 == 0  # every other one, in alphabetical order
model, tokenizer = load_network(asked.model)


def taught(one: dict[str, str]) -> dict[str, list[int]]:
    """A prompt with its answer, of which the answer alone is learnt."""
    asks = tokenizer(f"{one['instruction']} {one['input']}")["input_ids"]
    says = tokenizer(f"{one['instruction']} {one['input']} {one['output']}")["input_ids"]
    return {"input_ids": says, "attention_mask": [1] * len(says), "labels": [-100] * len(asks) + says[len(asks) :]}


watch = nucleate.ProbeCallback(prompts.filter(held_out), every=asked.every)
trainer = Trainer(
    model,
    TrainingArguments(
        str(asked.out), max_steps=asked.steps, learning_rate=5e-5, save_strategy="no", report_to=[], use_cpu=True
    ),
    train_dataset=[taught(one) for one in prompts.filter(~held_out).rows(named=True)],
    data_collator=DataCollatorForSeq2Seq(tokenizer),
    processing_class=tokenizer,
    callbacks=[watch],
)
trainer.train()
print(watch.result)
