"""The page behind `serve`: what it says of a text is what the SAE says, and nobody else is told anything."""

import http.client
import json
import os
import re
import signal
import threading
import urllib.request
from contextlib import closing

import pytest
import torch
from chromium import EXECUTABLE, chromium
from command import bench
from synthetic import HOSTILE, seal
from transformers import AutoModelForCausalLM, AutoTokenizer

import sae_bench as sb
from sae_bench.api.firing import MOST_CHARACTERS, Firing
from sae_bench.api.local_server import MOST_BYTES, LocalServer
from sae_bench.errors import UserError
from sae_bench.leaderboard.board import Board
from sae_bench.leaderboard.html.report import report
from sae_bench.runs.suite import configure

NAME = "topk.layer_1.resid_post.w48.l0_6.seed0"
TEXT = "The river came down from the hills"


@pytest.fixture(scope="module")
def run(gemma2_folder, corpus, at_work):
    settings = {
        "model": gemma2_folder, "layer": 1, "dataset": corpus, "width": 48, "tokens": 1500, "reuse": 2,
        "batch_size": 100, "eval_tokens": 600, "context_size": 32, "tasks": ["reconstruction"], "dtype": "float32",
    }  # fmt: skip
    return sb.run(arch=["topk", "relu"], l0=6, out=at_work / "run", **settings)


@pytest.fixture(scope="module")
def firing(run):
    return Firing(run.path)


@pytest.fixture(scope="module")
def server(run, firing):
    """It answers about a text, and fails at "break"."""

    def answer(asked):
        if asked.get("text") == "break":
            raise RuntimeError("a bug")
        return firing.on(asked["text"], asked["sae"]).as_json()

    with LocalServer(report(Board.read([run.path]), serving=firing.saes), answer) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield served
        served.shutdown()
        thread.join(10)


def ask(server, method="POST", path="fires", body=None, **headers):
    """Status and content of an answer."""
    content = body if isinstance(body, bytes) else json.dumps(body or {"text": TEXT, "sae": NAME}).encode()
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    where = path if path.startswith("/") else f"/{server.secret}/{path}"
    with closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)) as connection:
        connection.request(method, where, content if method == "POST" else None, sent)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer


def test_latents_of_a_text_are_those_of_its_activations(run, firing, gemma2_folder):
    """Held against transformers' own forward pass, and the SAE on what a hook sees there."""
    model, tokenizer = (of.from_pretrained(gemma2_folder) for of in (AutoModelForCausalLM, AutoTokenizer))
    seen = []
    model.model.layers[1].register_forward_hook(lambda module, _, output: seen.append(output))
    words = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model(torch.tensor([[tokenizer.bos_token_id, *words]]))
    x = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    f = run.sae(NAME).encode(x.reshape(-1, x.shape[-1])[1:])
    found = firing.on(TEXT, NAME)
    assert "".join(found.tokens).split() == TEXT.split()
    assert len(found.latents) == len(words) == len(f)
    for row, latents, activations in zip(f, found.latents, found.activations, strict=True):
        assert set(latents) == set(row.nonzero().flatten().tolist())
        assert activations == sorted(activations, reverse=True)
        assert activations == pytest.approx(row[latents].tolist(), rel=1e-3)


def test_a_text_is_one_context_and_what_is_wrong_with_it_is_said(firing):
    long = firing.on("fox " * 200, NAME)
    assert len(long.tokens) == 31
    assert long.n_cut > 100
    for text, reason in ((" \n", "empty"), ("x" * (MOST_CHARACTERS + 1), "20,001 characters")):
        with pytest.raises(UserError, match=reason):
            firing.on(text, NAME)
    with pytest.raises(UserError, match="known: relu"):
        firing.on(TEXT, "topk.layer_1")
    assert firing.on("half \ud83d a character", NAME).tokens


def test_a_folder_without_weights_or_without_a_language_model_is_refused(tmp_path):
    def refused(name, **settings):
        config = configure(None, {"archs": ["topk"], **settings})
        seal(tmp_path / name / "run.json", {"config": config.model_dump(mode="json"), "saes": ["topk.gone"]})
        with pytest.raises(UserError) as error:
            Firing(tmp_path / name)
        return str(error.value)

    assert "reads no text" in refused("world", model="synthetic")
    assert "as a published board has none" in refused("board")
    with pytest.raises(UserError, match=r"no run's folder"):
        Firing(tmp_path)


def test_the_page_and_its_answers_are_served(server, firing):
    status, page, answer = ask(server, "GET", "")
    assert (status, server.server_address[0]) == (200, "127.0.0.1")
    assert "Which latents fire on a text" in page
    assert "connect-src &#39;self&#39;" in page
    assert answer.getheader("Cache-Control") == "no-store"
    status, text, _ = ask(server)
    assert status == 200
    assert json.loads(text) == firing.on(TEXT, NAME).as_json()
    assert ask(server, Origin=server.url.split("/" + server.secret)[0])[0] == 200


def test_whoever_has_not_the_address_or_is_another_page_gets_nothing(server):
    port = server.server_port
    assert ask(server, "GET", "/")[0] == ask(server, "GET", f"/{'x' * 32}/")[0] == 404
    assert ask(server, path="/fires")[0] == 404
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
        status, page, _ = ask(server, "GET", "", Host=host)
        assert (status, "view-try" in page) == (403, False), host
    assert ask(server, Origin="http://evil.example")[0] == 403
    assert ask(server, "PUT")[0] == 501


def test_requests_are_bounded_and_what_they_hold_does_nothing(server):
    assert ask(server, body=b"x" * (MOST_BYTES + 1))[0] == 413
    assert ask(server, body=b"[" * 100_000)[0] == 400
    assert ask(server, body=b"[1]")[0] == 400
    assert ask(server, Content_Type="text/plain")[0] == 415
    assert ask(server, Content_Length="many")[0] == 411
    status, text, answer = ask(server, body={"text": HOSTILE, "sae": NAME})
    assert (status, answer.getheader("Content-Type")) == (200, "application/json")
    assert len(json.loads(text)["tokens"]) > 5
    status, text, _ = ask(server, body={"text": TEXT, "sae": HOSTILE})
    assert status == 400
    assert "no SAE" in json.loads(text)["error"]
    status, text, _ = ask(server, body={"text": "break", "sae": NAME})
    assert (status, json.loads(text)["error"]) == (500, "RuntimeError: see the terminal")
    assert ask(server)[0] == 200, "and it goes on"


def test_ctrl_c_stops_it_cleanly(run, capsys, monkeypatch):
    seen = []

    def browse(url):
        """The browser: it takes the page, and then somebody presses Ctrl-C."""
        seen.append(url)

        def look():
            with urllib.request.urlopen(url, timeout=30) as answer:
                seen.append(answer.read().decode())
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=look).start()

    monkeypatch.setattr("webbrowser.open", browse)
    assert bench("serve", run.path, "--browser") == 0
    out, err = capsys.readouterr()
    assert re.search(r"^http://127\.0\.0\.1:\d+/[\w-]{32}/$", out, re.M)[0] == seen[0]
    assert out.endswith("\nstopped\n")
    assert "Traceback" not in err
    assert "Which latents fire on a text" in seen[1]
    assert bench("serve", run.path, "--port", "70000") == 2
    assert bench("serve", run.path.parent) == 2
    assert "holds no records" in capsys.readouterr().err


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")
def test_a_text_is_tried_in_a_browser(server, tmp_path):
    with chromium(tmp_path / "profile") as page:
        page.open(server.url + "#/try")
        page.wait("document.documentElement.dataset.ready === 'yes'")
        page(f"$('try-text').value = {json.dumps('The river came <img src=x onerror=alert(1)> down')}")
        page(f"$('try-sae').value = data.saes.find((one) => one.id === {json.dumps(NAME)}).key")
        page("$('try-go').click()")
        page.wait("document.querySelectorAll('#try-tokens .token').length > 3")
        assert page("document.querySelectorAll('#try-latents mark').length") > 0
        assert page("document.querySelectorAll('img').length") == 0
        page("document.querySelectorAll('#try-tokens .token')[1].click()")
        assert page("document.querySelectorAll('#try-latents > li').length") <= 6
        page("$('try-text').value = ' '; $('try-go').click()")
        page.wait("$('try-state').textContent.includes('empty')")
        assert {request.split("/")[2] for request in page.requests} == {f"127.0.0.1:{server.server_port}"}
        assert all("400" in line for line in page.console), page.console
