"""Every way of decoding, for the laws that all of them obey; and decoders to decode with."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from prompt_tuning.batch import PAD
from prompt_tuning.decoding import (
    BeamSearch,
    Decoder,
    Greedy,
    HuggingFaceBeamSearch,
    Sample,
    Strategy,
    Terms,
    generate,
)
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, small_model

LENGTH = 6
STRATEGIES = {
    "greedy": Greedy(),
    "warm": Sample(temperature=1.3, decodes=3),
    "top k": Sample(top_k=4, rescale_log_probs=False),
    "top p": Sample(top_p=0.8, temperature=0.7, decodes=2),
    "one beam": BeamSearch(),
    "beams": BeamSearch(beams=3, alpha=1.0),
    "best of beams": BeamSearch(beams=4, alpha=0.0, decodes=2),
    "beams of transformers": HuggingFaceBeamSearch(beams=3, decodes=2),
}
# Any token may end an answer: this one is said early in some answers and late in others.
EOS = 16
KEYS = jax.random.split(jax.random.key(0), 4)


def unpadded(logits):
    """Makes padding impossible to say, which no trained model says either."""
    return logits.at[..., PAD].set(-1e4)


@dataclasses.dataclass(frozen=True)
class Unpadded:
    """A strategy that never says padding: a whole sequence hides where it was said."""

    strategy: Strategy

    def __call__(self, decoder, terms, keys):
        def extend(tokens, position, past):
            logits, past = decoder.extend(tokens, position, past)
            return unpadded(logits), past

        return self.strategy(decoder._replace(extend=extend), terms, keys)


@functools.cache
def compiled(name, model_name, length):
    graph, state = nnx.split(small_model(model_name))

    def run(inputs, keys, prefix, limits):
        return generate(
            nnx.merge(graph, state),
            inputs,
            strategy=Unpadded(STRATEGIES[name]),
            length=length,
            eos_id=EOS,
            keys=keys,
            prefix=prefix,
            limits=limits,
        )

    return jax.jit(run, compiler_options=QUICKLY)


def answers(
    name, *, model="T5 1.1 with a prompt", length=LENGTH, rows=slice(None), prefix=None, limits=None
):
    """Answers rows of the small batch; compiled once for every model, length and number of rows."""
    inputs = BATCH.inputs[rows]
    prefix = jnp.full((len(inputs), length), PAD) if prefix is None else jnp.asarray(prefix)
    limits = jnp.full(len(inputs), length) if limits is None else jnp.asarray(limits)
    return compiled(name, model, length)(inputs, KEYS[rows], prefix, limits)


def table_decoder(table, rows):
    """A model that knows only the last token: row t of the table are the logits after t."""
    table = jnp.asarray(table, jnp.float32)

    def extend(tokens, position, past):
        return table[tokens], past

    return Decoder(lambda answers: (), extend, lambda past, sources: past)


def decode_table(strategy, table, *, length, rows=1, eos_id=1, seed=0):
    """Decodes with the table, `PAD` before the first token, the same for every row."""
    terms = Terms(jnp.full((rows, length), PAD), jnp.full(rows, length), eos_id)
    keys = jax.random.split(jax.random.key(seed), rows)

    def run(keys):
        return strategy(table_decoder(table, rows), terms, keys)

    return jax.jit(run, compiler_options=QUICKLY)(keys)
