"""The frozen T5: configuration, named sizes and the model."""

from prompt_tuning.model.config import SIZES as SIZES
from prompt_tuning.model.config import T5Config as T5Config
from prompt_tuning.model.config import model_name as model_name
from prompt_tuning.model.config import t5_config as t5_config
from prompt_tuning.model.layers import BaseParam as BaseParam
from prompt_tuning.model.t5 import T5 as T5
from prompt_tuning.model.t5 import Encoded as Encoded
