"""What a language model is told: a prompt has a version, and is hashed into every record.

It is written as text, in the file of who asks it: "version 1", then a part `--- system` and a part `--- user`. It may
have another user part, `--- one`, for a question about one excerpt alone, and demonstrations, `--- example` and
`--- answer`: small models do as they see it done. These stand before the question as turns of the conversation, in a
prompt with two user parts only before a question about one excerpt. What stands in double braces is filled in.

What was read from a corpus or answered by a model stands in a prompt only as JSON, behind marks that no text can hold
because they are drawn from a hash of that text: a corpus can neither end its quotation nor name another excerpt.
Characters that servers turn into control tokens (`<`, `[INST]`) are escaped as JSON allows, and so is what looks like a
mark.

Servers keep what they computed of a prompt for the next one that begins like it. So what differs from question to
question stands last: the mark of a demonstration is its own, and questions about one latent can share theirs.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_bench.autointerp.examples import seeded_random
from sae_bench.errors import UserError, did_you_mean, one_line

_CONTROL = re.compile(r"<|\uff5c|\[(?=/?[A-Z_]{3,}\]|data-)")
_ALPHABET = "bcdfghjkmnpqrstvwxz23456789"  # no vowels: an identifier is no word

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """A prompt, taken apart."""

    version: str
    sha256: str
    system: str
    user: str
    one: str | None = None
    """The user part where only one excerpt is asked about."""
    demonstrations: tuple[tuple[str, str], ...] = ()
    """Data and answer of each."""

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """Take apart what the module describes.

        Raises:
            UserError: a part is missing or unknown, or stands there too often.
        """
        first, *rest = re.split(r"^--- (\w+)\n", text, flags=re.MULTILINE)
        parts: dict[str, list[str]] = {"system": [], "user": [], "one": [], "example": [], "answer": []}
        for title, part in zip(rest[::2], rest[1::2], strict=True):
            if title not in parts:
                raise UserError(f'prompt: unknown part "--- {title}"{did_you_mean(title, parts)}')
            parts[title].append(part.strip())
        n_system, n_user, n_one, n_examples, n_answers = map(len, parts.values())
        whole = (n_system, n_user, n_examples) == (1, 1, n_answers) and n_one <= 1
        if not whole or not re.fullmatch(r"version \S+\s*", first):
            raise UserError(
                f'prompt "{one_line(text)[:40]}...": write "version 1", one part "--- system", one "--- user", at most '
                'one "--- one", and an "--- answer" for every "--- example"'
            )
        digest = hashlib.sha256(text.encode()).hexdigest()
        one = parts["one"][0] if parts["one"] else None
        demonstrations = tuple(zip(parts["example"], parts["answer"], strict=True))
        return cls(first.split()[1], digest, parts["system"][0], parts["user"][0], one, demonstrations)

    @property
    def text(self) -> str:
        """All that it says in words of our own."""
        return "\n".join((self.system, self.user, self.one or "", *(answer for _, answer in self.demonstrations)))

    def messages(
        self, data: Mapping[str, Any], *, one: bool = False, among: object = None, **words: object
    ) -> list[Message]:
        """The prompt with `data` quoted in it; `words` are our own and stand as they are.

        `among`: all that is quoted in questions which shall begin alike, that of this one included.

        Raises:
            UserError: the prompt asks for a word that is not given.
        """
        quoted = quote(data)
        fence = self._fence(quoted if among is None else json.dumps(among))
        own = {key: str(value) for key, value in words.items()}

        def filled(text: str, data: str = quoted, fence: str = fence) -> str:
            given = own | {"data": data, "fence": fence}
            for name in re.findall(r"\{\{(\w+)\}\}", text):
                if name not in given:
                    raise UserError(f"prompt: nothing is given for {{{{{name}}}}}{did_you_mean(name, given)}")
            return re.sub(r"\{\{(\w+)\}\}", lambda found: given[found[1]], text)

        user = self.one if one and self.one else self.user
        turns = [("system", filled(self.system))]
        for example, answer in self.demonstrations if one or not self.one else ():
            turns += [("user", filled(user, example, self._fence(example))), ("assistant", answer)]
        return [{"role": role, "content": content} for role, content in (*turns, ("user", filled(user)))]

    def _fence(self, quoted: str) -> str:
        """A mark that stands in nothing of what it is drawn from."""
        return f"[data-{''.join(seeded_random('fence', self.sha256, quoted).choices(_ALPHABET, k=12))}]"


def quote(data: Mapping[str, Any]) -> str:
    """JSON in which no text commands a chat template."""
    text = json.dumps(data, ensure_ascii=False)

    def harmless(string: re.Match[str]) -> str:
        return _CONTROL.sub(lambda char: f"\\u{ord(char[0]):04x}", string[0])

    return re.sub(r'"(?:[^"\\]|\\.)*"', harmless, text)  # strings alone: JSON's own brackets stay


def identifiers(excerpts: Sequence[object]) -> list[str]:
    """A short name for each excerpt, drawn from a hash of them all: no excerpt can know its own or another's."""
    random = seeded_random("identifiers", json.dumps(excerpts))
    names: list[str] = []
    while len(names) < len(excerpts):
        name = "".join(random.choices(_ALPHABET, k=3))
        if name not in names:
            names.append(name)
    return names
