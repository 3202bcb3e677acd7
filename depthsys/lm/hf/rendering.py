"""What is put around texts: a template, the tokenizer's chat template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from depthsys.lm.hf.causes import first_line
from depthsys.lm.kinds import short
from depthsys.prompting import PLACE, Prompting

# of private use: in no text, and nothing that a template would strip
_PROBE, _SYSTEM = "\ue000", "\ue001"


@dataclass(frozen=True)
class Rendered:
    """Prompts as strings.

    Attributes
    ----------
    strings
        The prompts.
    places
        Where the text of each begins and ends.
    note
        What was done to the texts, in words.
    """

    strings: list[str]
    places: list[tuple[int, int]]
    note: str = ""


def rendered(texts: Sequence[str], tokenizer: Any, prompting: Prompting) -> Rendered:
    """Texts with all that is put around them.

    Raises
    ------
    ValueError
        If the tokenizer has no chat template that can be used as asked for.
    """
    if prompting.is_plain:
        return Rendered(list(texts), [(0, len(text)) for text in texts])
    texts, note = _without_first(texts, tokenizer)
    before, after = around(tokenizer, prompting)
    write = _writer(tokenizer, prompting)
    strings = [write(text) for text in texts]
    for number, string in enumerate(strings):
        whole = len(string) >= len(before) + len(after)
        if not (whole and string.startswith(before) and string.endswith(after)):
            raise ValueError(
                "`chat` must put every text between the same words; the tokenizer's chat template "
                f"writes others around number {number}, {short(texts[number])}. Change that text, "
                "or write a `template` instead."
            )
    places = [(len(before), len(string) - len(after)) for string in strings]
    for number, (string, place) in enumerate(zip(strings, places, strict=True)):
        if (written := string[slice(*place)]).strip() != texts[number].strip():
            raise ValueError(
                "`chat` must leave texts as they are, up to spaces around them; the tokenizer's "
                f"chat template makes {short(written)} of number {number}, "
                f"{short(texts[number])}. Change that text, or write a `template` instead."
            )
    return Rendered(strings, places, note)


def around(tokenizer: Any, prompting: Prompting) -> tuple[str, str]:
    """What stands before and after every text; ValueError as of `rendered`."""
    parts = _writer(tokenizer, prompting)(_PROBE).split(_PROBE)
    if len(parts) != 2:
        raise ValueError(
            "`chat` must put the text into the prompt once; the tokenizer's chat template writes "
            f"it {len(parts) - 1} times. Write a `template` instead."
        )
    system = (prompting.system_message or "").strip()
    if system not in parts[0] or (system and not _writes_system(tokenizer, prompting)):
        raise ValueError(
            f"`system_message` must have a place in the tokenizer's chat template; {short(system)} "
            "is not in the prompt that it makes. Put it into `template`, before {text}."
        )
    return parts[0], parts[1]


def _writes_system(tokenizer: Any, prompting: Prompting) -> bool:
    """Whether a chat template writes what the system says, whose words may be its own, too."""
    return _SYSTEM in _writer(tokenizer, replace(prompting, system_message=_SYSTEM))(_PROBE)


def _writer(tokenizer: Any, prompting: Prompting) -> Callable[[str], str]:
    template = PLACE if prompting.template is None else prompting.template
    if not prompting.chat:
        return lambda text: template.replace(PLACE, text)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "`chat` must be asked of a tokenizer that has a chat template; that of this model has "
            "none. Write a `template`, or take a model that was tuned to chat."
        )
    system = prompting.system_message

    def write(text: str) -> str:
        said = [] if system is None else [{"role": "system", "content": system}]
        said.append({"role": "user", "content": template.replace(PLACE, text)})
        try:
            made = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template raises what its author likes
            cure = "Write a `template` instead."
            if system is not None:
                cure = "Put the `system_message` into `template`, before {text}."
            raise ValueError(
                "`chat` must be what the tokenizer's chat template can write; it says: "
                f"{first_line(error)} {cure}"
            ) from error
        return made + (prompting.answer or "")

    return write


def specials_in(texts: Sequence[str], tokenizer: Any, prompting: Prompting) -> str:
    """In words: which special tokens stand inside texts, beside one that begins them.

    Where nothing is put around texts, one that begins with such a token is a whole prompt, as a
    chat template writes it, and meant so.

    Raises
    ------
    ValueError
        If a text inside a template or a chat is nothing but the token that begins a prompt.
    """
    first, last = (getattr(tokenizer, f"{end}_token", None) for end in ("bos", "eos"))
    inside = [_bare(text, first) for text in texts]
    for number, (text, bare) in enumerate(zip(texts, inside, strict=True)):
        if bare != text and not bare.strip() and not prompting.is_plain:
            raise ValueError(
                f"`prompts` must have words; number {number} is nothing but {first!r}, which "
                "begins a prompt and is left out inside one. Delete it."
            )
    if getattr(tokenizer, "split_special_tokens", False):
        return ""
    tokens = [token for token in getattr(tokenizer, "all_special_tokens", ()) if token]
    if last:  # one at the end ends the text
        inside = [text.rstrip().removesuffix(last) for text in inside]
    if prompting.is_plain:
        inside = [text for text in inside if not text.lstrip().startswith(tuple(tokens))]
    found = [{token for token in tokens if token in text} for text in inside]
    if not (count := sum(map(bool, found))):
        return ""
    names = sorted(set().union(*found))
    shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    return (
        f"{count} of {len(texts)} texts hold special tokens of the tokenizer ({shown}), which were "
        "taken as such and not as words"
    )


def _bare(text: str, first: str | None) -> str:
    """A text without the tokens at its beginning that begin a prompt."""
    while first and (bare := text.lstrip()).startswith(first):
        text = bare.removeprefix(first)
    return text


def _without_first(texts: Sequence[str], tokenizer: Any) -> tuple[list[str], str]:
    """Texts without the token that begins a prompt, which would then stand inside it."""
    first = getattr(tokenizer, "bos_token", None)
    kept = [_bare(text, first) for text in texts]
    count = sum(a != b for a, b in zip(texts, kept, strict=True))
    if not count:
        return kept, ""
    return kept, (
        f"{count} of {len(texts)} texts began with {first!r}, which begins a prompt and not what "
        "stands inside one: it was left out"
    )
