"""`--log-to`: the training log in TensorBoard and Weights & Biases, an SAE for a run."""

import json
import sys
from pathlib import Path

import pytest
from command import bench, flags, small_run


@pytest.fixture
def settings(gemma2_folder, corpus, at_work, tmp_path):
    return small_run(gemma2_folder, corpus, tmp_path / "out")


class FakeWriter:
    rows: dict[str, list[tuple[str, int]]]

    def __init__(self, log_dir: str) -> None:
        self.name = Path(log_dir).name
        self.rows[self.name] = []

    def add_scalar(self, name: str, value: float, global_step: int) -> None:
        self.rows[self.name].append((name, global_step))

    def close(self) -> None:
        self.rows[self.name].append(("closed", -1))


def test_the_training_log_is_shown_in_tensorboard_row_by_row(monkeypatch, settings):
    fake = type("fake", (), {"SummaryWriter": FakeWriter})
    monkeypatch.setattr(FakeWriter, "rows", {}, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    assert bench(*flags(settings), "--quiet", "--log-to", "tensorboard") == 0
    ((sae, rows),) = FakeWriter.rows.items()
    log = (settings["--out"] / "saes" / sae / "metrics.jsonl").read_text().splitlines()
    logged = [(name, json.loads(line)["step"]) for line in log for name in json.loads(line)]
    assert sorted(rows) == sorted([*logged, ("closed", -1)])


def test_wandb_gets_a_run_for_every_sae(monkeypatch, settings):
    seen = []

    class Run:
        def __init__(self, **about):
            self.name = about["name"]

        def log(self, row, step):
            seen.append((self.name, step))

        def finish(self):
            seen.append((self.name, "finished"))

    monkeypatch.setitem(sys.modules, "wandb", type("fake", (), {"init": Run}))
    assert bench(*flags(settings | {"--l0": (4, 8)}), "--quiet", "--log-to", "wandb") == 0
    names = {name for name, _ in seen}
    assert len(names) == 2
    assert {name for name, step in seen if step == "finished"} == names
    assert {step for _, step in seen} == {*range(7), "finished"}
