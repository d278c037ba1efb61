"""Checkpoints: a run's own, the base model it starts from, and prompts as files."""

from prompt_tuning.checkpoints.prompt_file import PromptFile as PromptFile
from prompt_tuning.checkpoints.prompt_file import load_vectors as load_vectors
from prompt_tuning.checkpoints.run import BaseCheckpoint as BaseCheckpoint
from prompt_tuning.checkpoints.run import RunCheckpoints as RunCheckpoints
from prompt_tuning.checkpoints.run import load_embeddings as load_embeddings
