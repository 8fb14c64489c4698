"""Where to act: a network that has learnt languages names a layer, one that has not names none, and what else is said;
steering vectors out of a probe, at the layer of that number in other tools' counting too."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

import nucleate
from nucleate.cli import main
from nucleate.data.prompts import read_prompts
from nucleate.long_table import STRENGTHS, main_read
from nucleate.measures.transfer import FEWEST
from nucleate.model.networks import gpt2, load_network, save_network, word_tokenizer
from nucleate.model.patching import answers_when_moved
from nucleate.model.prompts import read_prompts_states
from nucleate.model.subjects import Subject
from nucleate.probing import one_model
from nucleate.probing.acting import where_to_act
from nucleate.probing.costs import MOVED, movable, workload_of
from nucleate.probing.live import LiveProbe
from nucleate.probing.result import load_probe
from nucleate.probing.settings import ProbeSettings
from nucleate.probing.study import ProbeStudy
from nucleate.refusal import Refused
from nucleate.runs import load_run
from nucleate.transferring import transfer
from test_transfer import SPLITS, TOKENIZER, HandMade, instances, network, sides

LANGUAGES = ("french", "spanish", "german", "italian")
WORDS = ("house", "dog", "cat", "tree", "water", "bread")
QUICK = {"iterations": 250, "repeats": 2, "initialisations": 2}


def prompts(verbs: int = 6) -> list[dict[str, str]]:
    """Translations, of which each language has words of its own; nobody holds an answer of another task."""
    return [
        {
            "instruction": f"{verb} {which} word in {language.title()}",
            "input": word,
            "output": f"{word}-{language}",
            "task": language,
        }
        for language in LANGUAGES
        for verb in ("Translate", "Put", "Turn", "Render", "Bring", "Say")[:verbs]
        for which in ("the", "this")
        for word in WORDS
    ]


def words_of():
    texts = [f"{row['instruction']} {row['input']} {row['output']}" for row in prompts()]
    return word_tokenizer(sorted({word for text in texts for word in text.split()}))


def fresh(layers: int = 3):
    shape = {"width": 32, "feed_forward": 64, "layers": layers, "heads": 2, "positions": 16, "dropout": 0, "pad": 0}
    return gpt2(vocabulary=len(words_of()), seed=1, **shape).eval()


def taught(folder: Path) -> None:
    """A network that has every answer right."""
    model, tokenizer = fresh().train(), words_of()
    rows = tokenizer([f"{row['instruction']} {row['input']} {row['output']}" for row in prompts()])["input_ids"]
    tokens, drawn = torch.tensor(rows), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 250)
        some = tokens[drawn.permutation(len(tokens))[:96]]
        loss = torch.nn.functional.cross_entropy(model(input_ids=some).logits[:, -2], some[:, -1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_network(model.eval(), tokenizer, folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The network, its prompts, and the run of the command line."""
    place = tmp_path_factory.mktemp("acting")
    taught(place / "taught")
    pl.DataFrame(prompts()).write_ndjson(place / "prompts.jsonl")
    assert main(["probe", str(place / "taught"), str(place / "prompts.jsonl"), "--out", str(place / "run")]) == 0
    return place


@pytest.fixture(scope="module")
def result(place):
    return load_probe(place / "run")


def moves(metrics: pl.DataFrame, measure: str = "transfer_target", **wanted) -> pl.DataFrame:
    return metrics.filter(experiment="transfer", measure=measure, **wanted)


# --- where ------------------------------------------------------------------------------------------------------------


def test_a_network_that_uses_the_task_names_the_layer_that_validation_chooses_and_tells_it_on_test(result):
    where = result.where_to_act
    leads = {}
    for layer, arm in moves(result.metrics, split="validation").select("layer", "arm").unique().rows():
        shares = dict(moves(result.metrics, split="validation", layer=layer, arm=arm).select("control", "value").rows())
        own = shares.pop("none")
        leads[layer, arm] = own - max(shares.values())
    assert {layer for layer, _ in leads} == {1, 2} and {arm for _, arm in leads} == set(STRENGTHS)
    layer, arm = max(leads, key=lambda key: leads[key])
    on_test = dict(moves(result.metrics, split="test", layer=layer, arm=arm).select("control", "value").rows())
    assert moves(result.metrics, split="test").height == len(on_test)  # nothing else was asked of test
    own = on_test.pop("none")
    assert set(on_test) == {"random", "untrained"}  # no answer is another task's, no distribution is known
    hardest = max(on_test, key=lambda name: on_test[name])
    assert (where.by, where.layer, where.strength) == ("answers", layer, STRENGTHS[arm])
    assert (where.turned, where.control, where.control_value) == (own, hardest, on_test[hardest])
    assert own > 0.3 > 0.1 > on_test[hardest]
    unchanged = moves(result.metrics, "transfer_others_unchanged")
    assert unchanged.select("split", "layer", "arm").rows() == [("test", layer, arm)]
    assert where.others_changed == 1 - unchanged["value"].item()
    for words in (
        f"layer {layer} (chosen on validation from layers 1 and 2)",
        f"{100 * own:.0f} % of {where.pairs} answers become the other task's",
        "(100 % of all pairs are answered rightly, and moved)",
        "right answers alone could not be made a control here",  # no answer is another task's
        f"gives {100 * on_test[hardest]:.0f} %",
        f"changes {100 * where.others_changed:.0f} % of the answers of other tasks' prompts",
    ):
        assert words in where.sentence
    kept = moves(result.metrics, "transfer_kept")
    assert kept["value"].to_list() == [1.0, 1.0] and where.answered == 1.0
    pairs = moves(result.metrics, "transfer_pairs", split="test")["value"].item()
    assert where.pairs == pairs <= MOVED


def test_terminal_page_print_and_json_say_the_same_sentence(place, result, capsys):
    sentence = f"taught, {result.where_to_act}."
    assert sentence in str(result)
    run = load_run(place / "run")
    assert run.manifest["where_to_act"] == sentence
    page = (place / "run" / "page.html").read_text(encoding="utf-8")
    assert sentence.replace("'", "&#39;") in page and "Where to act" in page
    words = ["probe", str(place / "taught"), str(place / "prompts.jsonl"), "--out", str(place / "run"), "--resume"]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["models"]["taught"]["where_to_act"]
    assert told == result.where_to_act.told and told["sentence"] == str(result.where_to_act)
    from nucleate.terminal import print_summary

    print_summary(run)
    assert sentence in capsys.readouterr().out


def test_a_layer_whose_hardest_control_does_nearly_the_same_is_not_named(result):
    """However many answers it turns: any push that is long enough might."""
    where = result.where_to_act
    for control in ("random", "untrained"):
        here = pl.col("measure").eq("transfer_target") & pl.col("split").eq("test") & pl.col("control").eq(control)
        raised = pl.when(here).then(where.turned - 0.05).otherwise(pl.col("value"))
        found = where_to_act(result.metrics.with_columns(value=raised), "taught")
        assert found.by == "answers" and found.layer is None and found.strength is None and found.control == control
        assert f"no layer was found beyond its controls: at layer {where.layer} " in found.sentence


def test_the_rows_of_a_probe_keep_the_contract(result):
    metrics = result.metrics
    keys = [name for name in metrics.columns if name != "value"]
    assert not metrics.select(keys).is_duplicated().any()
    assert set(metrics["experiment"]) == {"probe", "transfer"}
    rows = metrics.filter(experiment="transfer")
    assert set(rows["model"]) == {"taught"} and set(rows["read"]) == {"input"} and set(rows["labels"]) == {"task"}


def test_an_untrained_network_answers_too_few_and_names_no_layer():
    seen = nucleate.probe(fresh(), prompts(), tokenizer=words_of(), **QUICK)
    where = seen.where_to_act
    assert where.by == "likelier" and where.layer is None and where.answered < 0.2
    assert "only " in where.sentence and f"{FEWEST} are needed" in where.sentence
    assert "no layer was found beyond its controls" in where.sentence
    assert moves(seen.metrics).filter(split="test").is_empty() and not moves(seen.metrics, "transfer_turned").is_empty()


class Silent(HandMade):
    """It says a filler whatever is asked, and of two answers holds the right one for likelier."""

    def forward(self, *arguments, **named):
        out = super().forward(*arguments, **named)
        out.logits[..., 0:4] = 99.0
        return out


def test_where_no_answer_is_right_the_likelier_of_two_is_counted_among_pairs_whose_own_answer_was():
    made, model = instances(), Silent(network().config).eval()
    asked = (model, TOKENIZER, made, sides(made))
    strict = transfer(*asked, seed=7)
    assert {row["value"] for row in strict.rows if row["measure"] == "transfer_kept"} == {0.0}
    found = transfer(*asked, seed=7, most=100, likelier=True, untrained=network(works=False), arms=("mean",))
    told = {(row["control"], row["layer"]): row["value"] for row in found.rows if row["measure"] == "transfer_turned"}
    assert told["none", 1] == 1.0 and told["none", 0] == 0.0 and told["random", 1] < 0.6
    kept = [row["value"] for row in found.rows if row["measure"] == "transfer_turned_kept"]
    pairs = [row["value"] for row in found.rows if row["measure"] == "transfer_turned_pairs"]
    assert kept == [1.0, 1.0] and pairs == [100, 100]
    wrong = [replace(one, output=f"y{(int(one.output[1]) + 3) % 9}") for one in made]  # often the less likely one
    some = transfer(model, TOKENIZER, wrong, sides(wrong), seed=7, likelier=True, arms=("mean",))
    kept = [row["value"] for row in some.rows if row["measure"] == "transfer_turned_kept"]
    assert all(0 <= share < 1 for share in kept)


def test_the_fallback_says_how_many_were_right_and_of_how_many_pairs_it_speaks(result):
    names = {"transfer_target": "transfer_turned", "transfer_pairs": "transfer_turned_pairs"}
    names["transfer_instructions"] = "transfer_turned_instructions"
    turned = result.metrics.with_columns(measure=pl.col("measure").replace(names))
    few = result.metrics.filter(measure="transfer_pairs").with_columns(value=pl.lit(7.0))
    where = where_to_act(pl.concat([turned, few]), "taught")
    assert where.by == "likelier" and where.layer == result.where_to_act.layer
    assert "only 7 pairs of a prompt and another task are answered as their own task, 30 are needed" in where.sentence
    assert f"of {where.pairs} pairs the other task's answer, less likely before, is the likelier" in where.sentence


def test_where_right_answers_are_a_control_nothing_is_said_of_their_lack(result):
    random = result.metrics.filter(pl.col("control") == "random", pl.col("experiment") == "transfer")
    answers = random.with_columns(control=pl.lit("answers"))
    where = where_to_act(pl.concat([result.metrics, answers]), "taught")
    assert where.by == "answers" and "could not be made a control" not in where.sentence


@pytest.mark.parametrize("without", ["output", "input"])
def test_without_outputs_or_inputs_the_layer_that_reads_labels_is_told_as_correlation(place, without):
    rows = [{**row, "output": None} for row in prompts()]
    if without == "input":
        rows = [
            {"prompt": f"{row['instruction']} {row['input']}", "output": row["output"], "task": row["task"]}
            for row in prompts()
        ]
    seen = nucleate.probe(place / "taught", rows, **QUICK)
    where = seen.where_to_act
    best = seen.metrics.filter(measure="best_readable_layer", control="none")["value"].item()
    assert where.by == "correlation" and where.turned is None and where.strength is None
    read = main_read(seen.metrics).filter(measure="linear_accuracy", split="validation", control="none")
    read = dict(read.select("layer", "value").rows())
    assert where.layer == max((1, 2), key=lambda layer: read[layer])  # between the embedding and the norm
    told = f"no vector can be added there: at layer {where.layer} one can"
    assert (told in where.sentence) == (best in (0, 3))
    assert set(seen.steering_vector("french").layers) == {where.layer}
    assert f"labels are read best off layer {best:.0f}" in where.sentence and "correlation, no cause" in where.sentence
    words = seen.verdict.startswith("no more than the words")
    assert ("(no more than the words), which is correlation" in where.sentence) == words
    assert "not measured" in where.sentence and seen.metrics.filter(experiment="transfer").is_empty()


def test_too_few_pairs_of_any_kind_are_told_with_their_number(place):
    rows = [row for row in prompts(verbs=2) if row["task"] in LANGUAGES[:2]]
    where = nucleate.probe(place / "taught", rows, **QUICK).where_to_act
    assert where.by == "correlation" and "cannot be told by moving states: only 24 pairs" in where.sentence


def test_a_look_at_a_training_moves_nothing(place, tmp_path, monkeypatch):
    def never(*arguments, **named):
        raise AssertionError("a look pays for it")

    monkeypatch.setattr(one_model, "moved", never)
    model, tokenizer = load_network(place / "taught")
    live = LiveProbe.of(prompts(), tmp_path / "live", ProbeSettings(**QUICK))
    live.begin(model, tokenizer, 0, resume=False, overwrite=False, go_on="", progress=lambda text, fraction: None)
    live.look(model, tokenizer, 0, None, lambda text, fraction: None)
    seen = live.end()
    assert seen.where_to_act.by == "correlation"
    with pytest.raises(Refused, match="keep no means"):
        seen.steering_vector("french", layer=1)


def test_a_layer_at_which_no_vector_is_added_is_told_with_the_best_one_between(result):
    kept = result.metrics.filter(pl.col("experiment") != "transfer")
    last = kept.with_columns(
        value=pl.when(measure="best_readable_layer", control="none").then(3.0).otherwise(pl.col("value"))
    )
    where = where_to_act(last, "taught")
    assert where.layer in (1, 2) and f"there: at layer {where.layer} one can, off which" in where.sentence
    between = last.with_columns(
        value=pl.when(measure="best_readable_layer", control="none").then(1.0).otherwise(pl.col("value"))
    )
    where = where_to_act(between, "taught")
    assert where.layer == 1 and "no vector can be added" not in where.sentence


# --- at what price ----------------------------------------------------------------------------------------------------


def test_five_layers_are_spread_between_the_embedding_and_the_last_one():
    def of(depth, thorough=False, layers=None):
        shape = SimpleNamespace(
            config=SimpleNamespace(is_encoder_decoder=False), get_output_embeddings=lambda: torch.nn.Identity()
        )
        subject = SimpleNamespace(
            shape=shape, layers=lambda asked: list(range(depth + 1)) if asked is None else list(asked)
        )
        return movable(SimpleNamespace(settings=ProbeSettings(thorough=thorough, layers=layers)), subject)

    assert of(30) == [5, 10, 15, 20, 25] and of(12) == [2, 4, 6, 8, 10] and of(6) == [1, 2, 3, 4, 5]
    assert of(3) == [1, 2] and of(2) == [1] and of(1) == []
    assert of(12, thorough=True) == list(range(1, 12)) and of(12, layers=[0, 7, 12]) == [7]


def test_what_is_moved_stands_in_the_announced_workload_and_not_in_that_of_a_look(place, capsys):
    subject = Subject("taught", str(place / "taught"), words_of(), {})
    study = ProbeStudy.of(read_prompts(prompts()), ProbeSettings(**QUICK))
    whole, look = (workload_of(study, [subject], text=False, act=act).seconds for act in (True, False))
    bare = [{**row, "output": None} for row in prompts()]
    without = ProbeStudy.of(read_prompts(bare), ProbeSettings(**QUICK))
    assert whole > look
    assert (
        workload_of(without, [subject], text=False).seconds
        == workload_of(without, [subject], text=False, act=False).seconds
    )
    asked = ["probe", str(place / "taught"), str(place / "prompts.jsonl"), "--estimate"]
    assert main(asked) == 0 and "to move states from task to task" in capsys.readouterr().out


def test_what_was_read_already_and_shared_beginnings_change_no_number():
    made = instances()
    given = {"seed": 7, "arms": tuple(STRENGTHS), "untrained": network(works=False)}
    plain = transfer(network(), TOKENIZER, made, sides(made), **given)
    reading = read_prompts_states(network(), TOKENIZER, made, reads={"input": [0, 1, 2]})
    quick = transfer(network(), TOKENIZER, made, sides(made), reading=reading, **given)
    key = lambda row: tuple(str(row.get(name)) for name in ("split", "layer", "arm", "control", "measure"))  # noqa: E731
    assert len(plain.rows) > 100
    for one, other in zip(sorted(plain.rows, key=key), sorted(quick.rows, key=key), strict=True):
        assert key(one) == key(other) and one["value"] == pytest.approx(other["value"])
    assert {row["split"] for row in quick.rows} == set(SPLITS)


# --- steering vectors -------------------------------------------------------------------------------------------------


def test_a_steering_vector_is_the_difference_of_means_taken_by_hand(place, result):
    model, tokenizer = load_network(place / "taught")
    asked = read_prompts(prompts())
    states = read_prompts_states(model, tokenizer, asked.instances, reads={"input": None}).states["input"]
    known = ProbeStudy.of(asked, ProbeSettings()).design.sides[-1].against
    rows = [asked.instances[place] for place in known]
    for layer in (1, 2):
        points = states[layer][known]
        of_input = {
            word: np.mean([p for p, one in zip(points, rows, strict=True) if one.input == word], axis=0)
            for word in WORDS
        }
        less = np.stack([point - of_input[one.input] for point, one in zip(points, rows, strict=True)])
        means = {task: less[[one.task == task for one in rows]].mean(axis=0) for task in LANGUAGES}
        vector = result.steering_vector("french", "spanish", layer=layer)
        assert np.allclose(vector.layers[layer], means["french"] - means["spanish"], atol=1e-5)
        rest = np.mean([mean for task, mean in means.items() if task != "french"], axis=0)
        assert np.allclose(
            result.steering_vector("french", layer=[1, 2]).layers[layer], means["french"] - rest, atol=1e-5
        )
    where = result.where_to_act
    own = result.steering_vector("french")
    assert set(own.layers) == {where.layer} and own.strength == where.strength and own.source is None
    other = result.steering_vector("french", layer=3 - where.layer)
    assert other.strength is None  # nothing was measured there


def test_means_are_less_what_inputs_say_among_tasks_that_share_them_and_raw_with_one_that_shares_none(place):
    def own_words(row):
        return {**row, "input": f"{row['input']}s"} if row["task"] == "italian" else row

    rows = [own_words(row) for row in prompts() if (row["task"], row["input"]) != ("spanish", "house")]
    tokenizer = word_tokenizer(
        sorted({word for row in rows for word in " ".join((row["instruction"], row["input"], row["output"])).split()})
    )
    shape = {"width": 32, "feed_forward": 64, "layers": 3, "heads": 2, "positions": 16, "dropout": 0, "pad": 0}
    model = gpt2(vocabulary=len(tokenizer), seed=1, **shape).eval()
    seen = nucleate.probe(model, rows, tokenizer=tokenizer, **QUICK)
    asked = read_prompts(rows)
    states = read_prompts_states(model, tokenizer, asked.instances, reads={"input": None}).states["input"][2]
    known = ProbeStudy.of(asked, ProbeSettings()).design.sides[-1].against
    some = [asked.instances[place] for place in known]
    raw = {task: states[known][[one.task == task for one in some]].mean(axis=0) for task in LANGUAGES}
    beside = seen.steering_vector("french", "italian", layer=2).layers[2]
    assert np.allclose(beside, raw["french"] - raw["italian"], atol=1e-5)
    among = seen.steering_vector("french", "spanish", layer=2).layers[2]
    assert not np.allclose(among, raw["french"] - raw["spanish"], atol=1e-5)


def test_saved_blocks_count_from_nought_and_move_what_our_layer_moves(place, result, tmp_path):
    """Added by a hook to the output of the block of that number, the logits are those of our own move in the layer."""
    model, tokenizer = load_network(place / "taught")
    vector = result.steering_vector("french", "german", layer=[1, 2])
    file = vector.save(tmp_path / "vector.safetensors")
    blocks = load_file(file)
    assert set(blocks) == {"0", "1"} and all(one.shape == (32,) and one.dtype == np.float32 for one in blocks.values())
    with safe_open(file, "numpy") as opened:
        told = json.loads(opened.metadata()["nucleate"])
    assert told["target"] == "french" and told["source"] == "german" and told["layer_type"] == "decoder_block"
    assert told["model_type"] == "gpt2"
    tokens = tokenizer("Turn the word in German house")["input_ids"]
    everything = np.arange(len(tokenizer))[np.newaxis]

    def hooked(number: int, added: np.ndarray) -> np.ndarray:
        def add(module, given, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, -1] += torch.from_numpy(added)

        handle = model.transformer.h[number].register_forward_hook(add)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -1].numpy()
        handle.remove()
        return logits

    for layer, block in ((1, "0"), (2, "1")):
        placed, states = [(tuple(tokens), len(tokens) - 1)], vector.layers[layer][np.newaxis]
        ours = answers_when_moved(model, placed, layer=layer, states=states, ask=everything).logits[0]
        assert np.allclose(hooked(int(block), blocks[block]), ours, atol=1e-4)
        assert not np.allclose(hooked(int(block) + 1, blocks[block]), ours, atol=1e-2)
    again = result.steering_vector("french", "german", layer=[1, 2]).save(tmp_path / "again.safetensors")
    assert again.read_bytes() == file.read_bytes()


def test_a_control_vector_has_the_names_of_repeng_and_llama_cpp_and_no_first_block(result, tmp_path):
    gguf = pytest.importorskip("gguf")
    vector = result.steering_vector("french", "german", layer=2)
    reader = gguf.GGUFReader(vector.save(tmp_path / "vector.gguf"))
    assert [tensor.name for tensor in reader.tensors] == ["direction.1"]
    assert np.array_equal(reader.tensors[0].data, vector.layers[2]) and reader.tensors[0].data.dtype == np.float32
    text = {
        name: bytes(reader.get_field(name).parts[-1]).decode()
        for name in ("general.architecture", "controlvector.model_hint")
    }
    assert text == {"general.architecture": "controlvector", "controlvector.model_hint": "gpt2"}
    assert reader.get_field("controlvector.layer_count").parts[-1][0] == 1
    with pytest.raises(Refused, match="no place for layer 1"):
        result.steering_vector("french", layer=[1, 2]).save(tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()


def test_steering_vectors_of_that_name_move_what_our_layer_moves(place, result, tmp_path):
    peer = pytest.importorskip("steering_vectors")
    from safetensors.torch import load_file as load_tensors

    file = result.steering_vector("french", "german", layer=2).save(tmp_path / "vector.safetensors")
    theirs = peer.SteeringVector({int(block): one for block, one in load_tensors(file).items()}, "decoder_block")
    assert_moves_alike(place, result, lambda model, tokens: theirs.apply(model, min_token_index=len(tokens) - 1))


def test_repeng_loads_the_control_vector_and_moves_what_our_layer_moves(place, result, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # it was written for numpy 1
    repeng = pytest.importorskip("repeng")
    file = result.steering_vector("french", "german", layer=2).save(tmp_path / "vector.gguf")
    theirs = repeng.ControlVector.import_gguf(file)
    assert theirs.model_type == "gpt2" and set(theirs.directions) == {1}
    model, tokenizer = load_network(place / "taught")
    tokens = tokenizer("house")["input_ids"]  # it moves every token: of one, that is the last
    states = result.steering_vector("french", "german", layer=2).layers[2][np.newaxis]
    everything = np.arange(len(tokenizer))[np.newaxis]
    ours = answers_when_moved(model, [(tuple(tokens), 0)], layer=2, states=states, ask=everything).logits[0]
    controlled = repeng.ControlModel(model, [1])
    controlled.set_control(theirs)
    with torch.no_grad():
        logits = controlled(input_ids=torch.tensor([tokens])).logits[0, -1].numpy()
    assert np.allclose(logits, ours, atol=1e-4)


def assert_moves_alike(place, result, applied):
    model, tokenizer = load_network(place / "taught")
    tokens = tokenizer("Turn the word in German house")["input_ids"]
    states = result.steering_vector("french", "german", layer=2).layers[2][np.newaxis]
    everything = np.arange(len(tokenizer))[np.newaxis]
    ours = answers_when_moved(model, [(tuple(tokens), len(tokens) - 1)], layer=2, states=states, ask=everything)
    with applied(model, tokens), torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -1].numpy()
    assert np.allclose(logits, ours.logits[0], atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("frensh",), "did you mean 'french'"),
        (("french", "french"), "name two tasks"),
        (("french", None, 0), "layer 0 is the embedding"),
        (("french", None, 3), "layer 3 is behind the final norm"),
        (("french", None, 9), "layer 9 is none of this model"),
    ],
)
def test_a_vector_that_cannot_be_made_is_refused(result, asked, why):
    target, source, layer = (*asked, None, None)[:3]
    with pytest.raises(Refused, match=why):
        result.steering_vector(target, source, layer=layer)


def test_a_file_of_another_kind_or_a_model_of_another_name_is_refused(result, tmp_path):
    with pytest.raises(Refused, match=r"\.safetensors or \.gguf"):
        result.steering_vector("french", layer=1).save(tmp_path / "vector.pt")
    with pytest.raises(Refused, match="'tought' was not probed"):
        result.steering_vector("french", layer=1, model="tought")
