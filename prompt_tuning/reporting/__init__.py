"""Reports of runs: one page that anybody can open, and its plots as pictures."""

from prompt_tuning.reporting.report import Report as Report
from prompt_tuning.reporting.report import report as report
from prompt_tuning.reporting.run_files import RunFiles as RunFiles
from prompt_tuning.reporting.run_files import read_run as read_run
