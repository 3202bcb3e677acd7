"""What is put around texts: a template, the tokenizer's chat template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from depthsys.lm.hf.causes import first_line
from depthsys.lm.kinds import short
from depthsys.prompting import PLACE, Prompting

# of private use: in no text, and nothing that a template would strip
_PROBE = "\ue000"


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
    if system not in parts[0]:
        raise ValueError(
            f"`system_message` must have a place in the tokenizer's chat template; {short(system)} "
            "is not in the prompt that it makes. Put it into `template`, before {text}."
        )
    return parts[0], parts[1]


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


def _without_first(texts: Sequence[str], tokenizer: Any) -> tuple[list[str], str]:
    """Texts without the token that begins a prompt, which would then stand inside it."""
    first = getattr(tokenizer, "bos_token", None)
    if not first:
        return list(texts), ""
    kept = []
    for text in texts:
        while (bare := text.lstrip()).startswith(first):
            text = bare.removeprefix(first)
        kept.append(text)
    count = sum(a != b for a, b in zip(texts, kept, strict=True))
    if not count:
        return kept, ""
    return kept, (
        f"{count} of {len(texts)} texts began with {first!r}, which begins a prompt and not what "
        "stands inside one: it was left out"
    )
