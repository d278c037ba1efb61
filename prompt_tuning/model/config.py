"""The shape of a T5: one frozen configuration and the table of named sizes."""

import dataclasses
import math

from prompt_tuning.errors import ConfigError, nearest
from prompt_tuning.model.layers import ACTIVATIONS
from prompt_tuning.model.quantization import Quantization
from prompt_tuning.model.remat import remat_policy

DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("auto", "plain", "fused")
# Those of small and base: about as long to compile layer by layer as in a loop.
UNROLLED_LAYERS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Everything that decides the architecture and arithmetic of a T5.

    The defaults are those of T5 1.1, which LM-adapted T5, mT5 and ByT5 share. T5 1.0 differs by
    `mlp_activations=("relu",)` and `tied_logits=True`.

    Attributes:
        vocab_size: rows of the embedding table; at least the ids of the vocabulary.
        embed_dim: D.
        mlp_dim: F.
        num_heads: N.
        head_dim: H. N * H may differ from D (T5 1.1 small: 384 and 512).
        encoder_layers: blocks of the encoder.
        decoder_layers: blocks of the decoder.
        mlp_activations: one for a plain MLP, two for a gated one.
        tied_logits: read the logits off the embedding table, scaled by D**-0.5 (T5 1.0).
        relative_buckets: buckets of the relative-position tables.
        relative_max_distance: distances from here on share the last bucket.
        dropout_rate: of every dropout site; active only when the model is given a key.
        dtype: of activations. Norms, softmax, logits and loss are float32 whatever it is.
        param_dtype: in which the base parameters are stored.
        quantization: 'int8' or 'int4' to store the projections inside the layers as integers, see
            `model.quantization`; for a base that is frozen. None stores them in `param_dtype`.
        quantization_group: inputs that share a scale; None for one scale for each output.
        attention: 'plain'; 'fused', a kernel that never writes the scores to memory, see
            `model.fused_attention`; 'auto' for the fused one on a TPU and for shapes that suit it.
        remat: name of the rematerialisation policy, see `model.remat`.
        unroll: compile every layer on its own (True) or one loop over all (False), whose
            compilation does not grow with the number of layers. None unrolls short stacks on a CPU,
            see `unrolled`.
    """

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    head_dim: int = 64
    encoder_layers: int
    decoder_layers: int
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    tied_logits: bool = False
    relative_buckets: int = 32
    relative_max_distance: int = 128
    dropout_rate: float = 0.0
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    quantization: str | None = None
    quantization_group: int | None = None
    attention: str = "auto"
    remat: str = "none"
    unroll: bool | None = None

    def __post_init__(self):
        for field in ("dtype", "param_dtype"):
            _check_dtype(field, getattr(self, field))
        for name in self.mlp_activations:
            if name not in ACTIVATIONS:
                raise ConfigError(
                    f"T5Config(mlp_activations={self.mlp_activations}): unknown activation "
                    f"{name!r}, known are {sorted(ACTIVATIONS)}.{nearest(name, ACTIVATIONS)}"
                )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ConfigError(
                f"T5Config(dropout_rate={self.dropout_rate}): expected a rate in [0, 1)."
            )
        if self.attention not in ATTENTIONS:
            raise ConfigError(
                f"T5Config(attention={self.attention!r}): expected one of {', '.join(ATTENTIONS)}."
                f"{nearest(str(self.attention), ATTENTIONS)}"
            )
        remat_policy(self.remat)
        self._check_quantization()

    def unrolled(self, layers: int, platform: str) -> bool:
        """Whether a stack of so many layers is compiled layer by layer.

        On a CPU the loop costs a part of every step, as it takes each layer's kernels out of the
        stack. But it keeps layers apart: unrolled, nothing would be computed again as `remat` says.
        """
        if self.unroll is not None:
            return self.unroll
        return platform == "cpu" and self.remat == "none" and layers <= UNROLLED_LAYERS

    @property
    def quantized(self) -> Quantization | None:
        """How the projections inside the layers are stored; None in `param_dtype`."""
        if self.quantization is None:
            return None
        return Quantization(dtype=self.quantization, group=self.quantization_group)

    def _check_quantization(self) -> None:
        group = self.quantization_group
        if self.quantized is None and group is not None:
            raise ConfigError(
                f"T5Config(quantization_group={group}) without quantization: set QUANTIZATION to "
                "'int8' or 'int4', or leave QUANTIZATION_GROUP None."
            )
        inputs = {
            "embed_dim": self.embed_dim,
            "mlp_dim": self.mlp_dim,
            "num_heads * head_dim": self.num_heads * self.head_dim,
        }
        for name, size in inputs.items():
            if group and size % group:
                common = math.gcd(*inputs.values())
                possible = ", ".join(str(n) for n in range(2, common + 1) if common % n == 0)
                raise ConfigError(
                    f"T5Config(quantization_group={group}) does not divide {name} = {size}. Set "
                    f"QUANTIZATION_GROUP to one of {possible}, which divide all inputs of this "
                    "model's projections, or to None for one scale for each output."
                )


def _check_dtype(field: str, dtype: str) -> None:
    if dtype in DTYPES:
        return
    if dtype == "float16":
        raise ConfigError(
            f"T5Config({field}='float16'): T5 was trained in bfloat16 and its activations exceed "
            "the largest float16 (65504), so that losses turn into NaN from size large on. "
            "Use 'bfloat16', which costs the same, or 'float32'."
        )
    raise ConfigError(
        f"T5Config({field}={dtype!r}): expected one of {DTYPES}.{nearest(str(dtype), DTYPES)}"
    )


def _sizes(table: str, **shared) -> dict[str, dict]:
    """Reads a table of sizes; every row is `size enc dec N H D F`."""
    rows = (line.split() for line in table.strip().splitlines())
    fields = ("encoder_layers", "decoder_layers", "num_heads", "head_dim", "embed_dim", "mlp_dim")
    return {
        size: dict(zip(fields, map(int, numbers), strict=True)) | shared for size, *numbers in rows
    }


_T5_1_1 = """
    small    8   8    6   64    512   1024
    base    12  12   12   64    768   2048
    large   24  24   16   64   1024   2816
    xl      24  24   32   64   2048   5120
    xxl     24  24   64   64   4096  10240
"""
_MT5_SCALED = """
    80b     16  16  256   64   8192  65536
"""
_MT5_LARGEST = """
    150b    32  32   96  128  12288  36864
"""
_BYT5 = """
    small   12   4    6   64   1472   3584
    base    18   6   12   64   1536   3968
    large   36  12   16   64   1536   3840
    xl      36  12   32   64   2560   6720
    xxl     36  12   64   64   4672  12352
"""
_T5_1_0 = """
    small    6   6    8   64    512   2048
    base    12  12   12   64    768   3072
    large   24  24   16   64   1024   4096
    3b      24  24   32  128   1024  16384
    11b     24  24  128  128   1024  65536
"""
# Ours: `tiny` runs a step in milliseconds (tests), `mini` can be pretrained on two CPU cores.
_OURS = """
    tiny     2   2    4    8     32     64
    mini     4   4    4   64    256    512
"""

FAMILIES: dict[str, dict[str, dict]] = {
    "t5_1_1": _sizes(_T5_1_1, vocab_size=32128),
    # LM adaptation trains the same architecture for another 100,000 steps (Lester et al., §3).
    "t5_1_1_lm100k": _sizes(_T5_1_1, vocab_size=32128),
    "mt5": {
        **_sizes(_T5_1_1, vocab_size=250112),
        **_sizes(_MT5_SCALED, vocab_size=250112),
        **_sizes(_MT5_LARGEST, vocab_size=250368),
    },
    "byt5": _sizes(_BYT5, vocab_size=384),
    "t5": _sizes(_T5_1_0, vocab_size=32128, mlp_activations=("relu",), tied_logits=True),
    "ours": _sizes(_OURS, vocab_size=8192),
}
SIZES: dict[str, dict] = {
    f"{family}_{size}": fields
    for family, sizes in FAMILIES.items()
    for size, fields in sizes.items()
}


def t5_config(name: str, **overrides) -> T5Config:
    """Returns the named size, with some fields replaced; None leaves a field as it is.

    >>> t5_config("t5_1_1_small", dropout_rate=0.1).num_heads
    6

    Raises:
        ConfigError: the name is in no table.
    """
    if name not in SIZES:
        raise ConfigError(
            f"Unknown model size {name!r}, known are {', '.join(SIZES)}.{nearest(name, SIZES)}"
        )
    given = {field: value for field, value in overrides.items() if value is not None}
    return T5Config(**SIZES[name] | given)


def model_name(family: str | None, size: str | None) -> str:
    """Returns the name under which `t5_config` knows a size of a family.

    In gin files a family and a size come from two files; None is what neither has said.

    >>> model_name("t5_1_1", "xl")
    't5_1_1_xl'

    Raises:
        ConfigError: there is no such family, or it does not come in this size.
    """
    if family not in FAMILIES:
        raise ConfigError(
            f"MODEL_FAMILY is {family!r}, but the families are {', '.join(FAMILIES)}."
            f"{nearest(str(family), FAMILIES)} Load the file of one, such as models/t5_1_1.gin, or "
            "set MODEL_NAME."
        )
    if size not in FAMILIES[family]:
        raise ConfigError(
            f"MODEL_SIZE is {size!r}, but {family} comes in the sizes "
            f"{', '.join(FAMILIES[family])}.{nearest(str(size), FAMILIES[family])} Choose one of "
            "their files models/sizes/SIZE.gin, or another family."
        )
    return f"{family}_{size}"


def sizes_like(config: T5Config) -> list[str]:
    """Returns the named sizes that have the shapes of an architecture."""
    shapes = ("encoder_layers", "decoder_layers", "num_heads", "head_dim", "embed_dim", "mlp_dim")
    found = {name: t5_config(name) for name in SIZES}
    return [
        name
        for name, known in found.items()
        if all(getattr(known, field) == getattr(config, field) for field in shapes)
        and len(known.mlp_activations) == len(config.mlp_activations)
        and known.vocab_size == config.vocab_size
    ]
