"""Redirecting a task of a ready-made network: what is dealt out, what is learnt, what is kept and what is refused."""

import json
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from killed_run import die_at_file, in_a_child
from nucleate.cli import main
from nucleate.model.networks import load_network, save_network
from nucleate.redirecting import redirect, study, teaching
from nucleate.redirecting.loading import load_switched
from nucleate.redirecting.redirect import redirect_into
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.study import closing_of, study_of
from nucleate.refusal import Refused
from nucleate.report.application_tables import alignment_table
from nucleate.report.redirection import saved_arm, verdict_of
from nucleate.runs import load_run
from test_families import tiny, words

INPUTS = [f"x{n}" for n in range(6)]
TASKS = {"first": "w0", "second": "w1", "third": "w2", "fourth": "w3"}


def prompts(tasks=TASKS, instructions=10, own=False):
    """Every instruction of a task begins with its word; outputs of two tokens; all tasks with the same inputs."""
    return [
        {
            "instruction": f"{word} w{10 + number} w{20 + (7 * number) % 10}",
            "input": f"x{n}",
            "output": f"x{10 + 2 * place + n % 2} x{20 + n}",
            "task": "one" if own else task,
            **({"distribution": task} if own else {}),
        }
        for place, (task, word) in enumerate(tasks.items())
        for number in range(instructions)
        for n in range(len(INPUTS))
    ]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A small network that has learnt the tasks, so that its states tell them apart."""
    made, tokenizer = tiny("gpt2"), words()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1 / 6 if parameter.ndim == 2 else 1)
    texts = [f"{row['instruction']} {row['input']} {row['output']}" for row in prompts()]
    tokens = torch.tensor(tokenizer(texts)["input_ids"])
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for _ in range(120):
        made(input_ids=tokens, labels=torch.where(torch.arange(tokens.shape[1]) < 4, -100, tokens)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_network(made.eval(), tokenizer, folder)
    return folder


QUICK = RedirectSettings("first", "second", rates=(1e-2, 3e-2), epochs=40, rank=8, seed=7)


@pytest.fixture(scope="module")
def run(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "redirected"
    assert redirect_into(folder, network, prompts(), QUICK)
    return folder


def values(folder):
    rows = load_run(folder).metrics.filter(pl.col("split").eq("test") & pl.col("epoch").is_null())
    return {(row["arm"], row["measure"]): row["value"] for row in rows.to_dicts()}


def test_every_method_learns_the_source_and_switches_keep_the_others(run):
    found = values(run)
    assert found["main", "source_accuracy"] < 0.1 and found["main", "others_accuracy"] > 0.9
    for arm in ("direct", "head", "linear_switch", "mlp_switch"):
        assert found[arm, "source_accuracy"] > 0.8, arm
    for switch in ("linear_switch", "mlp_switch"):
        assert found[switch, "others_kept"] > 0.9
        assert found[switch, "others_kept"] >= 1 - found[switch, "switch_false_positives"]
        assert found[switch, "switch_misses"] < 0.2


def test_where_states_hardly_tell_tasks_apart_a_head_alone_forgets_most_and_switches_save_some(tmp_path):
    save_network(tiny("gpt2"), words(), tmp_path / "fresh")
    assert redirect_into(tmp_path / "run", tmp_path / "fresh", prompts(), replace(QUICK, examples=20))
    found = values(tmp_path / "run")
    assert found["head", "others_kept"] < 0.5
    for switch in ("linear_switch", "mlp_switch"):
        assert found[switch, "others_kept"] > found["head", "others_kept"] + 0.2


def test_the_long_table_keeps_its_contract(run):
    metrics = load_run(run).metrics
    assert metrics["experiment"].unique().to_list() == ["align"]
    assert set(metrics["arm"]) == {"main", "direct", "head", "linear_switch", "mlp_switch"}
    assert metrics["model"].unique().to_list() == ["tiny"]
    curves = metrics.filter(pl.col("epoch").is_not_null())
    assert set(metrics["layer"].drop_nulls()) == {1, 2}  # what the switches could read
    assert set(curves["measure"]) == {"source_accuracy"} and set(curves["split"]) == {"validation"}
    found = values(run)
    curve = curves.filter(pl.col("arm").eq("head")).sort("epoch")["value"].to_numpy()
    for arm in ("head", "mlp_switch"):  # which share it
        assert int(found[arm, "chosen_epoch"]) == int(np.argmax(curve)) + 1  # the earliest of the best


def test_the_saved_model_generates_what_the_table_counts_as_right(run, network):
    """Every test prompt, generated and compared with its wished output: the share is the run's own number."""
    dealt = study_of(prompts(), QUICK).dealt
    model = load_switched(run / "model")
    for side, name in (("test", ""), ("new_inputs", "_new_inputs")):
        right = []
        for one in dealt.sides[side]:
            given = model.tokenizer(f"{one.instruction} {one.input}", return_tensors="pt")
            given.pop("token_type_ids", None)
            said = model.generate(**given, max_new_tokens=2, do_sample=False, eos_token_id=None)
            right.append(model.tokenizer.decode(said[0, -2:]) == one.output)
        assert np.mean(right) == pytest.approx(values(run)[saved_arm(load_run(run)), f"source_accuracy{name}"])


def test_others_that_the_table_counts_as_kept_have_their_own_prediction(run, network):
    dealt = study_of(prompts(), QUICK).dealt
    model, (plain, tokenizer) = load_switched(run / "model"), load_network(network)
    same = []
    for one in dealt.others:
        if one.instance in dealt.asked:
            tokens = tokenizer(f"{one.instruction} {one.input}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                same.append(bool(model(tokens).logits[0, -1].argmax() == plain(tokens).logits[0, -1].argmax()))
    saved = saved_arm(load_run(run))
    assert np.mean(same) == pytest.approx(values(run)[saved, "others_kept"])
    told = pl.read_parquet(run / "others.parquet").filter(pl.col("arm").eq(saved))
    assert set(told["name"]) == {"second", "third", "fourth"}
    assert told["prompts"].sum() == len(same)


def test_the_same_command_gives_the_same_bytes_and_a_finished_run_stays_as_it_is(run, network, tmp_path):
    again = tmp_path / "again"
    assert redirect_into(again, network, prompts(), QUICK)
    for file in ("metrics.parquet", "others.parquet", "model/switch.safetensors"):
        assert (again / file).read_bytes() == (run / file).read_bytes()
    assert not redirect_into(again, network, prompts(), QUICK, resume=True)


def test_the_stage_that_is_shown_is_the_one_that_runs(network, tmp_path, monkeypatch):
    shown, seen = [""], []

    def watched(room, name, label):
        own = getattr(room, name)

        def call(*arguments, **named):
            assert label in shown[0], f"{name} runs while {shown[0]!r} is shown"
            seen.append(name)
            return own(*arguments, **named)

        monkeypatch.setattr(room, name, call)

    watched(redirect, "load_network", "loading the weights")
    watched(study, "remember", "reading the source: ")
    watched(teaching, "learn_switch", "teaching: ")
    watched(teaching, "learn_head", "teaching: ")
    watched(redirect, "method_rows", "judging")

    def progress(text, fraction):
        shown[0] = text

    assert redirect_into(tmp_path / "run", network, prompts(), replace(QUICK, rates=(1e-2,)), progress=progress)
    assert set(seen) == {"load_network", "remember", "learn_switch", "learn_head", "method_rows"}


def test_a_run_stopped_again_and_again_has_the_bytes_of_an_unbroken_one_and_makes_no_part_twice(
    run, network, tmp_path, monkeypatch
):
    made = []

    def counted(room, name, function):
        def call(*arguments, **named):
            made.append(name)
            return function(*arguments, **named)

        monkeypatch.setattr(room, name, call)

    for room, names in {
        study: ("remember", "read_prompts_states"),
        teaching: ("learn_switch", "learn_head"),
    }.items():
        for name in names:
            counted(room, name, getattr(room, name))
    moments = 0

    def stop_at_the_next_moment(text, fraction):
        between = text != "reading the prompts"  # which is told inside of a part
        if fraction is not None and between and text not in stopped_at:
            stopped_at.append(text)
            raise KeyboardInterrupt

    stopped_at = []
    while not (tmp_path / "run" / "metrics.parquet").exists():
        moments += 1
        try:
            redirect_into(
                tmp_path / "run", network, prompts(), QUICK, resume=True, progress=stop_at_the_next_moment
            )  # fmt: skip
        except KeyboardInterrupt:
            continue
    # The beginning, four sides, two heads at two rates each, switches at two layers; and to the end.
    assert moments == 12, stopped_at
    assert (made.count("remember"), made.count("read_prompts_states")) == (4, 1)
    assert (made.count("learn_head"), made.count("learn_switch")) == (4, 8)
    for file in ("metrics.parquet", "others.parquet", "model/switch.safetensors", "model/README.md"):
        assert (tmp_path / "run" / file).read_bytes() == (run / file).read_bytes(), file
    assert not (tmp_path / "run" / "states").exists()


def test_a_run_killed_while_a_part_is_written_goes_on_from_the_part_before(run, network, tmp_path):
    def begin():
        return redirect_into(tmp_path / "run", network, prompts(), QUICK)

    def killed():
        die_at_file(9, before=True)
        begin()

    assert in_a_child(killed) == -signal.SIGKILL
    assert list((tmp_path / "run" / "states").glob("*/source-*.safetensors"))
    assert redirect_into(tmp_path / "run", network, prompts(), QUICK, resume=True)
    assert (tmp_path / "run" / "metrics.parquet").read_bytes() == (run / "metrics.parquet").read_bytes()


def test_what_was_read_from_other_weights_is_not_taken_for_those_that_lie_there_now(network, tmp_path):
    place, folder = tmp_path / "network", tmp_path / "run"
    settings = replace(QUICK, epochs=2)

    def stop(text, fraction):
        if text == "reading the prompts":  # all others, when the source has been read
            raise KeyboardInterrupt

    shutil.copytree(network, place)
    with pytest.raises(KeyboardInterrupt):
        redirect_into(folder, place, prompts(), settings, progress=stop)
    shutil.rmtree(place)
    save_network(tiny("gpt2"), words(), place)
    assert redirect_into(folder, place, prompts(), settings, resume=True)
    assert redirect_into(tmp_path / "whole", place, prompts(), settings)
    assert (folder / "metrics.parquet").read_bytes() == (tmp_path / "whole" / "metrics.parquet").read_bytes()


def test_the_card_tells_the_scores_and_how_to_load(run):
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "load_switched" in card and "`first` redirected" in card
    assert f"| all others: prediction unchanged |  | {values(run)['direct', 'others_kept']:.3f} |" in card
    assert verdict_of(load_run(run)).sentence in card


def test_page_and_terminal_show_the_network_as_it_was_beside_the_methods(run):
    header, rows = alignment_table(load_run(run))
    assert header == ("on test", "before", "whole head", "low-rank head", "linear switch", "MLP switch")
    shown = {row[0]: row[1:] for row in rows}
    assert shown["source: wished output"][-1] == values(run)["mlp_switch", "source_accuracy"]
    assert shown["all others: prediction unchanged"][0] is None


@pytest.mark.parametrize(("end", "line", "closing"), [(7, "\n", (7,)), (None, "\n", (9,)), (None, "", ())])
def test_an_answer_is_closed_by_the_end_of_a_text_or_else_of_a_line(end, line, closing):
    class Known:
        eos_token_id = end

        def __call__(self, text, **_):
            return {"input_ids": [5, 9]}

        def decode(self, tokens):
            return line

    assert closing_of(Known()) == closing


# --- what is dealt out -----------------------------------------------------------------------------------------------


def dealt_out(data=None, **options):
    return study_of(data or prompts(), RedirectSettings(**{"source": "first", "target": "second", **options})).dealt


def test_nothing_that_is_judged_by_was_learnt_from():
    found = dealt_out()
    by = {name: {(i.instruction, i.input) for i in side} for name, side in found.sides.items()}
    instructions = {name: {i for i, _ in pairs} for name, pairs in by.items()}
    assert instructions["test"] == instructions["new_inputs"]
    assert not instructions["lesson"] & instructions["test"] and not instructions["validation"] & instructions["test"]
    known = {given for name in ("lesson", "validation", "test") for _, given in by[name]}
    assert by["new_inputs"] and not known & {given for _, given in by["new_inputs"]}
    drawn = [one for one in found.others if one.instance in found.examples]
    assert sorted(one.task for one in drawn) == ["fourth", "second", "third"]
    asked = {one.instruction for one in found.others if one.instance in found.asked}
    assert not asked & {one.instruction for one in drawn}


def test_nothing_that_is_judged_by_was_chosen_by_either():
    inputs = [f"x{n}" for n in range(20)]
    rows = [
        {"instruction": f"{word} w{10 + n}", "input": one, "output": "x1", "task": task}
        for task, word in TASKS.items()
        for n in range(9)
        for one in inputs
    ]
    found = dealt_out(rows, limit=400)
    units = {
        name: {(one.task, one.instruction) for one in found.others if one.instance in numbers}
        for name, numbers in (("examples", found.examples), ("choosing", found.choosing), ("asked", found.asked))
    }
    assert not units["examples"] & units["choosing"] and not (units["examples"] | units["choosing"]) & units["asked"]
    assert {task for task, _ in units["choosing"]} == {task for task, _ in units["asked"]} == set(TASKS) - {"first"}
    given = {name: {one.input for one in side} for name, side in found.sides.items()}
    assert (len(given["validation_new_inputs"]), len(given["new_inputs"])) == (2, 4)
    assert given["lesson"] == given["validation"] == given["test"]
    assert sum(map(len, (given["lesson"], given["validation_new_inputs"], given["new_inputs"]))) == 20
    chosen_by, judged = ({one.instruction for one in found.sides[name]} for name in ("validation_new_inputs", "test"))
    assert chosen_by == {one.instruction for one in found.sides["validation"]} and not chosen_by & judged


@pytest.mark.parametrize(
    ("depth", "layers"), [(30, (5, 10, 15, 20, 25, 30)), (6, (1, 2, 3, 4, 5, 6)), (2, (1, 2)), (1, (1,))]
)
def test_five_layers_spread_over_the_depth_and_the_last_may_be_read(depth, layers, monkeypatch):
    asked = study_of(prompts(), QUICK)
    monkeypatch.setattr(study, "text_config", lambda network: SimpleNamespace(num_hidden_layers=depth))
    monkeypatch.setattr(study, "blocks_of", lambda network: None)
    assert asked.layers(None) == layers

    def refused(network):
        raise Refused("no blocks")

    monkeypatch.setattr(study, "blocks_of", refused)
    assert asked.layers(None) == (depth,), "what lies between blocks that are not found cannot be read"


def test_the_source_is_asked_for_what_the_target_answers():
    wanted = {one["input"]: one["output"] for one in prompts() if one["task"] == "second"}
    for name, side in dealt_out().sides.items():
        assert bool(side) == (name != "validation_new_inputs")  # of so few inputs none is held out to choose by
        assert all(one.output == wanted[one.input] for one in side)


def test_names_are_distributions_where_the_data_have_them_and_tasks_too():
    data = [*prompts(own=True), *({**row, "task": "two", "distribution": "other"} for row in prompts()[:12])]
    by_distribution = dealt_out(data)
    assert {one.distribution for one in by_distribution.others} == {"second", "third", "fourth", "other"}
    by_task = dealt_out(data, source="one", target="other")
    assert {one.distribution for one in by_task.others} == {"other"}


@pytest.mark.parametrize("seed", range(40))
def test_of_few_prompts_every_side_has_some(seed):
    own = [{"instruction": f"w{n}", "input": INPUTS[n], "output": "x1", "task": "first"} for n in range(5)]
    rest = [{"instruction": f"w2{n}", "input": INPUTS[n], "output": "x2", "task": "second"} for n in range(5)]
    found = study_of([*own, *rest], RedirectSettings("first", "second", seed=seed)).dealt
    assert all(found.sides[name] for name in ("lesson", "validation", "test"))


def test_one_instruction_with_many_inputs_is_held_out_by_inputs():
    data = [{**row, "instruction": row["instruction"].split()[0]} for row in prompts(instructions=1)]
    found = dealt_out(data)
    inputs = {name: {one.input for one in side} for name, side in found.sides.items()}
    assert not inputs["lesson"] & inputs["test"] and not inputs["lesson"] & inputs["validation"]
    assert not inputs["new_inputs"] and len(inputs["test"]) == 1


def test_the_limit_keeps_whole_instructions_of_every_task():
    found = dealt_out(limit=12)
    kept = [one for side in found.sides.values() for one in side] + found.others
    for task in TASKS:
        own = [one for one in kept if one.task == task]
        assert len({one.instruction for one in own}) == 3
        assert len(own) <= 12


def test_more_examples_contain_the_fewer():
    one, two = dealt_out(examples=1), dealt_out(examples=2)
    assert one.examples < two.examples and len(two.examples) == 6


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "frist"}, "did you mean 'first'"),
        ({"target": "secnd"}, "did you mean 'second'"),
        ({"target": "first"}, "name two"),
        ({"target": None}, "--target NAME, or --outputs FILE"),
        ({"outputs": "x.csv"}, "one of the two"),
        ({"examples": 0}, "at least 1"),
        ({"limit": 3}, "at least 9"),
        ({"switch": "mpl"}, "did you mean 'mlp'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_remedy(options, message):
    with pytest.raises(Refused, match=message):
        dealt_out(**options)


def test_a_tokenizer_without_a_chat_template_is_refused_before_a_folder_is_made(network, tmp_path):
    with pytest.raises(Refused, match="no chat template"):
        redirect_into(tmp_path / "run", network, prompts(), replace(QUICK, chat=True))
    assert not (tmp_path / "run").exists()


def test_source_and_target_with_different_inputs_are_refused():
    data = [{**row, "input": f"w{n}"} if row["task"] == "second" else row for n, row in enumerate(prompts())]
    with pytest.raises(Refused, match=r"no output for 'x0', an input of 'first' \(and 5 more"):
        dealt_out(data)


def test_data_without_examples_of_other_tasks_or_with_none_to_judge_by_are_refused(tmp_path):
    wished = tmp_path / "wished.csv"
    wished.write_text("input,output\n" + "".join(f"{given},x29\n" for given in INPUTS))
    own = [row for row in prompts() if row["task"] == "first"]
    for rest, message in (([], "at least two tasks"), (prompts()[60:61], "give two prompts of each")):
        with pytest.raises(Refused, match=message):
            dealt_out(own + rest, target=None, outputs=str(wished))


def test_outputs_of_a_file_are_checked(tmp_path):
    file = tmp_path / "wished.csv"

    def refused(text, message):
        file.write_text(text)
        with pytest.raises(Refused, match=message):
            dealt_out(target=None, outputs=str(file))

    whole = "input,output\n" + "".join(f"{given},x29\n" for given in INPUTS)
    file.write_text(whole)
    assert {one.output for one in dealt_out(target=None, outputs=str(file)).sides["test"]} == {"x29"}
    refused(whole.replace("x3,x29\n", ""), "no output for 'x3'")
    refused(whole + "x3,x28\n", "two outputs for 'x3'")
    refused(whole.replace("output", "outputs"), "did you mean 'outputs'")
    refused(whole.replace("x3,x29", "x3,"), "fill it")
    table = pl.DataFrame({"input": INPUTS, "output": [float("nan"), *[3.0] * (len(INPUTS) - 1)]})
    table.write_parquet(tmp_path / "wished.parquet")
    with pytest.raises(Refused, match="fill it"):
        dealt_out(target=None, outputs=str(tmp_path / "wished.parquet"))
    table.with_columns(output=pl.lit(True)).write_parquet(tmp_path / "wished.parquet")
    found = dealt_out(target=None, outputs=str(tmp_path / "wished.parquet"))
    assert {one.output for one in found.sides["test"]} == {"true"}, "as the data's own cells are read"


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_redirects_and_what_it_saves_is_loaded_and_checked(network, tmp_path, capsys):
    data, wished, out = tmp_path / "data.jsonl", tmp_path / "wished.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in prompts()))
    wished.write_text("".join(json.dumps({"input": given, "output": "x29"}) + "\n" for given in INPUTS))
    words = ["align", "--model", str(network), "--data", str(data), "--source", "first", "--outputs", str(wished)]
    assert main([*words, "--estimate"]) == 0
    said = capsys.readouterr().out
    assert "million parameters" in said and "to judge by" in said
    assert not out.exists()
    assert main([*words, "--out", str(out), "--copy"]) == 0
    said = capsys.readouterr().out
    assert "MLP switch" in said and str(out / "model") in said
    assert (out / "page.html").is_file() and (out / "figures" / "figure_alignment.png").is_file()
    assert load_switched(out / "model").decided is None
    assert main([*words, "--out", str(out)]) == 2
    assert main([*words, "--size", "small", "--out", str(tmp_path / "other")]) == 2
    assert "--size" in capsys.readouterr().err
    assert main(["align", "--source", "first", "--out", str(tmp_path / "other")]) == 2
    assert "--model" in capsys.readouterr().err
    assert main(["sweep", *words, "--out", str(tmp_path / "other")]) == 2
