"""Counts as people write them: 4096, 16k, 2M, 1e6."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field


def parse_count(text: object) -> int:
    """Read a count as people write it: 4096, 16k (16 x 1024 latents, as in "width 16k"), 2M (million), 1e6."""
    match = re.fullmatch(r"\s*([\d_.]+(?:e\d+)?)\s*([kKM]?)\s*", str(text))
    if not match:
        raise ValueError(f"{text!r} is not a count: write 4096, 16k or 2M")
    count = float(match[1]) * {"": 1, "k": 1024, "K": 1024, "M": 1_000_000}[match[2]]
    if not count < 1e18:
        raise ValueError(f"{text!r} is more than any machine holds: write a smaller count")
    return round(count)


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]
