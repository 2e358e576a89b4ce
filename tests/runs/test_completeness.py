"""What a board's commands asked for is all there, and nothing else is: from both sides, with what they left unsaid."""

import re
from pathlib import Path

import pytest
from synthetic import record, typed

from sae_bench.errors import UserError
from sae_bench.runs.completeness import asked_of, check_complete, tasks_asked
from sae_bench.runs.config import RunConfig
from sae_bench.runs.deciding import ASKED

FIRST = {"archs": ["topk"], "layers": [9], "l0s": [16.0], "widths": [512], "seeds": [0]}


def manifest_of(*commands):
    """run.json of a folder that these commands asked for SAEs, one after the other."""
    configs = [RunConfig.build({"model": "demo"} | command) for command in commands]
    identity = {name: of for name, of in configs[0].identity.items() if name not in ASKED}
    first = {name: of for name, of in configs[0].identity.items() if name in ASKED}
    return {"format": 2, "config": identity | first, "asked": [config.asked for config in configs]}


def measured(*saes):
    """Records of SAEs by label, L0, seed, and site."""
    return typed(
        record(label, l0, seed, "reconstruction", site=site, layer=int(site.split(".")[0].removeprefix("layer_")))
        for label, l0, seed, site in saes
    )


def check(manifest, records, hidden=()):
    """See that the board is complete but for hidden SAEs, of which nothing says anything."""
    left = {(one.sae.id, one.task): one for one in records if one.sae.id not in hidden}
    saes = [one.sae.id for one in records if one.sae.id not in hidden]
    asked = asked_of(manifest)
    check_complete(Path("board"), asked, tasks_asked(manifest, asked[0]), saes, left)


NINE, TEN = "layer_9.resid_post", "layer_10.resid_post"
TOPK = ("topk", 16.0, 0, NINE)
TASK = {"tasks": ["reconstruction"]}


@pytest.mark.parametrize(
    ("commands", "saes"),
    [
        ([FIRST], [TOPK]),
        ([FIRST | {"layers": []}], [TOPK]),
        ([FIRST | {"layers": [9, 10]}], [TOPK, ("topk", 16.0, 0, TEN)]),
        # A later command that names no site means the usual one, not the first command's.
        ([FIRST | {"sites": ["mlp_out"]}, FIRST], [("topk", 16.0, 0, "layer_9.mlp_out"), TOPK]),
        # Settings differ between commands, and are not crossed: no relu at L0 16.
        ([FIRST, FIRST | {"archs": ["relu"], "l0s": [32.0], "seeds": [1]}], [TOPK, ("relu", 32.0, 1, NINE)]),
    ],
)
def test_what_was_asked_for_is_there_and_each_of_it_is_missed(commands, saes):
    manifest, records = manifest_of(*(command | TASK for command in commands)), measured(*saes)
    check(manifest, records)
    for one in records:
        rest = [other for other in records if other is not one]
        if rest:
            with pytest.raises(UserError, match=r"asks for \S+ at .*, of which there is no record"):
                check(manifest, rest)
    more = measured(("gated", 16.0, 0, NINE))
    with pytest.raises(UserError, match=re.escape(f"has {more[0].sae.id}, which no command asked for")):
        check(manifest, records + more)


def test_the_middle_layer_and_one_that_is_named_are_both_asked_for():
    """Which one the middle is the model says, and that is not at hand: one layer more is there than is named."""
    check(
        manifest_of(FIRST | TASK | {"layers": []}, FIRST | TASK | {"layers": [10]}),
        measured(TOPK, ("topk", 16.0, 0, TEN)),
    )


def test_a_layer_of_which_nothing_is_left_is_missed():
    both = manifest_of(FIRST | TASK | {"layers": [9, 10]})
    with pytest.raises(UserError, match=r"asks for topk at layer_10.resid_post, width 512, target 16, seed 0"):
        check(both, measured(TOPK, ("topk", 16.0, 0, TEN)), hidden=[measured(("topk", 16.0, 0, TEN))[0].sae.id])


def test_commands_that_were_shortened_do_not_cover_what_is_left_of_them():
    """Seed 1 of relu was not to be seen, so the command that asked for relu is dropped."""
    relu = [("relu", 16.0, seed, NINE) for seed in (0, 1)]
    manifest = manifest_of(FIRST | TASK, FIRST | TASK | {"archs": ["relu"], "seeds": [0, 1]})
    check(manifest, measured(TOPK, *relu))
    manifest["asked"].pop()
    with pytest.raises(UserError, match="which no command asked for"):
        check(manifest, measured(TOPK, relu[0]))


@pytest.mark.parametrize("asked", [[], {}, ["archs"], 3, None, [{"archs": 3}], [{"model": "demo"}], [{"tasks": "all"}]])
def test_what_was_asked_for_has_one_form(asked):
    manifest = manifest_of(FIRST) | {"asked": asked}
    with pytest.raises((TypeError, ValueError)):
        tasks_asked(manifest, asked_of(manifest)[0])


def test_a_task_that_was_asked_for_is_not_left_out():
    manifest = manifest_of(FIRST | {"tasks": ["reconstruction", "geometry"]})
    with pytest.raises(UserError, match="asks for the task geometry, of which there is no record"):
        check(manifest, measured(TOPK))
    manifest = manifest_of(FIRST)
    assert "delta_lm_loss" in tasks_asked(manifest, asked_of(manifest)[0]), "none named: the usual ones"


def test_sae_from_elsewhere_is_there_by_its_files_and_no_other():
    one, other = ({"source": f"sae{n}.safetensors", "sha256": f"{n}" * 64} for n in (1, 2))
    manifest = manifest_of({"saes": [one], "archs": [], "l0s": [16.0]} | TASK)
    (foreign,) = measured(TOPK)
    sae = foreign.sae.model_dump() | {"origin": one | {"format": "saelens"}}
    record_of = [foreign.model_copy(update={"sae": type(foreign.sae).model_validate(sae)})]
    check(manifest, record_of)
    with pytest.raises(UserError, match=r"asks for --sae sae1.safetensors, of which there is no record"):
        check(manifest, measured(TOPK))
    manifest["asked"][0]["saes"] = manifest["config"]["saes"] = [other]
    with pytest.raises(UserError, match=r"asks for --sae sae2.safetensors"):
        check(manifest, record_of)
