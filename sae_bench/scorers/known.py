"""Ways to score an explanation: each asks the judge some questions about held-out excerpts and marks the answers."""

from sae_bench.judge_config import ScorerName
from sae_bench.scorers.base import Scorer
from sae_bench.scorers.detection import Detection
from sae_bench.scorers.fuzzing import Fuzzing
from sae_bench.scorers.saebench import SAEBenchDetection
from sae_bench.scorers.simulation import Simulation

SCORERS: dict[ScorerName, Scorer] = {
    "detection": Detection(),
    "fuzzing": Fuzzing(),
    "simulation": Simulation(),
    "saebench_detection": SAEBenchDetection(),
}
