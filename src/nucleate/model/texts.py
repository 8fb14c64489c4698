"""Instances as what a network is fed: their text by a template or a chat template, its tokens, the place of each read.

Everything is tokenised as one text, and the token that is read is found by its offsets: where words merge across the
border of two parts, it is the last token that holds some of the wanted part.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from nucleate.model.deadline import deadline
from nucleate.refusal import Refused

READS = {
    "input": "input",
    "instruction_end": "instruction",
    "answer_start": "text",
}  # the part whose last token is read
Chat = Sequence[Mapping[str, str]]
Span = tuple[int, int]
_MARK = "\ue000\ue001"  # private characters, which stand in no template
RENDERED_WITHIN, LONGEST = 5.0, 10_000_000  # seconds and characters of one prompt, by a model's own template
PLAIN_CHATS = "chats are read as plain text, without roles; chat (--chat) reads them in the model's own chat template"


class HasPrompts(Protocol):
    """Anything with instruction, input and output, such as an instance of a dataset."""

    @property
    def instruction(self) -> str: ...
    @property
    def input(self) -> str: ...
    @property
    def output(self) -> str | None: ...


@dataclass(frozen=True)
class Prompt:
    """What is fed for an instance."""

    tokens: tuple[int, ...]
    places: tuple[int, ...]  # (read,) which of them are read
    answer: tuple[int, ...]  # the tokens of its output, if it has one


@dataclass(frozen=True)
class _Text:
    text: str
    spans: Mapping[str, Span]  # part -> from where to where
    answer: str = ""  # what goes on behind the text


def prompts_of(
    tokenizer: Any,
    instances: Sequence[HasPrompts],
    *,
    reads: Sequence[str],
    template: str | None = None,
    messages: Sequence[Chat | None] | None = None,
    chat: bool = False,
    closed: bool = False,
) -> list[Prompt | str]:
    """(instance,) its prompt, or in a few words why it has none.

    With `chat` the text is the user's turn in the tokenizer's chat template; `messages` are then all the turns of
    those that have some. `closed` keeps what a tokenizer puts behind a text (encoders; no answer can follow)."""
    for read in reads:
        check_read(read)
    check_offsets(tokenizer)
    if template is None:
        template = "{instruction} {input}" if any(one.input for one in instances) else "{instruction}"
    render = _Chats(tokenizer) if chat else None
    texts = []
    for number, one in enumerate(instances):
        turns = messages[number] if messages is not None else None
        if render is not None and turns:
            text = render.whole(turns)
        else:
            text = fill(template, {"instruction": one.instruction, "input": one.input}, reads)
            text = text if render is None else render.turn(text)
        output = one.output or ""
        joint = render.joint if render is not None else "" if text.text[-1:].isspace() else " "
        texts.append(replace(text, answer=joint + output if output.strip() and not closed else ""))
    return list(_prompts(tokenizer, texts, reads, special=not chat, closed=closed))


def _prompts(
    tokenizer: Any, texts: Sequence[_Text], reads: Sequence[str], *, special: bool, closed: bool
) -> Iterator[Prompt | str]:
    alone = encode(tokenizer, [one.text for one in texts], special=special)
    followed = encode(tokenizer, [one.text + one.answer for one in texts], special=special)
    for text, (ids, offsets), (longer, its_offsets) in zip(texts, alone, followed, strict=True):
        places = []
        for read in reads:
            span = text.spans[READS[read]]
            place = last_token(offsets, span)
            if place is None:
                part = text.text[slice(*span)]
                yield f"its {READS[read]} " + (f"{part!r} has no token" if part else "is empty")
                break
            places.append(place)
        else:
            end = len(ids) if closed else _end(offsets)
            tokens, answer = tuple(ids[:end]), tuple(longer[end : _end(its_offsets)])
            if not end:
                yield "it has no token"
                continue
            if longer[:end] != ids[:end] and text.answer:  # the answer would change the prompt's last token
                answer = tuple(tokenizer(text.answer, add_special_tokens=False)["input_ids"])
            yield Prompt(tokens, tuple(places), answer if text.answer else ())


def tokenise(
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    template: str = "{instruction} {input}",
    answers: Sequence[str] | None = None,
) -> list[tuple[tuple[int, ...], int]]:
    """The tokens of each prompt (and its answer), tokenised as one text, and the place of its input's last token."""
    check_offsets(tokenizer)
    texts = [fill(template, {"instruction": instruction, "input": given}, ["input"]) for instruction, given in pairs]
    encoded = encode(tokenizer, [t.text + (answers[n] if answers is not None else "") for n, t in enumerate(texts)])
    rows = []
    for number, (text, (ids, offsets)) in enumerate(zip(texts, encoded, strict=True)):
        first, end = text.spans["input"]
        if first == end:
            raise Refused(f"prompt {number}: its input is empty: fill it or leave it out")
        place = last_token(offsets, (first, end))
        if place is None:
            raise Refused(f"prompt {number}: its input {text.text[first:end]!r} has no token: leave it out")
        rows.append((tuple(ids[: _end(offsets)]), place))
    return rows


def fill(template: str, parts: Mapping[str, str], reads: Sequence[str]) -> _Text:
    """The template with its fields filled, braces in the parts being text; refused where a read's part is not in it."""
    text = ""
    spans: dict[str, Span] = {}
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise Refused(f"template {template!r}: {error}: double braces that are meant as such") from error
    for before, name, _, _ in fields:
        text += before
        if name is None:
            continue
        if name not in parts:
            raise Refused(
                f"template {template!r}: {{{name}}} is unknown: it may hold {{instruction}} (a whole prompt is "
                "one) and {input}"
            )
        spans[name] = (len(text), len(text) + len(parts[name]))
        text += parts[name]
    spans["text"] = (0, len(text))
    for read in reads:
        if READS[read] not in spans:
            raise Refused(f"template {template!r}: has no {{{READS[read]}}} to read: add it, or read answer_start")
    return _Text(text, spans)


def encode(
    tokenizer: Any, texts: Sequence[str], *, special: bool = True
) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """The ids of each text and from where to where each of them lies in it."""
    encoded = tokenizer(list(texts), return_offsets_mapping=True, add_special_tokens=special, verbose=False)
    return zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)


def last_token(offsets: Sequence[Span], span: Span) -> int | None:
    """The place of the last token that holds some of the span."""
    first, end = span
    return next((k for k in range(len(offsets) - 1, -1, -1) if _overlap(offsets[k], first, end)), None)


def _overlap(token: Span, first: int, end: int) -> bool:
    return token[0] < token[1] and token[0] < end and token[1] > first


def _end(offsets: Sequence[Span]) -> int:
    """How many tokens there are up to the last that spans text: a closing special token spans none."""
    return next((k + 1 for k in range(len(offsets) - 1, -1, -1) if offsets[k][0] < offsets[k][1]), 0)


def check_read(read: str) -> None:
    if read not in READS:
        raise Refused(f"read {read!r} is unknown: take one of {', '.join(READS)}")


def check_offsets(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise Refused("the tokenizer tells no offsets, so the read token cannot be found: give a fast one")


class _Chats:
    """The tokenizer's chat template, which writes its special tokens as text, up to where the answer begins."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise Refused("the tokenizer has no chat template: leave the chat option away, or save one beside it")
        self._tokenizer = tokenizer
        asked = [{"role": "user", "content": _MARK}]
        rendered = self._render(asked)
        self._before = rendered.partition(_MARK)[0]
        self.joint = self._joint(rendered, [*asked, {"role": "assistant", "content": _MARK * 2}])

    def _joint(self, asked: str, answered: Chat) -> str:
        """The blanks between the prompt and its answer: none in most templates, one in Llama 2's."""
        try:
            whole = self._render(answered, ask=False)
        except Refused:
            return ""
        before, answer, _ = whole.partition(_MARK * 2)
        joint = before[len(asked) :]
        return joint if answer and before.startswith(asked) and not joint.strip() else ""

    def whole(self, turns: Chat) -> _Text:
        text = self._render(turns)
        return _Text(text, dict.fromkeys(READS.values(), (0, len(text))))

    def turn(self, given: _Text) -> _Text:
        """The text as the user's only turn; templates may cut the blanks around it."""
        text, own = self._render([{"role": "user", "content": given.text}]), given.text.strip()
        start = text.find(own, len(self._before)) - (len(given.text) - len(given.text.lstrip()))
        if not text.startswith(self._before) or own not in text[len(self._before) :]:
            raise Refused(f"the chat template changes the text {own[:60]!r}: give the prompts without the chat option")
        moved = {part: (first + start, end + start) for part, (first, end) in given.spans.items()}
        return _Text(text, moved | {"text": (0, len(text))})

    def _render(self, turns: Chat, *, ask: bool = True) -> str:
        try:
            with deadline(RENDERED_WITHIN):  # in the sandbox of transformers, which ends no loop
                text = str(self._tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask))
        except TimeoutError:
            told = f"the chat template takes longer than {RENDERED_WITHIN:g} s for one prompt"
            raise Refused(f"{told}: give the prompts without the chat option, or another template") from None
        except Exception as error:  # a template may raise whatever it likes
            raise Refused(f"the chat template refuses a prompt ({' '.join(str(error).split())[:200]})") from error
        if len(text) > LONGEST:
            told = f"the chat template makes {len(text):,} characters of one prompt"
            raise Refused(f"{told}, and {LONGEST:,} at most are read: give the prompts without the chat option")
        return text
