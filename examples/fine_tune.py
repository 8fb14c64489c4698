"""Fine-tune a causal language model on some natural tasks, and keep checkpoints to probe before, during and after.

    python fine_tune.py MODEL OUT [--tasks present-to-gerund,…] [--steps 300] [--every 100]

Half of the instructions of every task are put aside in OUT/held-out.jsonl, the tasks that are not tuned among them.
`checkpoint-0` is MODEL itself, which may be a folder, a GGUF file or a hub id.
"""

import argparse
from pathlib import Path

import polars as pl
import torch

import nucleate
from nucleate.model.networks import load_network, save_network

VERBS = "present-to-gerund,present-to-past-simple,present-to-past-perfect"

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("out", type=Path)
parser.add_argument("--tasks", default=VERBS)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--every", type=int, default=100)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--rate", type=float, default=5e-5)
asked = parser.parse_args()

prompts = nucleate.natural_dataset("natural-shared").frame().select("instruction", "input", "output", "task")
held_out = pl.col("instruction").rank("dense").over("task") % 2 == 0  # every other one, in alphabetical order
asked.out.mkdir(parents=True, exist_ok=True)
prompts.filter(held_out).write_ndjson(asked.out / "held-out.jsonl")
tuned = prompts.filter(~held_out, pl.col("task").is_in(asked.tasks.split(","))).rows(named=True)

model, tokenizer = load_network(asked.model, device="cpu", dtype="float32")
save_network(model, tokenizer, asked.out / "checkpoint-0")
optimiser = torch.optim.AdamW(model.parameters(), lr=asked.rate, weight_decay=0.01)
draws = torch.Generator().manual_seed(0)
padding = tokenizer.pad_token_id or 0
model.train()
for step in range(1, asked.steps + 1):
    rows = []
    for place in torch.randint(len(tuned), (asked.batch,), generator=draws).tolist():
        prompt = f"{tuned[place]['instruction']} {tuned[place]['input']}"
        asks, says = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {tuned[place]['output']}"))
        rows.append((says, [-100] * len(asks) + says[len(asks) :]))  # only the answer is learnt
    longest = max(len(says) for says, _ in rows)
    ids = torch.tensor([says + [padding] * (longest - len(says)) for says, _ in rows])
    labels = torch.tensor([learnt + [-100] * (longest - len(learnt)) for _, learnt in rows])
    mask = torch.tensor([[1] * len(says) + [0] * (longest - len(says)) for says, _ in rows])
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    if step % asked.every == 0:
        save_network(model, tokenizer, asked.out / f"checkpoint-{step}")
        print(f"step {step}: loss {loss.item():.3f}", flush=True)
