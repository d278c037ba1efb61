"""Splits that cannot be read by index: too long to be kept, or without end.

They run through seqio's tf.data pipeline, shuffled by its buffer, and its place in the stream is
part of a run's state: whoever goes on with a run sees the batches that it would have seen.
"""

import tensorflow as tf

from prompt_tuning.data.streams.batches import StreamBatches as StreamBatches
from prompt_tuning.data.streams.places import Snapshot as Snapshot
from prompt_tuning.data.streams.stream import Stream as Stream

# TensorFlow takes a whole GPU's memory on its first operation, and here it only handles text.
tf.config.set_visible_devices([], "GPU")
