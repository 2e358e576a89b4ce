"""A published board: everything that is drawn of it can be drawn again, with the same bytes, from what is published."""

import base64
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
from command import bench, files
from synthetic import HOSTILE, records, typed, write_run

from sae_bench.leaderboard import captions, compare_table
from sae_bench.leaderboard import tables as leaderboard
from sae_bench.leaderboard.board_folder import outputs
from sae_bench.leaderboard.board_table import table
from sae_bench.leaderboard.compare import comparisons
from sae_bench.leaderboard.figures import style
from sae_bench.leaderboard.load import gather
from sae_bench.leaderboard.render import with_error

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted(path.parent for path in (ROOT / "results").glob("*/records"))
TABLES = {f"{name}.{form}" for name in ("leaderboard", "compare") for form in ("md", "csv", "tex")}
DRAWN = TABLES | {"claims.md", "claims.tex", "report.html", "drawn.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run", records(targets=(16.0, 64.0)), n_latents=2)


@pytest.fixture(scope="module")
def board(run):
    (run / "saes" / "weights.safetensors").write_bytes(b"large")
    assert bench("board", run, "--out", run.parent / "board", "--at-l0", 20, 50) == 0
    return run.parent / "board"


def test_a_board_is_all_that_is_drawn_and_all_that_it_is_drawn_from_but_no_weights(run, board):
    found = files(board)
    sources = {name for name in files(run) if not name.endswith((".safetensors", "/sae_bench.json"))}
    assert {name for name in found if not name.startswith("figures/")} == DRAWN | sources
    assert {name[8:-4] for name in found if name.startswith("figures/")} > {"quality", "training", "interpretability"}


def test_drawing_a_board_again_gives_the_same_bytes(board, tmp_path):
    shutil.copytree(board, tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        if path.is_file() and path.name != "run.json":
            path.unlink()
    assert bench("board", tmp_path / "copy", "--at-l0", 20, 50) == 0
    assert files(tmp_path / "copy") == files(board)


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_committed_boards_are_what_their_records_give(folder, monkeypatch):
    """Of figures, those of other matplotlib versions differ: constraints.txt says which one drew them.

    Those in svg stand for the same ones in pdf and png. Of the report, the data's compression is that of a zlib, of
    which there are several.
    """
    monkeypatch.setattr(style, "FORMATS", ("svg",))
    for name, content in outputs([folder]):
        if name.endswith((".svg", ".md", ".tex", ".csv")):
            assert (folder / name).read_bytes() == content, name
        elif name.endswith(".html"):
            assert _spread((folder / name).read_text()) == _spread(content.decode()), name


def _spread(page: str) -> tuple[str, bytes]:
    """A report, and its data unpacked."""
    before, _, rest = page.partition('id="data">')
    data, _, after = rest.partition("<")
    return before + after, zlib.decompress(base64.b64decode(data))


def test_verbs_take_a_board_for_a_run(board, capsys, tmp_path):
    for verb in (["table"], ["compare"], ["claims"], ["report", "--out", tmp_path / "page.html"], ["figures"],
                 ["figures", "--out", tmp_path / "figures"]):  # fmt: skip
        assert bench(verb[0], board, *verb[1:]) == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert (tmp_path / "figures" / "quality.svg").exists()
    assert "jumprelu" in capsys.readouterr().out


def test_another_board_is_not_mixed_with_one_that_is_there(board, tmp_path, capsys):
    other = write_run(tmp_path / "other", records(("gated",), (8.0,)))
    assert bench("board", other, "--out", board) == 2
    assert "holds another board" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert bench("board", tmp_path / "empty", "--out", tmp_path / "new") == 2
    assert not (tmp_path / "new").exists()


# --- tables of one's choice ------------------------------------------------------------------------------------------


def test_a_table_has_the_columns_and_groups_that_were_asked_for(run, capsys):
    assert bench("table", run, "--columns", "gamma", "fve", "--group-by", "target", "--format", "md") == 0
    text = capsys.readouterr().out
    assert text.count("| architecture") == 2
    assert "**target 16**" in text
    assert "gamma |" in text.replace("  ", "")
    assert "delta" not in text.partition("Model demo")[0]
    assert bench("table", run, "--columns", "gama") == 2
    assert 'did you mean "gamma"' in capsys.readouterr().err
    assert bench("table", run, "--group-by", "sites") == 2
    assert 'did you mean "site"' in capsys.readouterr().err


def test_over_seeds_a_row_is_an_architecture_with_its_interval(run):
    of = gather([run])
    text = table(of, "csv", ["fve"], over_seeds=True)
    assert len(text.splitlines()) == 1 + 4 * 2
    (comparison,) = comparisons(of, ["fve"])
    from sae_bench.leaderboard.bootstrap import estimate

    e = estimate(comparison.architectures[0].metrics["fve"].value[:, 0], comparison.design)
    assert with_error(e.value, e.interval()[1] - e.value) in text
    assert "half of the 95% interval; 2 seeds" in table(of, "text", over_seeds=True)
    assert "standard error" not in table(of, "text", over_seeds=True)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX is installed")
def test_all_tables_of_latex_compile_in_a_minimal_document(tmp_path):
    of = records(("jumprelu", HOSTILE), (16.0, 64.0), sites=("layer_9.resid_post", "layer_1.mlp_out"))
    for record in of:
        record["provenance"]["dataset"] = r"a_b % & # $ ~ ^ \ { } < > | [x] *"
    of = typed(of)
    compared, facts = comparisons(of, ["fve", "delta_lm_loss"]), captions.caption(of)
    tables = [
        leaderboard.latex(of),
        compare_table.written("tex", compared, ["fve", "delta_lm_loss"], (20.0, 50.0), facts),
        table(of, "tex", group_by=["site"], over_seeds=True),
    ]
    plain = "\n".join(tables).encode("ascii", "replace").decode()  # letters of other scripts are the document's affair
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n" + plain + "\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    labels = re.findall(r"\\label\{(.+?)\}", "\n".join(tables[:2]))
    assert len(set(labels)) == len(labels) >= 1 + 4 + 2
