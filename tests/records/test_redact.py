"""No key leaves by a log line, a traceback or a warning, whoever wrote it; ordinary text stays as it is."""

import json
import logging
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path
from urllib.parse import quote

import pytest

from sae_bench.records import redact as redaction
from sae_bench.records.redact import HIDDEN, RedactedRecord, install_redaction, redact, redact_json

ROOT = Path(__file__).parents[2]
KEY = "correct/horse+battery'staple"
"""No well-known shape: only the environment says that it is secret. Quoted and escaped it reads differently."""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("N_TOKENS", "1")


@pytest.fixture
def installed(monkeypatch):
    """Redaction for one test: the process is as before afterwards."""
    factory = logging.getLogRecordFactory()
    for owner, name in (
        (sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook"), (warnings, "formatwarning")
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))
    install_redaction.__wrapped__()
    yield
    logging.setLogRecordFactory(factory)


@pytest.fixture
def foreign():
    """A logger as third parties set theirs up: a handler of its own, nothing passed on to the root."""
    log, lines = logging.Logger("foreign"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(handler.format(record))
    log.addHandler(handler)
    return log, lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"key {KEY}, again {KEY}.", f"key {HIDDEN}, again {HIDDEN}."),
        ("at /v1/correct%2Fhorse%2Bbattery%27staple/x", f"at /v1/{HIDDEN}/x"),
        (f"{[KEY]!r}", f'["{HIDDEN}"]'),
        ("token hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567 refused", f"token {HIDDEN} refused"),
        ("sk-proj-abc_DEF-0123456789 and sk-0123456789abcdefABCDEF", f"{HIDDEN} and {HIDDEN}"),
        ("{'Authorization': 'Bearer abc.DEF-123~x'}", f"{{'Authorization': 'Bearer {HIDDEN}'}}"),
        ("authorization: bearer  abcdefgh", f"authorization: bearer  {HIDDEN}"),
        ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: Basic {HIDDEN}"),
        ("see https://me:p4ss@host:80/a@b?x=1", f"see https://{HIDDEN}@host:80/a@b?x=1"),
        ("postgres://me:p@ss@host/db", f"postgres://{HIDDEN}@host/db"),
        ("//host/f?a=1&X-Amz-Signature=ab&api_key=z#y", f"//host/f?a=1&X-Amz-Signature={HIDDEN}&api_key={HIDDEN}#y"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ", HIDDEN),
    ],
)  # fmt: skip
def test_a_secret_is_cut_out_and_nothing_else(text, expected):
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "step 1 of 1,000: loss 0.1234, 1 token/s, TOKENIZERS_PARALLELISM=false",
        "hf_hub_download of google/gemma-2-2b at https://huggingface.co/google/gemma-2-2b?token_count=3",
        "task-specific risk-averse-and-very-long-words; ask-me-anything-about-it",
        "mail me@example.org, see http://host/path@v1, the bearer of news",
        "topk.layer_9.resid_post.w2048.l0_32.seed0 3f786850e387550fdab836ed7e6dc881de23001b",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redact(text) == text


@pytest.mark.parametrize(("value", "hidden"), [("1", False), ("seven77", False), ("eight888", True)])
@pytest.mark.parametrize("name", ["HF_TOKEN", "my_password", "AWS_SECRET_X", "credentials"])
def test_a_value_of_eight_characters_is_a_secret_and_a_shorter_one_is_not(monkeypatch, name, value, hidden):
    monkeypatch.setenv(name, value)
    assert redact(f"<{value}>") == (f"<{HIDDEN}>" if hidden else f"<{value}>")


def test_a_variable_with_another_name_is_no_secret(monkeypatch):
    monkeypatch.setenv("HOME_TOWN", "Wuppertal-Elberfeld")
    assert redact("Wuppertal-Elberfeld") == "Wuppertal-Elberfeld"


@pytest.mark.parametrize("written", [repr, json.dumps, quote, str])
def test_a_secret_is_found_as_it_is_written_in_code_json_and_addresses(monkeypatch, written):
    monkeypatch.setenv("ODD_TOKEN", value := "it's \"a\\b")
    assert redact(f"x{written(value)}y").strip("'\"xy") == HIDDEN


def test_the_stack_of_a_log_line_is_redacted():
    record = RedactedRecord("name", logging.INFO, "file.py", 1, "message", (), None, sinfo=f'Stack:\n  f("{KEY}")')
    assert record.stack_info == f'Stack:\n  f("{HIDDEN}")'


def test_a_secret_within_a_longer_one_leaves_no_rest(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "0abcdefgh9")
    assert redact("0abcdefgh9 abcdefgh") == f"{HIDDEN} {HIDDEN}"


def test_where_a_key_lies_is_no_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path))
    monkeypatch.setenv("OTHER_TOKEN", "/no/such/path")
    assert redact(f"{tmp_path}/x /no/such/path") == f"{tmp_path}/x {HIDDEN}"


def test_json_stays_json(monkeypatch):
    """Redacting its text would cut numbers and take the backslash from a quotation mark."""
    monkeypatch.setenv("DOOR_PASSWORD", "12345678")
    content = {"n": 12345678, "a": [f"x {KEY}", 0.5, None, {"b": ('u?key=abc"d', "door 12345678")}]}
    assert redact_json(content) == {
        "n": 12345678,
        "a": [f"x {HIDDEN}", 0.5, None, {"b": [f'u?key={HIDDEN}"d', f"door {HIDDEN}"]}],
    }


def test_a_log_line_of_any_logger_is_redacted(installed, foreign, caplog):
    log, lines = foreign
    log.warning("sent %s to %s", KEY, "host")
    log.warning(f"sent {KEY}")
    log.warning(ValueError(KEY))
    logging.getLogger("sae_bench.x").warning("key %(key)s", {"key": KEY})
    assert lines == [f"sent {HIDDEN} to host", f"sent {HIDDEN}", HIDDEN]
    assert caplog.messages == [f"key {HIDDEN}"]


def test_a_record_without_a_secret_keeps_its_arguments_and_its_exception(installed, caplog):
    try:
        raise ValueError("plain")
    except ValueError:
        logging.getLogger("x").exception("%d of %d", 1, 2)
    (record,) = caplog.records
    assert isinstance(record, RedactedRecord)
    assert (record.msg, record.args, record.exc_info[0]) == ("%d of %d", (1, 2), ValueError)


def test_a_logged_traceback_is_redacted_with_its_causes(installed, foreign):
    log, lines = foreign
    try:
        try:
            raise KeyError(KEY)
        except KeyError as error:
            raise OSError(f"cannot log in with {KEY}") from error
    except OSError:
        log.exception("failed", stack_info=True)
    (text,) = lines
    assert "staple" not in text
    assert text.count(HIDDEN) == 2
    assert "direct cause" in text
    assert "OSError: cannot log in with" in text


def test_arguments_that_do_not_fit_are_not_printed(installed, foreign, capsys):
    log, lines = foreign
    log.warning("two %s %s", KEY)
    log.warning("a number %d", KEY)
    assert "staple" not in "".join(lines) + capsys.readouterr().err
    assert [line.startswith(start) for line, start in zip(lines, ("'two", "'a number"), strict=True)] == [True, True]


def test_an_exception_that_nobody_catches_is_printed_redacted(installed, capsys):
    error = RuntimeError(f"no {KEY}")
    error.__cause__ = ValueError(f"https://{KEY}@host")
    sys.excepthook(type(error), error, None)
    text = capsys.readouterr().err
    assert "staple" not in text
    assert text.index(f"ValueError: https://{HIDDEN}@host") < text.index(f"RuntimeError: no {HIDDEN}")


def test_an_exception_without_a_secret_is_left_to_the_hook_before(monkeypatch):
    seen = []
    hook = redaction._guarded(lambda *args: seen.append(args), lambda kind, error, trace: error)
    error = ValueError("plain")
    hook(ValueError, error, None)
    assert seen == [(ValueError, error, None)]


def test_a_warning_is_redacted(installed):
    assert KEY not in warnings.formatwarning(f"using {KEY}", UserWarning, "file.py", 3, "line")


PROCESS = """
import logging, os, sys, threading, warnings
from sae_bench.records.redact import install_redaction
install_redaction()
install_redaction()
key = os.environ["JUDGE_API_KEY"]

class Broken:
    def __del__(self):
        raise ValueError(f"deleted {key}")

def work():
    raise ValueError(f"worked {key}")

Broken()
thread = threading.Thread(target=work)
thread.start()
thread.join()
warnings.warn(f"warned {key}")
logging.getLogger("late").error("logged %s", key)
try:
    raise ValueError(f"caught {key}")
except ValueError:
    raise RuntimeError(f"raised {key}")
"""


def test_a_process_that_dies_of_a_key_does_not_show_it():
    done = subprocess.run([sys.executable, "-c", PROCESS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "staple" not in done.stdout + done.stderr
    for word in ("deleted", "worked", "warned", "logged", "caught", "raised"):
        assert f"{word} {HIDDEN}" in done.stderr


def test_redaction_needs_no_torch():
    code = "import sys, sae_bench.records.redact; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "sae_bench.records.redact" in done.stdout.split()
    assert not {"torch", "numpy", "pydantic"} & set(done.stdout.split())


def test_the_traceback_is_the_usual_one_apart_from_the_secret(installed, capsys):
    try:
        raise ValueError(f"a {KEY}")
    except ValueError as error:
        usual = "".join(traceback.format_exception(error))
        sys.excepthook(ValueError, error, error.__traceback__)
    assert capsys.readouterr().err == usual.replace(KEY, HIDDEN)
