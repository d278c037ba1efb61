"""Checkpoints: base models and prompts of every format, and a run's own."""

from prompt_tuning.checkpoints.base import load_embeddings as load_embeddings
from prompt_tuning.checkpoints.base import load_model as load_model
from prompt_tuning.checkpoints.formats import load_vectors as load_vectors
from prompt_tuning.checkpoints.formats import open_model as open_model
from prompt_tuning.checkpoints.formats import open_prompt as open_prompt
from prompt_tuning.checkpoints.methods import attach as attach
from prompt_tuning.checkpoints.methods import attach_bank as attach_bank
from prompt_tuning.checkpoints.prompt_file import PromptFile as PromptFile
from prompt_tuning.checkpoints.run import RunCheckpoints as RunCheckpoints
