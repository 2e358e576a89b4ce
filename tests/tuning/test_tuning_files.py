"""A tuning's files that are sealed and of another form: one line that names the file."""

import pytest

from sae_bench.errors import UserError
from sae_bench.records.files import write_sealed
from sae_bench.tuning.tune import clear


@pytest.mark.parametrize(
    "content", [{}, {"settings": 1}, {"settings": {"rungs": "x"}}, {"settings": {"rungs": 10**30}}]
)
def test_a_manifest_of_another_form_is_one_line_and_nothing_is_deleted(tmp_path, content):
    write_sealed(tmp_path / "tuning.json", content)
    with pytest.raises(UserError, match=r"tuning\.json is of another form"):
        clear(tmp_path)
    assert (tmp_path / "tuning.json").exists()
