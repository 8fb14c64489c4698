"""The paper's networks, and any other causal language model: built, saved and loaded as ordinary Hugging Face folders.

What we train and what others publish travels the same road: weights as safetensors and the tokenizer beside them.
Nothing here opens a pickle, and code that comes with a model runs only where the caller asks for it by name.
"""

import copy
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from nucleate.model.converted import converted, kept_of
from nucleate.model.places import locate, look_at, replacing, weights_of
from nucleate.model.series import base_here
from nucleate.reading import refused_as
from nucleate.refusal import Refused

PAD, UNKNOWN = "<pad>", "<unk>"
_LARGER = 4  # times as many weights as are stored, and no more, may a network have: heads, and what it ties


def gpt2(
    *,
    vocabulary: int,
    width: int,
    feed_forward: int,
    layers: int,
    heads: int,
    positions: int,
    dropout: float,
    pad: int,
    seed: int,
    initial_scale: float = 0.02,
) -> GPT2LMHeadModel:
    """A GPT-2 with fresh weights (deviation `initial_scale`, residual projections by depth, as in GPT-2; head tied to
    the embedding).

    `dropout` holds for embeddings, residuals and attention alike. Equal seeds give equal bytes; the caller's random
    state stays as it was. The paper names no activation: GELU, in its exact form, is ours (docs/paper.md)."""
    if width % heads:
        raise Refused(f"model.width {width} is no multiple of model.heads {heads}: choose another")
    if not 0 <= pad < vocabulary:
        raise Refused(f"pad id {pad} lies outside the vocabulary of {vocabulary}: take one below it")
    settings: dict[str, Any] = dict(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=width,
        n_inner=feed_forward,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        activation_function="gelu",
        initializer_range=initial_scale,
        pad_token_id=pad,
        bos_token_id=None,  # GPT-2's own, 50256, lies outside a small vocabulary
        eos_token_id=None,
        # With dropout, torch's fused attention on a CPU falls back to a slower path than plain matrix products.
        attn_implementation="eager",
    )
    config = GPT2Config(**settings)
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU, whatever device they go to
        torch.default_generator.manual_seed(seed % 2**63)
        return GPT2LMHeadModel(config)


def word_tokenizer(symbols: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token per word, split at blanks: `<pad>` is 0, `<unk>` (any word not listed) 1, then the symbols in order."""
    words = [PAD, UNKNOWN, *symbols]
    for symbol in symbols:
        if not symbol or any(c.isspace() for c in symbol):
            raise Refused(f"symbol {symbol!r} is empty or holds a blank: a word-level vocabulary needs single words")
    if len(set(words)) != len(words):
        twice = next(w for i, w in enumerate(words) if w in words[:i])
        raise Refused(f"symbol {twice!r} stands twice in the vocabulary: leave one out")
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN)


def save_network(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load; it appears whole or not at all.

    Equal weights give equal bytes."""
    with replacing(Path(folder)) as new, _quiet():
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)


def load_network(
    path: str | Path,
    *,
    tokenizer: Any = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    **loading: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Network, in eval mode, and tokenizer (its own unless one is given) from a local folder, a GGUF file or a hub id;
    what is local or cached needs no connection. Causal language models come with their head, all others bare.

    `dtype` is the precision that the weights are cast to (`auto`: as stored). `loading` goes to `from_pretrained`:
    `device_map`, `quantization_config`, `attn_implementation`, … (`device` is not used with the first two)."""
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise Refused(f"dtype {dtype!r} is none of torch's: take float32, bfloat16, float16 or auto")
    folder, common = _ordinary(path, revision=revision, trust_remote_code=trust_remote_code)
    model = _load_weights(folder, str(path), common, {"dtype": dtype, **loading})
    if tokenizer is None:
        with _quiet(gguf="gguf_file" in common):
            tokenizer = _load_tokenizer(folder, str(path), common)
    if "device_map" not in loading and "quantization_config" not in loading:
        model.to(torch.device(device))
    return model.eval(), tokenizer


def _load_weights(folder: str, name: str, common: Mapping[str, Any], loading: dict[str, Any]) -> Any:
    """The network alone; refused where it lacks some of its weights."""
    if "gguf_file" not in common:
        loading.setdefault("use_safetensors", True)
        look_at(Path(folder))
    trusted = common["trust_remote_code"]
    with _quiet(gguf="gguf_file" in common), refused_as(lambda error: _reason(name, error, trusted)):
        kind: Any = AutoModelForCausalLM
        if base_here(Path(folder)) is None:
            config = AutoConfig.from_pretrained(folder, **common)
            kind = _kind(config)
            if "gguf_file" in common:
                loading["config"] = config  # to parse it once more takes seconds
            else:
                _check_sizes(Path(folder), config, name, kind)
        asked = {"output_loading_info": True, **common, **loading}
        model, report = kind.from_pretrained(folder, **asked)
        if kind is AutoModelForCausalLM and _lacks_its_head_alone(model, report["missing_keys"]):
            del model  # of an embedding or reward model; only one of them has room
            model, report = AutoModel.from_pretrained(folder, **asked)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))  # which is never asked
    if missing:  # transformers would fill them at random
        raise Refused(f"model {name}: holds no weights for {missing[0]} (and {len(missing) - 1} more): save all of it")
    if "gguf_file" in common:
        _forget_gguf(model)
    return model


def _check_sizes(folder: Path, config: Any, name: str, kind: Any = None) -> None:
    """Refuse settings that speak of a network far larger than the weights beside them, before memory is taken for it.
    How many these are, the beginnings of their files tell; without its `kind`, only its layers are looked at."""
    if not folder.is_dir() or hasattr(config, "quantization_config") or getattr(config, "auto_map", None):
        return
    tensors = stored = 0
    for file in weights_of(folder):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                tensors, stored = tensors + 1, stored + math.prod(opened.get_slice(key).get_shape())
    layers = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    what = f"{layers} layers" if layers > tensors > 0 else ""
    if kind is not None and not what:
        with torch.device("meta"):
            needed = sum(one.numel() for one in kind.from_config(config).parameters())
        what = f"{needed:,} weights" if needed > _LARGER * stored else ""
    if what:
        raise Refused(
            f"model {name}: its config.json speaks of {what}, but its files hold {stored:,} weights in {tensors} "
            "tensors: they do not belong together"
        )


def _ordinary(path: str | Path, *, revision: str | None, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """The folder or hub id to load from, and what every loading function is told. Of a GGUF file it is the folder of
    its converted weights, unless none can be kept."""
    folder, common = locate(path, revision=revision, trust_remote_code=trust_remote_code)
    if "gguf_file" not in common:
        return folder, common

    def convert(place: Path) -> None:
        model = _load_weights(folder, str(path), common, {"dtype": "float32"})
        with _quiet(gguf=True):
            model.save_pretrained(place)
            with suppress(Refused):  # without a tokenizer it can still be read by one that is given
                _load_tokenizer(folder, str(path), common).save_pretrained(place)

    kept = converted(Path(path).expanduser(), convert)
    return (folder, common) if kept is None else locate(kept, revision=None, trust_remote_code=trust_remote_code)


def as_network(model: Any, tokenizer: Any = None, **loading: Any) -> tuple[Any, Any]:
    """Network and tokenizer from a path, a hub id or a loaded network. The latter stays as it is, and its tokenizer is
    sought where it was loaded from unless one is given."""
    if isinstance(model, str | Path):
        return load_network(model, tokenizer=tokenizer, **loading)
    if not hasattr(model, "config") or not hasattr(model, "parameters"):
        raise Refused(f"a {type(model).__name__} is no network: give a path, a hub id or a transformers model")
    if tokenizer is None:
        source = getattr(model, "name_or_path", "")
        if not source:
            raise Refused(f"this {type(model).__name__} comes without a tokenizer: give it as tokenizer=…")
        tokenizer = _load_tokenizer(source, source, {"trust_remote_code": loading.get("trust_remote_code", False)})
    return model, tokenizer


def tokenizer_of(
    model: Any, tokenizer: Any = None, *, revision: str | None = None, trust_remote_code: bool = False, **loading: Any
) -> Any:
    """The tokenizer that `as_network` will give, from what can be seen without opening the weights: a folder that
    holds none is refused."""
    if not isinstance(model, str | Path):
        return as_network(model, tokenizer, trust_remote_code=trust_remote_code)[1]
    folder, common = _ordinary(model, revision=revision, trust_remote_code=trust_remote_code)
    if "gguf_file" not in common:
        look_at(Path(folder))
    with _quiet(gguf="gguf_file" in common):
        return tokenizer if tokenizer is not None else _load_tokenizer(folder, str(model), common)


def network_shape(model: Any, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The network of a path, a hub id, a GGUF file or a configuration, without weights: its settings are enough."""
    if hasattr(model, "parameters"):
        return model
    with _quiet(), refused_as(lambda error: _reason(str(model), error, trust_remote_code)):
        config = model
        if isinstance(model, str | Path):
            folder, common = locate(model, revision=revision, trust_remote_code=trust_remote_code)
            if "gguf_file" in common and (kept := kept_of(Path(model).expanduser())):
                folder, common = locate(kept, revision=None, trust_remote_code=trust_remote_code)
            if base := base_here(Path(folder)):
                folder, common = locate(base, revision=None, trust_remote_code=trust_remote_code)
            config = AutoConfig.from_pretrained(folder, **common)
            _check_sizes(Path(folder), config, str(model))
        with torch.device("meta"):
            return _kind(config).from_config(config, trust_remote_code=trust_remote_code)


def untrained(model: Any, seed: int) -> Any:
    """The same architecture with fresh weights, in eval mode, on the same device and in the same precision. Equal
    seeds give equal weights."""
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = copy.deepcopy(own.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    reference = next(p for p in own.parameters() if p.is_floating_point())
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # drawn on the CPU, whatever device they go to
        torch.default_generator.manual_seed(seed % 2**63)
        fresh = type(own)(config)
    return fresh.to(device=reference.device, dtype=reference.dtype).eval()


def _kind(config: Any) -> Any:
    """The class that loads it: with a head where it is a causal language model, else the bare network, and of T5 and
    its kin the encoder alone."""
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return AutoModelForCausalLM
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if causal and not masked:
        return AutoModelForCausalLM
    return AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel


def _lacks_its_head_alone(model: Any, missing: Iterable[str]) -> bool:
    top = model.get_output_embeddings()
    own = {name for name, weight in model.named_parameters() if top is not None and weight is top.weight}
    return bool(missing) and set(missing) <= own


def _load_tokenizer(folder: str, name: str, common: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Its own; of an adapter without one, that of its base."""
    if not (Path(folder) / "tokenizer_config.json").exists() and (base := base_here(Path(folder))):
        folder, common = locate(base, revision=None, trust_remote_code=common["trust_remote_code"])

    def why(error: BaseException) -> str:
        if "trust_remote_code" in str(error) and not common["trust_remote_code"]:
            return _reason(name, error, False)
        return f"model {name}: has no tokenizer that can be loaded ({_first_line(error)}): save one beside the weights"

    with refused_as(why, unseen=True):
        tokenizer = AutoTokenizer.from_pretrained(folder, **common)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what a missing tokenizer is silently replaced by
        raise Refused(f"model {name}: has no tokenizer: save one beside the weights")
    return tokenizer


def _forget_gguf(model: Any) -> None:
    """The weights are ordinary ones now; while the network says otherwise, it can be neither saved nor copied."""
    model.hf_quantizer, model.is_quantized = None, False
    for holder, name in ((model.config, "quantization_config"), (model, "quantization_method")):
        if hasattr(holder, name):
            delattr(holder, name)


def _reason(name: str, error: BaseException, trusted: bool) -> str:
    text = str(error)
    if "trust_remote_code" in text and not trusted:
        return f"model {name}: runs code of its own: read it, then pass trust_remote_code=True if you trust it"
    if "safetensors" in text and "not appear" in text:
        return f"model {name}: has no safetensors, and a pickle could run code: convert it where you trust it"
    return f"model {name}: cannot be loaded: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


@contextmanager
def _quiet(gguf: bool = False) -> Iterator[None]:
    """Without transformers' progress bars: the library is silent, the command line draws its own. The bar of a GGUF
    file knows no switch."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()) if gguf else nullcontext():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
