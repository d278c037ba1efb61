"""What a run takes, known before it runs: compiled ahead of time for devices that are not here.

v5e = topology("v5e:4x4")
placement = Partitioning(num_partitions=2).placement(v5e.devices)
plan = plan_training(split, step, optimizer, v5e, placement, rows=32, inputs=512, targets=16)
plan.fits, plan.memory.peak, plan.ratio
"""

from prompt_tuning.planning.chips import Chip as Chip
from prompt_tuning.planning.counts import Counts as Counts
from prompt_tuning.planning.counts import count as count
from prompt_tuning.planning.minimum import Sizes as Sizes
from prompt_tuning.planning.plan import Plan as Plan
from prompt_tuning.planning.programs import Split as Split
from prompt_tuning.planning.programs import plan_decoding as plan_decoding
from prompt_tuning.planning.programs import plan_evaluation as plan_evaluation
from prompt_tuning.planning.programs import plan_training as plan_training
from prompt_tuning.planning.topologies import Topology as Topology
from prompt_tuning.planning.topologies import topology as topology
