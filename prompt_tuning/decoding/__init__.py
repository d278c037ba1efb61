"""Decoding: from inputs to answers."""

from prompt_tuning.decoding.answers import Answers as Answers
from prompt_tuning.decoding.answers import Decoder as Decoder
from prompt_tuning.decoding.answers import Strategy as Strategy
from prompt_tuning.decoding.answers import Terms as Terms
from prompt_tuning.decoding.beam_search import BeamSearch as BeamSearch
from prompt_tuning.decoding.ensemble import MeanLogProbability as MeanLogProbability
from prompt_tuning.decoding.ensemble import Vote as Vote
from prompt_tuning.decoding.ensemble import make_ensemble as make_ensemble
from prompt_tuning.decoding.generate import generate as generate
from prompt_tuning.decoding.generate import greedy as greedy
from prompt_tuning.decoding.generate import make_generate as make_generate
from prompt_tuning.decoding.hugging_face_beams import (
    HuggingFaceBeamSearch as HuggingFaceBeamSearch,
)
from prompt_tuning.decoding.sampling import Greedy as Greedy
from prompt_tuning.decoding.sampling import Sample as Sample
from prompt_tuning.decoding.scoring import make_rank as make_rank
from prompt_tuning.decoding.scoring import make_score as make_score
from prompt_tuning.decoding.scoring import rank as rank
from prompt_tuning.decoding.scoring import score as score
