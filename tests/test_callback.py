"""A Trainer that is looked at while it trains: the looks are probes of its checkpoints, and change nothing.

The oracle of a look is `probe` of the checkpoint that the Trainer has saved at the same step.
"""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import polars as pl
import pytest
import torch
import wandb
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

import nucleate
from nucleate.cli import main
from nucleate.model.networks import gpt2, save_network, word_tokenizer
from nucleate.probing import live
from nucleate.probing.callback import ProbeCallback
from nucleate.probing.probe import probe_into
from nucleate.probing.settings import ProbeSettings
from nucleate.refusal import Refused
from nucleate.report.pack import Chunks
from nucleate.report.scenes import scenes_of
from nucleate.runs import load_run

TASKS, INSTRUCTIONS, INPUTS = 3, 8, 3
QUICK = {"iterations": 250, "repeats": 2, "initialisations": 2}
STEPS, EVERY = 8, 3


def rows() -> list[dict[str, str]]:
    """Each task answers an input in its own way; an instruction is three words that begin as the task's do."""
    rng = np.random.default_rng(0)
    found = []
    for task in range(TASKS):
        for _ in range(INSTRUCTIONS):
            instruction = " ".join(f"{'abc'[task]}{number}" for number in rng.choice(12, 3, replace=False))
            for number in range(INPUTS):
                found.append(
                    {"instruction": instruction, "input": f"x{number}", "output": f"y{(number + task) % INPUTS}"}
                    | {"task": f"task {task}"}
                )
    return found


def tokenizer():
    words = [*(f"{letter}{number}" for letter in "abc" for number in range(12)), "Answer:"]
    return word_tokenizer([*words, *(f"{letter}{number}" for letter in "xy" for number in range(INPUTS))])


def network():
    size = {"width": 16, "feed_forward": 32, "layers": 2, "heads": 2, "positions": 12}
    return gpt2(vocabulary=len(tokenizer()), **size, dropout=0.2, pad=0, seed=5)


class Texts(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(rows())

    def __getitem__(self, place: int) -> dict[str, list[int]]:
        one = rows()[place]
        ids = tokenizer()(f"{one['instruction']} {one['input']} {one['output']}")["input_ids"]
        return {"input_ids": ids, "labels": ids}


def trainer(out: Path, *callbacks: TrainerCallback, model=None, **settings) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(out),
        **{"max_steps": STEPS, "save_steps": EVERY, "learning_rate": 3e-3, "seed": 3, "report_to": [],
           "logging_strategy": "no", **settings},
        per_device_train_batch_size=9,
        use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    model = network() if model is None else model
    return Trainer(
        model,
        arguments,
        train_dataset=Texts(),
        eval_dataset=Texts(),
        processing_class=tokenizer(),
        callbacks=[*callbacks],
    )


def probed(out: Path) -> Path:
    """Where the looks at a training into a folder are."""
    return out.with_name(f"{out.name}-probe")


class StopAt(TrainerCallback):
    """Ends a training at a step: as a crash, or as an early stop."""

    def __init__(self, step: int, *, crash: bool) -> None:
        self.step, self.crash = step, crash

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            if self.crash:
                raise MemoryError("the machine is gone")
            control.should_training_stop = True


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> tuple[Path, Trainer, ProbeCallback]:
    """A whole training that was looked at, with a checkpoint at every look but the first and the last."""
    out = tmp_path_factory.mktemp("watched") / "out"
    save_network(network(), tokenizer(), out / "checkpoint-0")
    callback = ProbeCallback(rows(), every=EVERY, **QUICK)
    trained = trainer(out, callback)
    trained.train()
    save_network(trained.model, tokenizer(), out / f"checkpoint-{STEPS}")
    return out, trained, callback


def told(frame: pl.DataFrame) -> pl.DataFrame:
    """Without what a checkpoint calls itself."""
    return frame.with_columns(pl.col("model").str.replace("checkpoint", "step")).drop("epoch")


def test_a_look_is_a_probe_of_the_checkpoint_saved_at_the_same_step(watched, tmp_path):
    out, _, callback = watched
    saved = [str(out / f"checkpoint-{step}") for step in (0, 3, 6, STEPS)]
    same = ProbeSettings(loading={"attn_implementation": "eager"}, **QUICK)  # as the network that was trained
    assert probe_into(tmp_path / "run", saved, rows(), same, base=saved[0])
    expected = nucleate.probing.result.load_probe(tmp_path / "run")
    assert callback.result.models == ("step-0", "step-3", "step-6", "step-8")
    moved = pl.col("experiment") == "transfer"  # which takes as long again, so that a look does without
    assert not expected.metrics.filter(moved).is_empty() and callback.result.metrics.filter(moved).is_empty()
    expected = replace(expected, metrics=expected.metrics.filter(~moved))
    for table in ("metrics", "tasks", "confusion", "suspicious", "coordinates", "dropped"):
        here, there = (told(getattr(one, table)) for one in (callback.result, expected))
        assert here.equals(there), table
    words = [verdict.replace("checkpoint", "step") for verdict in expected.verdicts.values()]
    assert list(callback.result.verdicts.values()) == words


def test_the_epochs_are_those_that_a_checkpoint_tells(watched):
    _, _, callback = watched
    steps = callback.result.metrics.drop_nulls("step").select("step", "epoch").unique().sort("step")
    assert dict(steps.iter_rows()) == {0: 0, 3: 0, 6: 0, 8: 1}  # eight steps an epoch


def test_looking_changes_nothing(watched, tmp_path):
    _, looked_at, _ = watched
    left_alone = trainer(tmp_path / "out")
    left_alone.train()
    for name, weight in left_alone.model.state_dict().items():
        assert torch.equal(weight, looked_at.model.state_dict()[name]), name


def test_what_was_frozen_in_eval_mode_stays_so(tmp_path):
    model = network()

    class Freeze(TrainerCallback):
        modes: tuple[tuple[bool, ...], ...] = ()

        def on_step_end(self, args, state, control, model, **kwargs):
            if self is before:
                model.transformer.h[0].eval()
            self.modes += (tuple(part.training for part in model.modules()),)

    before, after = Freeze(), Freeze()
    looks = ProbeCallback(rows(), every=1, **QUICK)
    trainer(tmp_path / "out", before, looks, after, model=model, max_steps=1).train()
    assert before.modes == after.modes
    assert True in before.modes[0] and False in before.modes[0]


def test_each_look_stands_in_the_log_of_the_trainer(watched):
    _, trained, callback = watched
    looks = [entry for entry in trained.state.log_history if "probe/readable" in entry]
    assert [entry["step"] for entry in looks] == [0, 3, 6, 8]
    here = callback.result.metrics.filter(
        model="step-8", split="test", labels="task", space="raw", control="none", read="input"
    )
    layer = looks[-1]["probe/best_layer"]
    assert looks[-1]["probe/readable"] == here.filter(measure="linear_accuracy", layer=layer)["value"].item()
    near = callback.result.metrics.filter(measure="best_layer", model="step-8", control="none")["value"].item()
    share = here.filter(measure="knn_share_other_inputs", layer=int(near))["value"].item()
    assert looks[-1]["probe/clustered"] == share


def records_of(data: bytes) -> Iterator[bytes]:
    """The records of a file of W&B: LevelDB's log format in blocks of 32 KiB, behind seven bytes of its own."""
    place, whole = 7, b""
    while place < len(data):
        if -place % 2**15 < 7 and place % 2**15:  # what is left of a block holds no header
            place += -place % 2**15
        length, kind = struct.unpack_from("<4xHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def test_trackers_are_told_and_the_loss_of_the_same_step_is_told_too(tmp_path):
    """By what TensorBoard and W&B, offline, have written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from wandb.proto.wandb_internal_pb2 import Record

    callback = ProbeCallback(rows(), every=EVERY, **QUICK)
    folders = {"TENSORBOARD_LOGGING_DIR": "board", "WANDB_DIR": "wandb"}
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in folders.items():
            patch.setenv(name, str(tmp_path / folder))
            (tmp_path / folder).mkdir()
        patch.setenv("WANDB_MODE", "offline")
        watched = trainer(tmp_path / "out", callback, report_to=["tensorboard", "wandb"], logging_strategy="steps",
                          logging_steps=EVERY)  # fmt: skip
        watched.train()
        wandb.finish()
    looks = [entry for entry in watched.state.log_history if "probe/readable" in entry]
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    for name in ("readable", "clustered", "best_layer"):
        (tag,) = [tag for tag in events.Tags()["scalars"] if tag.endswith(f"probe/{name}")]
        shown = {one.step: one.value for one in events.Scalars(tag)}
        assert shown == {look["step"]: pytest.approx(look[f"probe/{name}"], abs=1e-6) for look in looks}
    losses = [entry["step"] for entry in watched.state.log_history if "loss" in entry]
    assert losses == [3, 6]
    (written,) = (tmp_path / "wandb").glob("wandb/offline-run-*/*.wandb")
    for _ in range(60):  # its own process may still be writing
        records = [Record.FromString(data) for data in records_of(written.read_bytes())]
        if records and records[-1].HasField("exit"):
            break
        time.sleep(0.5)
    items = [item for record in records for item in record.history.item]
    sent = [("/".join([item.key, *item.nested_key]), json.loads(item.value_json)) for item in items]
    told = [value for key, value in sent if key.endswith("probe/readable")]
    assert told == [pytest.approx(look["probe/readable"]) for look in looks]


def test_the_folder_is_a_finished_run_with_figures_and_page(watched, capsys):
    out, _, _ = watched
    run = load_run(probed(out))
    assert (run.state, run.config["verb"], run.config["base"]) == ("done", "probe", "step-0")
    assert (run.folder / "figures" / "figure_probe_series.png").is_file()
    assert main(["report", str(run.folder)]) == 0
    assert "step-8" in capsys.readouterr().out


def test_looks_within_one_epoch_are_one_scene_told_by_its_steps(watched):
    out, _, _ = watched
    (scene,) = scenes_of(load_run(probed(out)), Chunks())
    assert (scene["unit"], scene["moments"]) == ("step", [0, 3, 6, 8])


def test_it_can_be_drawn_while_the_training_goes_on(tmp_path, capsys):
    class Look(TrainerCallback):
        code = None

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                self.state = load_run(tmp_path / "live").state
                self.code = main(["report", str(tmp_path / "live")])

    look = Look()
    trainer(tmp_path / "out", ProbeCallback(rows(), every=2, out=tmp_path / "live", **QUICK), look, max_steps=3).train()
    assert (look.code, look.state) == (0, "interrupted")
    assert (tmp_path / "live" / "page.html").is_file()


@pytest.mark.parametrize("saved", [3, 5])
def test_a_training_that_died_goes_on_with_its_looks_and_gives_the_bytes_of_an_unbroken_one(saved, watched, tmp_path):
    """From a checkpoint at a look, and from one between two looks, behind which the look at step 6 was taken."""
    whole, _, _ = watched
    out = tmp_path / "out"
    with pytest.raises(MemoryError):
        looks = ProbeCallback(rows(), every=EVERY, **QUICK)
        trainer(out, looks, StopAt(7, crash=True), save_steps=saved).train()
    assert load_run(probed(out)).state == "interrupted"
    with pytest.raises(Refused, match=r"holds an unfinished run: go on with train\(resume_from_checkpoint=True\)"):
        trainer(out, ProbeCallback(rows(), every=EVERY, **QUICK)).train()
    again = ProbeCallback(rows(), every=EVERY, **QUICK)
    trainer(out, again).train(resume_from_checkpoint=str(out / f"checkpoint-{saved}"))
    for table in ("metrics", "tasks", "suspicious"):
        broken, unbroken = (probed(folder) / f"{table}.parquet" for folder in (out, whole))
        assert broken.read_bytes() == unbroken.read_bytes(), table


def test_a_finished_training_can_be_gone_on_with(tmp_path):
    for steps in (4, 6):
        callback = ProbeCallback(rows(), every=2, **QUICK)
        going_on = True if (tmp_path / "out").exists() else None
        trainer(tmp_path / "out", callback, max_steps=steps, save_steps=2).train(resume_from_checkpoint=going_on)
        assert callback.result.models == tuple(f"step-{step}" for step in range(0, steps + 1, 2))
        assert list(load_run(probed(tmp_path / "out")).manifest["verdict"]) == list(callback.result.models)


def test_one_callback_serves_two_trainings(tmp_path):
    callback = ProbeCallback(rows(), every=2, **QUICK)
    for name in ("one", "two"):
        trainer(tmp_path / name, callback, max_steps=2).train()
        assert callback.result.folder == probed(tmp_path / name)
        assert callback.result.models == ("step-0", "step-2")
    assert load_run(probed(tmp_path / "one")).state == "done"


def test_a_batch_that_was_too_large_begins_the_looks_anew(tmp_path):
    class Full(TrainerCallback):
        times = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.times += 1
            if self.times == 2:
                raise RuntimeError("CUDA out of memory.")

    callback = ProbeCallback(rows(), every=1, **QUICK)
    trainer(tmp_path / "out", callback, Full(), max_steps=2, auto_find_batch_size=True).train()
    assert callback.result.models == ("step-0", "step-1", "step-2")


def test_in_mixed_precision_a_look_is_that_of_the_saved_weights_and_training_goes_on_in_it(tmp_path):
    out, callback = tmp_path / "out", ProbeCallback(rows(), every=2, **QUICK)
    trained = trainer(out, callback, max_steps=4, bf16=True)
    trained.train()
    left_alone = trainer(tmp_path / "alone", max_steps=4, bf16=True)
    left_alone.train()
    for name, weight in left_alone.model.state_dict().items():
        assert torch.equal(weight, trained.model.state_dict()[name]), name
    save_network(trained.model, tokenizer(), out / "checkpoint-4")
    expected = nucleate.probe(str(out / "checkpoint-4"), rows(), loading={"attn_implementation": "eager"}, **QUICK)
    here = callback.result.metrics.filter(model="step-4")
    assert len(here) > 100
    saved = expected.metrics.filter(model="checkpoint-4", experiment="probe")  # a look moves no states
    assert here["value"].equals(saved["value"])


def test_an_early_stop_is_the_last_look(tmp_path):
    callback = ProbeCallback(rows(), every=4, **QUICK)
    trainer(tmp_path / "out", callback, StopAt(5, crash=False)).train()
    assert callback.result.models == ("step-0", "step-4", "step-5")


def test_the_network_is_seen_before_the_best_one_takes_its_place(tmp_path):
    callback = ProbeCallback(rows(), every=100, **QUICK)
    stops = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e9)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    trainer(tmp_path / "out", callback, stops, **best).train()
    assert callback.result.models == ("step-0", "step-4")


def test_a_share_of_the_steps_can_be_asked_for(tmp_path):
    callback = ProbeCallback(rows(), every=0.5, layers=[0, 2], **QUICK)
    trainer(tmp_path / "out", callback, max_steps=4).train()
    assert callback.result.models == ("step-0", "step-2", "step-4")
    assert set(callback.result.tasks["layer"].drop_nulls()) == {0, 2}


def test_a_look_that_fails_ends_no_training(tmp_path, monkeypatch, capsys):
    original = live.probe_one

    def fails(study, subject, *rest, **how):
        if subject.step == 2:
            raise RuntimeError("a hidden state is not finite")
        original(study, subject, *rest, **how)

    monkeypatch.setattr(live, "probe_one", fails)
    callback = ProbeCallback(rows(), every=2, **QUICK)
    trained = trainer(tmp_path / "out", callback, max_steps=4)
    trained.train()
    assert trained.state.global_step == 4
    assert callback.result.models == ("step-0", "step-4")
    printed = capsys.readouterr().out
    assert "nucleate: step 2 was not probed: RuntimeError: a hidden state is not finite" in printed
    assert f"nucleate: step 4: {callback.result.verdict}" in printed


def test_a_first_look_that_fails_is_refused_before_the_first_step_and_stands_in_nobodys_way(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("a hidden state is not finite")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="not finite"):
        patched.setattr(live, "probe_one", fails)
        trainer(tmp_path / "out", ProbeCallback(rows(), **QUICK), max_steps=2).train()
    callback = ProbeCallback(rows(), every=2, **QUICK)
    trainer(tmp_path / "out", callback, max_steps=2).train()
    assert callback.result.models == ("step-0", "step-2")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's, about transformers
def test_an_adapter_is_read_with_its_weights(tmp_path):
    model = network()
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    )
    callback = ProbeCallback(rows(), every=STEPS, **QUICK)
    trainer(tmp_path / "out", callback, model=adapted, learning_rate=3e-2).train()
    save_network(adapted.merge_and_unload(), tokenizer(), tmp_path / "merged")
    expected = nucleate.probe(str(tmp_path / "merged"), rows(), **QUICK)
    here = callback.result.metrics.filter(model=f"step-{STEPS}", measure="knn_share", control="none", space="raw")
    there = expected.metrics.filter(measure="knn_share", control="none", space="raw")
    assert len(here) == len(there) > 0
    assert np.allclose(here["value"], there["value"], atol=0.02)
    first = callback.result.metrics.filter(model="step-0", measure="knn_share", control="none", space="raw")
    assert not np.allclose(here["value"], first["value"], atol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=0 is neither a number of steps nor a share"),
        ({"every": 2.5}, "every=2.5 is neither"),
        ({"every": float("nan")}, "every=nan is neither"),
        ({"every": float("inf")}, "every=inf is neither"),
        ({"every": "10"}, "every='10' is neither"),
        ({"columns": "task=label"}, "columns='task=label' is not a dictionary"),
        ({"layers": "last"}, "layers='last' is not a list of whole numbers"),
        ({"limit": "5"}, "limit='5' is not a whole number"),
        ({"seed": "a"}, "seed='a' is not a whole number"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_the_callback_is_made(settings, message):
    with pytest.raises(Refused, match=message):
        ProbeCallback(rows(), **settings)


@pytest.mark.parametrize("keyword", ["colums", "device"])  # misspelt; of a network that is still to be loaded
def test_a_keyword_that_the_callback_does_not_have_is_named(keyword):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{keyword}'"):
        ProbeCallback(rows(), **{keyword: {}})


def test_data_that_cannot_be_probed_are_refused_with_file_and_line(tmp_path):
    (tmp_path / "prompts.jsonl").write_text(json.dumps(rows()[0]) + "\n{\n", encoding="utf-8")
    with pytest.raises(Refused, match=r"prompts\.jsonl.*2"):
        ProbeCallback(tmp_path / "prompts.jsonl")


def test_a_folder_that_holds_something_is_refused_before_the_first_step_and_keeps_it(watched, tmp_path):
    out, _, _ = watched
    before = (probed(out) / "metrics.parquet").read_bytes()
    other = trainer(tmp_path / "out", ProbeCallback(rows(), out=probed(out), **QUICK))
    with pytest.raises(Refused, match=r"holds a finished run: give another folder as out=…, or overwrite=True$"):
        other.train()
    assert other.state.global_step == 0
    assert (probed(out) / "metrics.parquet").read_bytes() == before


def test_overwriting_begins_anew(tmp_path):
    for _ in range(2):
        callback = ProbeCallback(rows(), every=2, overwrite=True, **QUICK)
        trainer(tmp_path / "out", callback, max_steps=2).train()
    assert callback.result.models == ("step-0", "step-2")


def test_a_trainer_without_a_tokenizer_is_refused_with_the_remedy(tmp_path):
    bare = trainer(tmp_path / "out", ProbeCallback(rows(), **QUICK))
    bare.callback_handler.processing_class = None
    with pytest.raises(Refused, match=r"give ProbeCallback\(…, tokenizer=tokenizer\)"):
        bare.train()
