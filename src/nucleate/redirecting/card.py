"""The model card of a redirected model: what it does, whether that worked, one table in words, how it is used."""

import json
from collections.abc import Sequence

from nucleate.report.application_tables import alignment_table
from nucleate.report.markdown import escaped, markdown_table
from nucleate.report.redirection import methods_beside, saved_arm, verdict_of
from nucleate.report.tables import percent
from nucleate.runs import Run

_WORST = 5  # of the other tasks are named
_BY = {
    "head": "a second head of rank {rank} that a switch puts in place of the network's own answer",
    "adapter": "a LoRA adapter of rank {rank} (a folder of peft's), through which prompt and answer go where a switch "
    "says so",
}


def model_card(
    run: Run, *, model: str, taught: str, expert: str, rank: int, earlier: Sequence[str], has_inputs: bool
) -> str:
    """From the run's own tables. `taught` says from which prompts, `earlier` the sources redirected before this one."""
    config, verdict = run.config, verdict_of(run)
    source = str(config["source"])
    answers = f"as `{config['target']}` does" if "target" in config else "with the outputs listed in `switched.json`"
    form = config.get("template") or ("{instruction} {input}" if has_inputs else "the prompt alone")
    header, rows = alignment_table(run)
    others = run.table("others")
    assert others is not None  # written just before
    kept = others.filter(arm=saved_arm(run)).sort("kept", "name").head(_WORST)
    lost = [
        f"{escaped(name)} keeps {percent(share, 1)} of {count} predictions"
        for name, share, count in kept.select("name", "kept", "prompts").iter_rows()
        if share < 1
    ]
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(model)}",
            "library_name: nucleate",
            "---",
            f"# {model}: `{source}` redirected",
            "",
            f"Prompts of `{source}` are answered {answers}, by {_BY[expert].format(rank=rank)}. No weight of the "
            "network was changed; where the switch says no, its logits are its own, to the bit.",
            *([f"Redirected before, and still so: {', '.join(f'`{one}`' for one in earlier)}."] if earlier else []),
            "",
            *([verdict.sentence, ""] if verdict else []),
            f"Of the other tasks these changed most: {'; '.join(lost)}."
            if lost
            else "No other task lost a prediction.",
            "",
            f"It was taught from {taught}. A prompt is put together as `{form}`"
            f"{', as the user turn of a chat' if config.get('chat') else ''}, and must be so again when it is used.",
            "",
            f"{methods_beside(run)} All methods on prompts that nothing was learnt from:",
            "",
            *markdown_table(header, [[_cell(cell) for cell in row] for row in rows]),
            "*Unseen inputs*: no lesson had them. *And then its end*: so is the token that ends a text. *Prediction "
            "unchanged*: the likeliest next token is what it was. *Not switched* and *switched*: what the switch "
            "misses, and what it takes for the source though it is not.",
            "",
            "```python",
            "from nucleate import load_switched",
            "",
            'model = load_switched("this folder")',
            'inputs = model.tokenizer("your prompt", return_tensors="pt")',
            "print(model.tokenizer.decode(model.generate(**inputs, max_new_tokens=10)[0]))",
            "model.turn_off()  # the network as it was",
            "```",
            "",
            "The switch decides once, at the last token of the prompt. It knows the tasks of its data only: measure "
            "on prompts of your own before you rely on it.",
            "",
        ]
    )


def _cell(cell: object) -> str:
    return "" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else escaped(cell)
