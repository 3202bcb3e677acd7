"""How a text becomes a prompt, and which of its tokens is the state: checked once for all."""

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CUTS = ("right", "left", "middle")
# where a template has the text
PLACE = "{text}"
# what `read_at` may be beside an index and a marker
READ_AT = ("last", "text")


@dataclass(frozen=True)
class Prompting:
    r"""How a text becomes a prompt, and which of its tokens is the state.

    Attributes
    ----------
    template
        What stands around every text, for example ``"Review: {text}\nSentiment:"``; with ``chat``,
        around the text in the user's message.
    chat
        Put it into the tokenizer's chat template: the message of a user, and the header of the
        answer.
    system_message, answer
        With ``chat``: what the system says before, and how the answer begins.
    read_at
        The token whose state is meant: "last", the last one of the prompt; "text", the last one of
        the text; a whole number, counted from 0 or, if it is negative, from the end of the prompt
        (after cutting); any other string is a marker, whose end is meant (of the last one, where
        it stands there several times). No later token is fed.
    cut
        Where a text is cut that is too long: "right", "left" or "middle".
    max_tokens
        What is longer is too long.

    Raises
    ------
    ValueError, TypeError
        If one of them is not what it must be, or does not go with the others.

    Examples
    --------
    >>> Prompting(template="Review: {text}").attrs
    {'template': 'Review: {text}', 'read_at': 'last', 'cut': 'right', 'max_tokens': 128}
    """

    template: str | None = None
    chat: bool = False
    system_message: str | None = None
    answer: str | None = None
    read_at: str | int = "last"
    cut: str = "right"
    max_tokens: int = 128

    def __post_init__(self):
        _check_strings(self)
        if self.template is not None and self.template.count(PLACE) != 1:
            raise ValueError(
                f"`template` must hold {PLACE} once, where the text goes; got "
                f"{_shown(self.template)} with {self.template.count(PLACE)} of them. Write it as "
                f"in 'Review: {PLACE}'."
            )
        if not isinstance(self.chat, bool):
            raise TypeError(f"`chat` must be True or False; got {_shown(self.chat)}. Write True.")
        for name in ("system_message", "answer"):
            if getattr(self, name) is not None and not self.chat:
                raise ValueError(
                    f"`{name}` must come with `chat`, whose template has a place for it; got "
                    f"{_shown(getattr(self, name))} without. Add `chat`, or leave it out."
                )
        if self.cut not in CUTS:
            raise ValueError(
                f"`cut` must be one of {CUTS}; got {_shown(self.cut)}. The default is 'right'."
            )
        for name, value in (("max_tokens", self._max_tokens()), ("read_at", self._read_at())):
            object.__setattr__(self, name, value)

    @classmethod
    def stored(cls, attrs: Mapping[str, Any]) -> "Prompting":
        """That of a result, from its attrs; what older ones lack has its default."""
        found = {name: attrs[name] for name in cls.__dataclass_fields__ if name in attrs}
        if "chat" in found:
            found["chat"] = bool(found["chat"])
        return cls(**found)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is put around a text."""
        return self.template is None and not self.chat

    @property
    def marker(self) -> str | None:
        """The marker where the state is read, if there is one."""
        return self.read_at if isinstance(self.read_at, str) and self._is_marker else None

    @property
    def attrs(self) -> dict[str, str | int]:
        """What results say of it: numbers and strings."""
        given = asdict(self) | {"chat": 1 if self.chat else None}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def _is_marker(self) -> bool:
        return self.read_at not in READ_AT

    def _max_tokens(self) -> int:
        try:
            value = operator.index(self.max_tokens)
        except TypeError:
            value = 0
        if value < 1:
            raise ValueError(
                f"`max_tokens` must be a whole number >= 1; got {_shown(self.max_tokens)}. "
                "The default is 128."
            )
        return value

    def _read_at(self) -> str | int:
        given = self.read_at
        if isinstance(given, str) and given:
            return given
        if not isinstance(given, (str, bool)):
            try:
                return operator.index(given)
            except TypeError:
                pass
        raise ValueError(
            "`read_at` must be 'last', 'text', a whole number, or a marker in the prompt; got "
            f"{_shown(given)}. The default is 'last'."
        )


def in_words(prompting: Prompting) -> str:
    """What is put around texts and where the state is read; empty if neither is unusual.

    Examples
    --------
    >>> in_words(Prompting(template="Review: {text}", read_at=-2))
    "texts in the template 'Review: {text}', read at token -2"
    """
    told = []
    if prompting.template is not None:
        told.append(f"texts in the template {prompting.template!r}")
    if prompting.chat:
        told.append("in the tokenizer's chat template" if told else "texts in the chat template")
    if prompting.system_message is not None:
        told.append(f"system message {prompting.system_message!r}")
    if prompting.answer:
        told.append(f"answer begun with {prompting.answer!r}")
    if prompting.marker is not None:
        told.append(f"read at the end of {prompting.marker!r}")
    elif prompting.read_at == "text":
        told.append("read at the last token of the text")
    elif prompting.read_at != "last":
        told.append(f"read at token {prompting.read_at}")
    return ", ".join(told)


def _check_strings(prompting: Prompting) -> None:
    for name in ("template", "system_message", "answer"):
        given = getattr(prompting, name)
        if given is not None and not isinstance(given, str):
            raise TypeError(
                f"`{name}` must be a string; got {_shown(given)}. Leave it out for none."
            )


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
