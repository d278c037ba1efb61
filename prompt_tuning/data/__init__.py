"""Data: from tasks and text to batches.

Nothing is imported here: `seqio_tasks` needs TensorFlow, the other modules must not.
"""
