"""Evaluation: teacher forced and decoded."""

from prompt_tuning.evaluation.evaluate import Decoded as Decoded
from prompt_tuning.evaluation.evaluate import Evaluation as Evaluation
from prompt_tuning.evaluation.evaluate import Result as Result
from prompt_tuning.evaluation.evaluate import TeacherForced as TeacherForced
