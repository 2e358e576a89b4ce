"""What a user wrote becomes a file name that stays where it is put."""

import pytest

from sae_bench.records.files import TEMPORARY
from sae_bench.records.names import file_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("topk.layer_9.resid_post.w2048.l0_32.seed0", "topk.layer_9.resid_post.w2048.l0_32.seed0"),
        ("gated:penalty=ri_l1,lr=0.0005", "gated-penalty-ri_l1-lr-0.0005"),
        ("../../etc/passwd", "etc-passwd"),
        ("relu.c_1e+06.seed0", "relu.c_1e+06.seed0"),
        ("..", "_"),
        ("", "_"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("a\\b\0c\nd e", "a-b-c-d-e"),
        ("na\u00efve", "na-ve"),
    ],
)
def test_a_name_is_one_plain_part_of_a_path(text, name):
    assert file_name(text) == name


def test_a_name_of_any_length_can_be_written_and_stays_its_own(tmp_path):
    names = {file_name("x" * 1000 + end) for end in ("a", "b")} | {file_name("x" * 160), file_name("x" * 161)}
    assert len(names) == 4
    for name in names:
        (tmp_path / f".{name}.{'t' * 64}.json.1234567{TEMPORARY}").write_text("")
        assert len(name) <= 160
