"""The whole way to a real model: SmolLM2-135M behind `transformers serve`, started and stopped here.

It needs an environment of its own, a download and minutes of CPU, so it runs when `SAE_BENCH_JUDGE` names a folder for
them: SAE_BENCH_JUDGE=/tmp/judge python -m pytest tests/autointerp/test_real_judge.py
"""

import os
from pathlib import Path

import pytest
from asking import ask
from judge_server import NoJudge, prepare, served
from toy_latents import toy_latent

FOLDER = os.environ.get("SAE_BENCH_JUDGE")
KNOWN = {"refusal", "length", "unparsable", "wrong_length", "duplicate", "timeout"}


class There:
    def __init__(self, base_url: str) -> None:
        self.base_url = base_url


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="SAE_BENCH_JUDGE names no folder for SmolLM2 and its environment")
def test_a_real_server_answers_every_question_or_its_failure_is_counted(tmp_path, monkeypatch):
    folder = Path(str(FOLDER))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        prepare(folder)
        with served(folder, log=tmp_path / "serve.log") as (base_url, model):
            latents = ask(
                There(base_url),
                tmp_path,
                toy_latent(),
                scorers=("detection",),
                concurrency=1,
                timeout=300,
                model=model,
                excerpts=1,
            )
    except NoJudge as reason:
        pytest.skip(f"no SmolLM2 here: {reason}")
    (latent,) = latents
    assert len(latent["answers"]) in (1, 1 + 40)
    assert latent["explanation"] is not None or latent["answers"][0]["failure"] in KNOWN
    for answer in latent["answers"]:
        assert answer["failure"] is None or answer["failure"] in KNOWN
        assert answer["answer"] is not None or answer["failure"] == "timeout", "the server did answer"
    if latent["explanation"] is not None:
        read = [answer["failure"] is None for answer in latent["answers"][1:]]
        assert sum(read) >= 20, "about one excerpt even a small model answers in shape"
        assert sum(latent["scores"]["detection"]["counts"].values()) == 40
