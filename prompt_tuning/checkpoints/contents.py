"""What a model checkpoint holds, whatever its format, and which T5 that is."""

import dataclasses
import functools
import re
from collections.abc import Mapping

import numpy as np
from etils import epath
from flax import nnx

from prompt_tuning.checkpoints import mapping
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.errors import CheckpointError, nearest
from prompt_tuning.model import T5, T5Config, parameters

DTYPES = ("float32", "bfloat16", "float16", "float64")
# Fields of T5Config that the shapes of a checkpoint decide.
SHAPE_FIELDS = (
    "vocab_size",
    "embed_dim",
    "mlp_dim",
    "num_heads",
    "head_dim",
    "encoder_layers",
    "decoder_layers",
    "relative_buckets",
    "tied_logits",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """An opened model checkpoint: nothing but names and shapes is read yet.

    Attributes:
        kind: name of the format, as in `checkpoints.formats`.
        where: the folder or file that was opened.
        config: the architecture.
        tensors: the base parameters under t5x's names (paths below `target/`), one array a layer.
        methods: trained parameters beside the base's, such as `encoder/prompt/prompt/prompt`.
        slots: the optimizer's arrays, `<parameter>/<slot>` with t5x's slots m, v, v_row and v_col.
        step: the number of updates behind these parameters; None if the format does not say.
        stated: fields of `config` that the format states; what neither they nor shapes decide is
            T5's own.
        digest: the `parameters.Fingerprint` of `tensors`; None if the format does not say.
        stored_as: how they lie in the file, where that is not how they are handed out.
    """

    kind: str
    where: epath.Path
    config: T5Config
    tensors: Mapping[str, Stored]
    methods: Mapping[str, Stored] = dataclasses.field(default_factory=dict)
    slots: Mapping[str, Stored] = dataclasses.field(default_factory=dict)
    step: int | None = None
    stated: frozenset[str] = frozenset()
    digest: str | None = None
    stored_as: str | None = None

    def check_digest(self, found: str) -> None:
        """Raises CheckpointError if the values that were read are not those that were written."""
        if self.digest is not None and self.digest != found:
            raise CheckpointError(
                f"{self.where!s} is damaged: its values have the hash {found[:12]}, those that "
                f"were written had {self.digest[:12]}. Fetch it again, or convert it again."
            )


# What the original's methods add to a model; everything else that is not T5's is an error.
_METHODS = re.compile(
    r"encoder/prompt/.+"
    r"|(encoder|decoder)/layers_\d+/prompt/.+"
    r"|(encoder|decoder)/layers_\d+/.+/ia3_scaling"
)


def contents(
    *,
    kind: str,
    where: epath.Path,
    tensors: Mapping[str, Stored],
    slots: Mapping[str, Stored] | None = None,
    step: int | None = None,
    column: str = "t5x",
    settings: Mapping[str, object] | None = None,
    digest: str | None = None,
    stored_as: str | None = None,
) -> Contents:
    """Checks that arrays under t5x's names are those of one T5, each of the right shape.

    Args:
        tensors: base and method parameters together.
        column: the column of `mapping.RULES` whose names the user knows, for messages.
        settings: fields of T5Config that the format states; those that shapes show as well have to
            agree with them.
        digest: see `Contents`.
        stored_as: see `Contents`.

    Raises:
        CheckpointError: arrays are missing, left over, misshapen, not of floating point, or
            contradict `settings`.
    """
    methods = {name: one for name, one in tensors.items() if _METHODS.fullmatch(name)}
    base = {name: one for name, one in tensors.items() if name not in methods}
    for one in tensors.values():
        if one.dtype.name not in DTYPES:
            raise CheckpointError(
                f"{one.where} holds {one.dtype}, expected one of {', '.join(DTYPES)}."
            )
    config = _config(base, where, column, settings or {})
    wanted = expected_shapes(config)
    _check_names(base, wanted, where, column)
    for name, shape in wanted.items():
        if base[name].shape != shape:
            raise CheckpointError(
                f"{base[name].where} has shape {base[name].shape} (as {name}), but the other "
                f"arrays of {where} are those of a T5 where it is {shape}."
            )
    return Contents(
        kind=kind,
        where=where,
        config=config,
        tensors=base,
        methods=methods,
        slots=slots or {},
        step=step,
        stated=frozenset(settings or {}),
        digest=digest,
        stored_as=stored_as,
    )


@functools.cache
def expected_shapes(config: T5Config) -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of every base parameter under t5x's names."""
    shapes = parameters.named(nnx.state(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0)))))
    wanted = {}
    for name, leaf in shapes.items():
        if "/layers/" in name:
            for i in range(leaf.shape[0]):
                wanted[name.replace("/layers/", f"/layers_{i}/")] = leaf.shape[1:]
        else:
            wanted[name] = leaf.shape
    return wanted


def _config(
    tensors: Mapping[str, Stored],
    where: epath.Path,
    column: str,
    settings: Mapping[str, object],
) -> T5Config:
    """Reads the architecture off the shapes.

    Distances beyond the last bucket and the activations of the MLP cannot be seen in shapes: those
    are T5's own unless `settings` name others.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            shown = _shown(name, column)
            known = [_shown(other, column) for other in tensors]
            raise CheckpointError(
                f"{where} has no {shown!r}, which every T5 has; is it a checkpoint of another "
                f"architecture, or incomplete?{nearest(shown, known)}"
            )
        if len(tensors[name].shape) != dimensions:
            raise CheckpointError(
                f"{tensors[name].where} has shape {tensors[name].shape}, expected {dimensions} "
                "dimensions."
            )
        return tensors[name].shape

    vocab_size, embed_dim = shape(mapping.EMBEDDING, 2)
    num_heads, buckets = shape("encoder/relpos_bias/rel_embedding", 2)
    inner = shape("encoder/layers_0/attention/query/kernel", 2)[1]
    if num_heads < 1 or inner % num_heads:
        raise CheckpointError(
            f"{where}: attention kernels of width {inner} cannot be divided among the {num_heads} "
            "heads of the table of relative positions."
        )
    gated = "encoder/layers_0/mlp/wi_0/kernel" in tensors
    tied = "decoder/logits_dense/kernel" not in tensors
    seen = {
        "vocab_size": vocab_size,
        "embed_dim": embed_dim,
        "mlp_dim": shape("encoder/layers_0/mlp/wo/kernel", 2)[0],
        "num_heads": num_heads,
        "head_dim": inner // num_heads,
        "encoder_layers": _layers(tensors, "encoder"),
        "decoder_layers": _layers(tensors, "decoder"),
        "relative_buckets": buckets,
        "tied_logits": tied,
    }
    for field, value in seen.items():
        if settings.get(field, value) != value:
            raise CheckpointError(
                f"The configuration of {where} says {field} is {settings[field]}, its arrays say "
                f"{value}. They do not belong together."
            )
    # T5 1.0 is the family with one activation.
    activations = ("gelu", "linear") if gated else ("relu",)
    activations = settings.get("mlp_activations", activations)
    if len(activations) != (2 if gated else 1):  # pyright: ignore[reportArgumentType]
        raise CheckpointError(
            f"The configuration of {where} says mlp_activations is {activations}, but its arrays "
            f"are those of {'a gated' if gated else 'an ungated'} MLP. They do not belong together."
        )
    return T5Config(**{**settings, **seen, "mlp_activations": activations})  # pyright: ignore[reportArgumentType]


def _layers(tensors: Mapping[str, Stored], stack: str) -> int:
    pattern = re.compile(rf"{stack}/layers_(\d+)/.+")
    # Counted, so that a layer of a false number is left over and does not make a model of its size.
    return len({match[1] for name in tensors if (match := pattern.fullmatch(name))})


def _check_names(
    found: Mapping[str, Stored],
    wanted: Mapping[str, tuple[int, ...]],
    where: epath.Path,
    column: str,
) -> None:
    parameters.check_names(
        found=[_shown(name, column) for name in found],
        wanted=[_shown(name, column) for name in wanted],
        where=str(where),
    )


def _shown(name: str, column: str) -> str:
    """The name that stands in the user's file."""
    there = mapping.translated(name, source="t5x", target=column)
    return there[0] if there else name


def widest_dtype(tensors: Mapping[str, Stored]) -> np.dtype:
    """Returns the dtype that holds most of the bytes."""
    by_dtype: dict[np.dtype, int] = {}
    for one in tensors.values():
        by_dtype[one.dtype] = by_dtype.get(one.dtype, 0) + one.nbytes
    return max(by_dtype, key=by_dtype.__getitem__)
