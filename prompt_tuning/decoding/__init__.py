"""Decoding: from inputs to answers."""

from prompt_tuning.decoding.generate import greedy as greedy
from prompt_tuning.decoding.generate import make_generate as make_generate
