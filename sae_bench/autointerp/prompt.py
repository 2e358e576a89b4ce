"""What the judge is told: one file a prompt, with a version, hashed into every record.

A prompt has a system and a user part; some have another user part, for a question about one excerpt alone. It may have
examples: small models do as they see it done. These stand before the question as turns of the conversation, in a prompt
with two user parts only before a question about one excerpt.

What was read from a corpus or answered by a model stands in a prompt only as JSON, between marks that no text can hold
because they are drawn from a hash of that text: a corpus can neither end its quotation nor name another excerpt.
Characters that servers turn into control tokens (`<`, `[INST]`) are escaped as JSON allows.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sae_bench.autointerp.examples import drawer

FOLDER = Path(__file__).with_name("prompts")
_CONTROL = re.compile(r"<|\uff5c|\[(?=/?[A-Z_]{3,}\])")
_ALPHABET = "bcdfghjkmnpqrstvwxz23456789"  # no vowels: an identifier is no word

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """A prompt's file."""

    name: str
    version: str
    sha256: str
    system: str
    user: str
    one: str | None = None
    """The user part where only one excerpt is asked about."""
    examples: tuple[tuple[str, str], ...] = ()
    """Data and answer of each."""

    @staticmethod
    @cache
    def load(name: str) -> "Prompt":
        content = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
        first, *rest = re.split(r"^--- (\w+)\n", content, flags=re.MULTILINE)
        parts: dict[str, list[str]] = {}
        for title, text in zip(rest[::2], rest[1::2], strict=True):
            parts.setdefault(title, []).append(text.strip())
        (system,), (user,), one = parts["system"], parts["user"], parts.get("one")
        examples = zip(parts.get("example", ()), parts.get("answer", ()), strict=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        return Prompt(name, first.split()[1], digest, system, user, one[0] if one else None, tuple(examples))

    @property
    def text(self) -> str:
        """All that it says in words of our own."""
        return "\n".join((self.system, self.user, self.one or "", *(answer for _, answer in self.examples)))

    @property
    def identity(self) -> dict[str, str]:
        """What a record says of it."""
        return {"version": self.version, "sha256": self.sha256}

    def messages(self, data: Mapping[str, Any], *, one: bool = False, **words: object) -> list[Message]:
        """The prompt with `data` quoted in it; `words` are our own and stand as they are."""
        quoted = quote(data)
        fence = "data-" + "".join(drawer("fence", self.sha256, quoted).choices(_ALPHABET, k=12))
        values = {"fence": f"[{fence}]"} | {key: str(value) for key, value in words.items()}

        def filled(text: str, data: str = quoted) -> str:
            return re.sub(r"\{\{(\w+)\}\}", lambda found: (values | {"data": data})[found[1]], text)

        user = self.one if one and self.one else self.user
        turns = [("system", filled(self.system))]
        for example, answer in self.examples if one or not self.one else ():
            turns += [("user", filled(user, example)), ("assistant", answer)]
        return [{"role": role, "content": content} for role, content in (*turns, ("user", filled(user)))]


def quote(data: Mapping[str, Any]) -> str:
    """JSON in which no text commands a chat template."""
    text = json.dumps(data, ensure_ascii=False)

    def harmless(string: re.Match[str]) -> str:
        return _CONTROL.sub(lambda char: f"\\u{ord(char[0]):04x}", string[0])

    return re.sub(r'"(?:[^"\\]|\\.)*"', harmless, text)  # strings alone: JSON's own brackets stay


def identifiers(excerpts: Sequence[object]) -> list[str]:
    """A short name for each excerpt, drawn from a hash of them all: no excerpt can know its own or another's."""
    draw = drawer("identifiers", json.dumps(excerpts))
    names: list[str] = []
    while len(names) < len(excerpts):
        name = "".join(draw.choices(_ALPHABET, k=3))
        if name not in names:
            names.append(name)
    return names
