"""What is asked of tasks that bring text of their own.

These settings decide no weight and no other metric, so a run's identity leaves them out, as it does the judges'. What
they do decide is in the records of the tasks (`OwnText.identity`).
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sae_bench.parsing import Count, Flag, Heading


class TextSettings(BaseModel):
    """The settings of a run that are read by tasks with text of their own."""

    # Help follows from the docstrings; validators are built when they are first needed, which `--help` does not.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    probe_sets: Annotated[tuple[str, ...], Flag(Heading.PROBING)] = ()
    """For sparse_probing: small, the 20 smallest sets; all; or names of sets (docs/probing.md). Default: small, none
    beside --probe-set."""
    probe_set: Annotated[tuple[str, ...], Flag(Heading.PROBING)] = ()
    """Labelled texts of your own to probe: csv, jsonl or parquet files with columns text and label, which has two
    values."""
    absorption_words: Annotated[Count, Field(ge=1), Flag(Heading.PROBING)] = 150
    """For absorption: at most so many words of each first letter, four in five of them for its probes to learn from."""
