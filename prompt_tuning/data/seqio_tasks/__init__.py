"""Seqio's tasks and mixtures: the only package that imports seqio and TensorFlow for examples.

Everything that a task says about its text happens here, once: its preprocessors, its tokenisation,
its trimming and end tokens. What comes out is kept in the cache, as long as the split and in its
order, and needs TensorFlow no more; only postprocessors and metrics still belong to the task.
"""

import tensorflow as tf

from prompt_tuning.data.seqio_tasks.examples import examples_of as examples_of
from prompt_tuning.data.seqio_tasks.examples import mixture_of as mixture_of
from prompt_tuning.data.seqio_tasks.judge import SeqioJudge as SeqioJudge
from prompt_tuning.data.seqio_tasks.loading import load as load
from prompt_tuning.data.seqio_tasks.model_vocabulary import ModelVocabulary as ModelVocabulary
from prompt_tuning.data.seqio_tasks.model_vocabulary import seqio_vocabulary as seqio_vocabulary
from prompt_tuning.data.seqio_tasks.model_vocabulary import with_vocabulary as with_vocabulary
from prompt_tuning.data.seqio_tasks.registry import import_task_modules as import_task_modules
from prompt_tuning.data.seqio_tasks.registry import is_mixture as is_mixture
from prompt_tuning.data.seqio_tasks.registry import is_stream as is_stream
from prompt_tuning.data.seqio_tasks.registry import use_folders as use_folders
from prompt_tuning.data.seqio_tasks.tfds_source import TfdsSource as TfdsSource

# TensorFlow takes a whole GPU's memory on its first operation, and here it only handles text.
tf.config.set_visible_devices([], "GPU")
