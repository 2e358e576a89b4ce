"""Figures from a board made by hand: which are drawn, with the same bytes, and that looks tell architectures apart."""

import numpy as np
import pytest
from synthetic import EFFECT, HOSTILE, records, write_run

from sae_bench.leaderboard.board import Board
from sae_bench.leaderboard.figures import draw
from sae_bench.leaderboard.figures.against_l0 import quality
from sae_bench.leaderboard.figures.cost import cost, flops_per_token
from sae_bench.leaderboard.figures.frequency import frequency
from sae_bench.leaderboard.figures.style import FORMATS, styled
from sae_bench.leaderboard.palette import LOOKS, looks

ALL = {"quality", "shrinkage", "frequency", "training", "cost", "interpretability"}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return Board.read([write_run(tmp_path_factory.mktemp("run"), records(targets=(16.0, 64.0)), n_latents=6)])


@pytest.fixture(scope="module")
def drawn(board):
    return dict(draw.figures(board))


def test_every_figure_is_there_as_vectors_and_pixels(drawn):
    assert set(drawn) == {f"{name}.{form}" for name in ALL for form in FORMATS}
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}
    assert all(content.startswith(starts[name[-3:]]) for name, content in drawn.items())


def test_the_same_board_gives_the_same_bytes_and_no_date(board, drawn):
    assert dict(draw.figures(board)) == drawn
    for name, content in drawn.items():
        assert b"dc:date" not in content, name
        assert b"CreationDate" not in content, name
        assert b"matplotlib.org" not in content, name


def test_what_was_not_measured_is_not_drawn(tmp_path):
    of = [record for record in records(targets=(16.0,)) if record["task"] == "reconstruction"]
    run = write_run(tmp_path / "run", of)
    for path in run.glob("saes/*/metrics.jsonl"):
        path.unlink()
    assert {name.partition(".")[0] for name, _ in draw.figures(Board.read([run]))} == {"quality", "shrinkage"}


def test_several_sites_have_figures_of_their_own(tmp_path):
    of = records(("topk",), (16.0,), (0,), ("layer_1.mlp_out", "layer_9.resid_post"))
    names = {name for name, _ in draw.figures(Board.read([write_run(tmp_path, of)])) if name.startswith("quality")}
    assert names == {f"quality.demo.{site}.w512.{form}" for site in ("layer_1.mlp_out", "layer_9.resid_post")
                     for form in FORMATS}  # fmt: skip


def test_points_and_intervals_are_those_of_the_comparison(board):
    from sae_bench.leaderboard.bootstrap import estimate
    from sae_bench.leaderboard.compare import comparisons

    (comparison,) = comparisons(board.records, draw.METRICS)
    with styled():
        axes = quality(comparison, board.looks).axes[0]
    architecture = comparison.architectures[0]
    points = architecture.metrics["delta_lm_loss"]
    e = estimate(points.value[:, 0], comparison.design)
    bars = [path.vertices for container in axes.containers for path in container[2][0].get_paths()]
    assert any(np.allclose(bar[:, 0], points.l0[0, 0]) and np.allclose(bar[:, 1], e.interval()) for bar in bars)
    assert axes.get_xscale() == "log"


def test_histograms_compare_all_architectures_at_one_target(board):
    with styled():
        texts = [axes.texts[0].get_text() for axes in frequency(board.saes, board.looks).axes]
    assert [text.partition(",")[0] for text in texts] == board.labels
    for text, label in zip(texts, board.labels, strict=True):
        of = [sae for sae in board.saes if sae.label == label and sae.target == 64.0]
        counts = np.concatenate([sae.counts[0] for sae in of])
        assert f"{(counts == 0).mean():.1%} dead, {(counts / of[0].counts[1] > 0.1).mean():.2%} dense" in text


def test_cost_is_seconds_of_training_and_the_least_of_operations(board):
    assert flops_per_token(10, 100, 5) == 2 * 10 * 100 + 8 * 10 * 5
    sae = board.saes[0]
    with styled():
        figure = cost([sae], board.looks)
    ((x,), (y,)) = figure.axes[0].lines[0].get_data()
    assert x == pytest.approx(sae.about.training.seconds / 65_536 * 1e6)
    assert y == pytest.approx(sae.value("delta_lm_loss"))


def test_an_architecture_looks_the_same_on_every_board_and_like_no_other():
    everybody = looks([*EFFECT, "mine", "yours"])
    assert len({look.colour for look in everybody.values()}) == 6
    assert len({(look.marker, look.dashes) for look in everybody.values()}) == 6, "in grey too"
    assert looks(["topk"])["topk"] == everybody["topk"] == LOOKS[1]
    assert len(looks(map(str, range(20)))) == 20


def test_names_are_drawn_as_they_are_and_computed_by_nobody(tmp_path):
    run = write_run(tmp_path, records((r"a$\frac{1}{0}$", HOSTILE[:20]), (16.0,), (0,)))
    assert list(draw.figures(Board.read([run])))
