"""Evaluation: teacher forced, decoded and scored; what is written of answers."""

from prompt_tuning.evaluation.answering import Answer as Answer
from prompt_tuning.evaluation.answering import Answering as Answering
from prompt_tuning.evaluation.answering import ChooseLabel as ChooseLabel
from prompt_tuning.evaluation.answering import Decode as Decode
from prompt_tuning.evaluation.confusion import Confusion as Confusion
from prompt_tuning.evaluation.confusion import confusion as confusion
from prompt_tuning.evaluation.evaluate import Evaluation as Evaluation
from prompt_tuning.evaluation.evaluate import Result as Result
from prompt_tuning.evaluation.evaluate import TeacherForced as TeacherForced
from prompt_tuning.evaluation.task_metrics import TaskMetrics as TaskMetrics
