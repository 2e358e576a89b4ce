"""Ways to score an explanation: each asks the judge some questions about held-out excerpts and marks the answers."""

from sae_bench.autointerp.scorers.base import Scorer
from sae_bench.autointerp.scorers.detection import Detection
from sae_bench.autointerp.scorers.fuzzing import Fuzzing
from sae_bench.autointerp.scorers.saebench import SAEBenchDetection
from sae_bench.autointerp.scorers.simulation import Simulation
from sae_bench.autointerp.settings import ScorerName

SCORERS: dict[ScorerName, Scorer] = {
    "detection": Detection(),
    "fuzzing": Fuzzing(),
    "simulation": Simulation(),
    "saebench_detection": SAEBenchDetection(),
}
