"""What a model is fed, under t5x's names: the padded features of an example, as seqio makes them.

Training and evaluation need none of it: a `Batch` holds the same tokens, and the model shifts the
targets itself. This is for whoever has a model, a script or reference arrays that speak t5x.

Nothing is packed: several examples in one row would share a prompt that is learnt for one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from prompt_tuning.batch import PAD
from prompt_tuning.data.examples import Example
from prompt_tuning.errors import ConfigError, DataError

Features = dict[str, Int[np.ndarray, "B L"]]


@runtime_checkable
class Converter(Protocol):
    """From examples to the features of a model.

    `lengths` says how long `inputs` and `targets` may be, and what they are padded to.
    """

    def __call__(self, examples: Sequence[Example], lengths: Mapping[str, int]) -> Features: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncDec:
    """For an encoder that reads the inputs and a decoder that writes the targets.

    inputs 7 8 1, targets 3 9 1, padded to 4 and 5:

        encoder_input_tokens   7 8 1 0
        decoder_target_tokens  3 9 1 0 0
        decoder_input_tokens   0 3 9 1 0
        decoder_loss_weights   1 1 1 0 0
    """

    def __call__(self, examples: Sequence[Example], lengths: Mapping[str, int]) -> Features:
        _check_lengths(lengths, ("inputs", "targets"))
        inputs = [_checked(example, "inputs", lengths) for example in examples]
        targets = [_checked(example, "targets", lengths) for example in examples]
        encoder = {"encoder_input_tokens": _pad(inputs, lengths["inputs"])}
        return encoder | _language_model(_pad(targets, lengths["targets"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderOnly:
    """For a decoder that only writes targets; inputs are not read.

    targets 3 9 1, padded to 5:

        decoder_target_tokens  3 9 1 0 0
        decoder_input_tokens   0 3 9 1 0
        decoder_loss_weights   1 1 1 0 0
    """

    def __call__(self, examples: Sequence[Example], lengths: Mapping[str, int]) -> Features:
        _check_lengths(lengths, ("targets",))
        targets = [_checked(example, "targets", lengths) for example in examples]
        return _language_model(_pad(targets, lengths["targets"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM:
    """For a decoder that reads the inputs, seeing all of them at once, and goes on to the targets.

    inputs 7 8 1, targets 3 9 1, padded to 4 and 5:

        decoder_target_tokens     7 8 1 3 9 1 0 0 0
        decoder_input_tokens      0 7 8 1 3 9 1 0 0
        decoder_loss_weights      0 0 0 1 1 1 0 0 0
        decoder_causal_attention  1 1 1 1 0 0 0 0 0   (1: seen by all, the start included)

    Attributes:
        loss_on_targets_only: gives the tokens of the inputs no weight.
    """

    loss_on_targets_only: bool = True

    def __call__(self, examples: Sequence[Example], lengths: Mapping[str, int]) -> Features:
        _check_lengths(lengths, ("inputs", "targets"))
        rows, widths = [], []
        for example in examples:
            inputs = _checked(example, "inputs", lengths)
            rows.append(np.concatenate([inputs, _checked(example, "targets", lengths)]))
            widths.append(len(inputs))
        features = _language_model(_pad(rows, lengths["inputs"] + lengths["targets"]))
        places = np.arange(lengths["inputs"] + lengths["targets"])
        width = np.array(widths)[:, None]
        # One more than the inputs: there the last input is read and the first target written.
        features["decoder_causal_attention"] = (places <= width).astype(np.int32)
        if self.loss_on_targets_only:
            # As seqio does it, a padding token inside the inputs would get weight 1.
            real = features["decoder_loss_weights"].astype(bool)
            features["decoder_loss_weights"] = (real ^ (places < width)).astype(np.int32)
        return features


CONVERTERS: Mapping[str, Converter] = {
    "enc_dec": EncDec(),
    "decoder_only": DecoderOnly(),
    "prefix_lm": PrefixLM(),
    "prefix_lm_all": PrefixLM(loss_on_targets_only=False),
}


def _language_model(targets: Int[np.ndarray, "B U"]) -> Features:
    return {
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=PAD),
        "decoder_loss_weights": (targets != PAD).astype(np.int32),
    }


def _pad(rows: Sequence[Int[np.ndarray, " _"]], length: int) -> Int[np.ndarray, "B L"]:
    padded = np.full((len(rows), length), PAD, np.int32)
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = tokens
    return padded


def _checked(example: Example, feature: str, lengths: Mapping[str, int]) -> Int[np.ndarray, " L"]:
    tokens = getattr(example, feature)
    if len(tokens) > lengths[feature]:
        raise DataError(
            f"An example has {len(tokens)} {feature} tokens, but {lengths[feature]} were asked "
            "for. Trim the examples with TASK_FEATURE_LENGTHS or give a longer length."
        )
    return tokens


def _check_lengths(lengths: Mapping[str, int], features: Sequence[str]) -> None:
    if set(lengths) != set(features):
        raise ConfigError(
            f"The lengths are of {', '.join(lengths) or 'nothing'}, but this converter takes those "
            f"of: {', '.join(features)}."
        )
