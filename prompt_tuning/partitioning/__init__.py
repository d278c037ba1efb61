"""Devices and processes: which there are, and what lies where."""

from prompt_tuning.partitioning.devices import Partitioning as Partitioning
from prompt_tuning.partitioning.devices import placement as placement
from prompt_tuning.partitioning.mesh import Placement as Placement
from prompt_tuning.partitioning.mesh import on_host as on_host
from prompt_tuning.partitioning.processes import connect as connect
from prompt_tuning.partitioning.processes import connected as connected
from prompt_tuning.partitioning.processes import is_main as is_main
