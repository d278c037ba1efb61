"""Evaluation: teacher forced and decoded. `task_evaluations` needs seqio and is not imported."""

from prompt_tuning.evaluation.evaluate import Decoded as Decoded
from prompt_tuning.evaluation.evaluate import Evaluation as Evaluation
from prompt_tuning.evaluation.evaluate import TeacherForced as TeacherForced
