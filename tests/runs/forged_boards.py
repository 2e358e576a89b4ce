"""What a stranger may have done to a board before it is submitted, seals made again where they can be."""

import os
import shutil

from sae_bench.records.files import read_sealed, write_sealed

EDITED = "topk.synthetic.w24.l0_3.seed0"


def sealed_again(path, change):
    content = read_sealed(path)
    change(content)
    write_sealed(path, content)


def of_all_documents(content):
    """Better by a tenth in every document, in the score and in its error: a record that agrees with itself."""
    sums = content["by_document"]
    score = content["scores"]["fve"]
    of_error, of_variance = score["formula"].removeprefix("1 - ").split(" / ")
    sums[of_error] = [0.9 * value for value in sums[of_error]]
    for one in content["scores"].values():
        if (one["formula"] or "").endswith(f"{of_error} / {of_variance}"):
            share = sum(sums[of_error]) / sum(sums[of_variance])
            one["value"] = 1 - share if one["formula"].startswith("1 -") else share


def of_a_share(content):
    content["scores"]["dead_share"]["value"] = 0.5


def link(folder):
    (folder / "saes" / EDITED / "metrics.jsonl").unlink()
    (folder / "saes" / EDITED / "metrics.jsonl").symlink_to("/etc/hostname")


def linked_folder(folder):
    shutil.move(folder / "saes" / EDITED, folder.parent / "elsewhere")
    (folder / "saes" / EDITED).symlink_to(folder.parent / "elsewhere")


def record(folder):
    return folder / "records" / f"{EDITED}.reconstruction.json"


def of_manifest(change):
    return lambda folder: sealed_again(folder / "run.json", change)


def of_record(change):
    def changed(folder):
        sealed_again(record(folder), change)

    return changed


def of_sae(change):
    """In every record of the SAE: they agree with each other."""

    def changed(folder):
        for path in (folder / "records").glob(f"{EDITED}.*.json"):
            sealed_again(path, change)

    return changed


def by_raters(content):
    """What nobody measures again, with numbers of one's own."""
    content.update(measured_on="raters")


def of_a_study(folder):
    """Raters who measured what nobody measures again."""
    content = read_sealed(record(folder)) | {"task": "human", "measured_on": "raters"}
    write_sealed(folder / "records" / f"{EDITED}.human.json", content)


def of_another_task(content):
    content["metrics"]["fve"] = content["metrics"]["dead_share"] | {"name": "fve"}


def without_task(folder):
    """A task at which all do badly, in none of the records."""
    for path in (folder / "records").glob("*.ground_truth.json"):
        path.unlink()


def of_density(change):
    return lambda folder: sealed_again(folder / "records" / f"{EDITED}.feature_density.json", change)


def of_every_record(change):
    def changed(folder):
        for path in (folder / "records").glob("*.json"):
            sealed_again(path, change)

    return changed


def dropped(folder):
    """An SAE that nobody was to see, taken out of the manifest as well."""
    for path in (folder / "records").glob(f"{EDITED}.*.json"):
        path.unlink()
    shutil.rmtree(folder / "saes" / EDITED)
    sealed_again(folder / "run.json", lambda content: content["saes"].remove(EDITED))


ATTACKS = [
    (link, "metrics.jsonl is a link, or no file"),
    (linked_folder, f"{EDITED} is a link, or no file"),
    (lambda folder: os.mkfifo(folder / "records" / "pipe.json"), "pipe.json is a link, or no file"),
    (lambda folder: (folder / "setup.py").write_text("import os"), "setup.py is covered by no seal"),
    (lambda folder: (folder / "records" / "a.b.json").write_text("{"), "a.b.json is covered by no seal"),
    (lambda folder: record(folder).unlink(), "reconstruction.json is missing"),
    (dropped, "asks for topk at synthetic, width 24, target 3, seed 0, of which there is no record"),
    (of_record(lambda content: content["scores"]["fve"].update(value=0.99)), "fve is 0.99, its sums give"),
    (of_record(lambda content: content["sae"].update(label="top\u202ek")), "characters that hide or turn text"),
    (of_record(lambda content: content["sae"].update(id="../../out")), "'../../out' is no name of an SAE"),
    (of_record(lambda content: content["provenance"].update(model_sha256="0" * 64)), "its model_sha256 is 000"),
    (of_record(lambda content: content.update(task_version="0")), "measured by reconstruction 0, this version has"),
    (of_record(lambda content: content.update(schema_version=99)), "schema_version 99"),
    (of_record(lambda of: of["provenance"]["versions"].update({"sae-arch-bench": "99.0.0"})), "update it"),
    (of_every_record(lambda content: content["provenance"].update(config_hash="0" * 64)), "is not of the run"),
    (of_record(lambda content: content["sae"].update(id="relu.other")), "is a record of relu.other.reconstruction"),
    (of_manifest(lambda of: of.update(plugins={"x.py": "0"})), "names plugins"),
    (of_manifest(lambda of: of.update(saes=3)), "has no saes"),
    (of_manifest(lambda of: of["config"].update(eval_skip=5)), "another hash"),
    (lambda folder: (folder / "run.json").write_text("["), "run.json"),
    (of_manifest(lambda of: of.update(asked=[])), "what its commands asked for is of another form"),
    (without_task, "asks for the task ground_truth, of which there is no record"),
    (of_record(by_raters), "says that it is measured on raters, and reconstruction is measured on tokens"),
    (of_record(lambda of: of.update(measured_on="texts")), "says that it is measured on texts"),
    (of_record(lambda of: of.update(not_measured="does not apply")), "says that reconstruction does not apply"),
    (of_record(lambda of: of.update(failure="out of memory")), "has scores, and says that nothing was measured"),
    (of_a_study, "human.json has the metric cosine, which is that of reconstruction"),
    (of_density(of_another_task), "has fve, which feature_density does not measure so"),
    (of_record(lambda of: of["metrics"]["fve"].update(better="down")), "has fve, which reconstruction does not"),
    (of_record(lambda of: of["sae"].update(label="topk:k_aux=64")), "says of its SAE what its other records do"),
    (of_record(lambda of: of["provenance"].update(eval_tokens=10**9)), "its eval_tokens is 1000000000, others' is"),
    (of_record(lambda of: of["provenance"]["config"].update(tokens=10**9)), "its config is "),
    (of_every_record(lambda of: of["provenance"]["config"].update(tokens=10**9)), "is not of the run"),
    (of_every_record(lambda of: of["provenance"].update(model="google/gemma-2-2b")), "names synthetic:toy, the re"),
    (of_every_record(lambda of: of["provenance"].update(dataset="the Pile")), "names synthetic:toy, the records t"),
    (of_every_record(lambda of: of["provenance"].update(preset="paper")), "names short, the records paper"),
]  # fmt: skip
"""Each with what is said of it."""
