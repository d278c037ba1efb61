"""Prompt tuning: freeze a pretrained T5, learn a short sequence of vectors in front of its input.

Nothing is imported here, so that `import prompt_tuning` costs nothing and the core (`model`,
`prompts`, `losses`, `training`) can be used without TensorFlow, seqio or gin.
"""

__version__ = "0.1.0"
