"""Keys and passwords do not leave the process by its log: what looks like one is cut out of whatever is printed.

Libraries put requests, headers and addresses into their messages and exceptions, and people paste logs into issues.
`install_redaction` stands at the places that every such text passes: the class of all log records - a filter would see
one logger or one handler only - Python's hooks for exceptions that nobody caught, and the text of warnings. What
holds no secret passes unchanged.
"""

import json
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

HIDDEN = "[redacted]"
SHORTEST = 8  # characters of a secret; TOKENIZERS_PARALLELISM=true is none

_FIELD = re.compile(r"[a-z_]*")
_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SHAPES = re.compile(
    r"""
    (?<![A-Za-z0-9_]) (?:
        hf_ (?: (?:oauth|jwt)_[\w.=-]+ | [A-Za-z0-9]{16,} )        # Hugging Face
      | sk-[\w-]{16,}                                              # OpenAI, and those who follow it
      | gh[a-z]_[A-Za-z0-9]{20,} | github_pat_\w{20,}
      | AKIA[0-9A-Z]{16} | AIza[\w-]{30,}                          # Amazon, Google
    )
  | ( :// ) [^\s/?\#"'<>]+ (?=@)                         # user:password@ in an address
  | ( (?i: bearer | authorization\W{1,6}basic ) \s+ ) [\w.~+/=-]{8,}
  | ( [?&][\w.-]*(?i: key | token | secret | password | signature | credential )= ) [^\s&\#"'<>]+
    """,
    re.VERBOSE,
)


def redact(text: str, secrets: Iterable[str] | None = None) -> str:
    """The text without secrets: long values of environment variables with telling names, and well-known shapes."""
    for secret in _secrets() if secrets is None else secrets:
        text = text.replace(secret, HIDDEN)
    return _SHAPES.sub(lambda found: "".join(filter(None, found.groups())) + HIDDEN, text)


def redact_json(content: Any) -> Any:
    """What JSON can hold, with every string in it redacted; numbers and the names of fields stay: it stays as valid.

    A key of lower-case letters and underscores is a field's name, whatever the environment holds.
    """
    secrets = _secrets()

    def walk(part: Any) -> Any:
        if isinstance(part, str):
            return redact(part, secrets)
        if isinstance(part, Mapping):
            return {key if _FIELD.fullmatch(key) else redact(key, secrets): walk(value) for key, value in part.items()}
        return [walk(value) for value in part] if isinstance(part, list | tuple) else part

    return walk(content)


def _secrets() -> list[str]:
    """The environment's secrets as they stand in text: plain, quoted for an address, escaped by repr or JSON.

    Where a key lies is no secret: the path of a file or folder that exists is left out. The longest come first, so that
    none is cut by another that is a part of it and leaves its rest.
    """
    values = {value.strip() for name, value in os.environ.items() if _NAME.search(name)}
    forms = {
        form
        for value in values
        if len(value) >= SHORTEST and not (os.path.isabs(value) and os.path.exists(value))
        for form in (value, quote(value, safe=""), repr(value)[1:-1], json.dumps(value)[1:-1])
    }
    return sorted(forms, key=len, reverse=True)


class RedactedRecord(logging.LogRecord):
    """A log record whose message, exception and stack are redacted before any filter or handler sees it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            message = self.getMessage()
        except Exception:  # noqa: BLE001 - whatever a __str__ raises; logging would print the arguments as they are
            self.msg, self.args = f"{redact(repr(self.msg))} (could not be formatted)", ()
        else:
            if (redacted := redact(message)) != message:
                self.msg, self.args = redacted, ()
        if self.exc_info and self.exc_info[0]:
            text = logging.Formatter().formatException(self.exc_info)
            # Formatters take the text; the exception itself would give the secret away.
            if (redacted := redact(text)) != text:
                self.exc_text, self.exc_info = redacted, None
        if self.stack_info:
            self.stack_info = redact(self.stack_info)


@cache
def install_redaction() -> None:
    """Redact every log record, warning and uncaught exception of the process from now on."""
    logging.setLogRecordFactory(RedactedRecord)
    sys.excepthook = _guarded(sys.excepthook, lambda kind, error, trace: error)
    threading.excepthook = _guarded(threading.excepthook, lambda args: args.exc_value)
    sys.unraisablehook = _guarded(sys.unraisablehook, lambda args: args.exc_value)
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: redact(plain(*args, **kwargs))


def _guarded(hook: Callable[..., Any], exception_of: Callable[..., BaseException | None]) -> Callable[..., None]:
    """A hook that prints exceptions with a secret itself, redacted, and leaves all others to `hook`."""

    def guarded(*args: Any) -> None:
        error = exception_of(*args)
        text = "".join(traceback.format_exception(error))
        if (redacted := redact(text)) == text:
            hook(*args)
        else:
            print(redacted, end="", file=sys.stderr)

    return guarded
