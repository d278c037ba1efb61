"""Training: the split, the optimizer, the step, the loop and its metrics."""

from prompt_tuning.training.loop import Every as Every
from prompt_tuning.training.loop import train as train
from prompt_tuning.training.optimizer import Optimizer as Optimizer
from prompt_tuning.training.optimizer import adafactor as adafactor
from prompt_tuning.training.schedules import learning_rate as learning_rate
from prompt_tuning.training.state import RunState as RunState
from prompt_tuning.training.state import split_model as split_model
from prompt_tuning.training.state import start as start
from prompt_tuning.training.step import make_eval_step as make_eval_step
from prompt_tuning.training.step import make_train_step as make_train_step
