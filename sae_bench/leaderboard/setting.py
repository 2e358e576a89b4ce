"""What SAEs must have in common to be compared, and the order in which such groups of them are shown."""

from dataclasses import dataclass

from sae_bench.records.names import natural_order
from sae_bench.records.schema import Record


@dataclass(frozen=True)
class Setting:
    """What must be alike for two SAEs to be compared."""

    model: str
    site: str
    width: int

    @staticmethod
    def of(record: Record) -> "Setting":
        return Setting(record.provenance.model, record.sae.site.name, record.sae.d_sae)

    def __str__(self) -> str:
        return f"{self.model}, {self.site}, width {self.width}"

    def __lt__(self, other: "Setting") -> bool:
        mine, others = ((natural_order(of.model), natural_order(of.site), of.width) for of in (self, other))
        return mine < others
