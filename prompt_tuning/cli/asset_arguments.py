"""The flags of the commands that work on checkpoints and prompts.

Nothing heavy may be imported here: this module alone answers their `--help`. Booleans and
`--flag value` are as everywhere (`cli.arguments`); the flags of `extract`, `sample-vocabulary` and
`diff` are those of the original's scripts.
"""

import argparse
from collections.abc import Sequence

from prompt_tuning.cli.arguments import Parser, add_boolean
from prompt_tuning.errors import ConfigError, nearest

DTYPES = ("float32", "bfloat16")


def parse_convert(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags of `convert`."""
    parser = _parser(program, about, "--from=PATH --to=PATH [flags]")
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="PATH", help="what there is")
    add("--to", dest="target", required=True, metavar="PATH", help="what to make; must not exist")
    add(
        "--from_format",
        metavar="NAME",
        help="if the format that is found is not the one you mean",
    )
    add(
        "--to_format",
        metavar="NAME",
        help="t5x, orbax, huggingface, safetensors, peft, npy or prompt; without it told from "
        "PATH: *.npy is npy, checkpoint_<step> is t5x, *.safetensors is prompt, or safetensors of "
        "a model without a prompt",
    )
    add(
        "--base",
        metavar="PATH",
        help="the model a prompt belongs to: for its hash, for the sizes in a PEFT configuration, "
        "to put a prompt into a t5x checkpoint, and to verify",
    )
    add("--base_name", metavar="NAME", help="what others call the base, e.g. google/t5-base")
    add(
        "--dtype",
        choices=(*DTYPES, "int8"),
        help="to store a model in; without it as it is read; int8 for safetensors only",
    )
    add("--step", type=int, metavar="N", help="of a model whose format does not say")
    add("--task", type=int, metavar="I", help="which prompt of a multi-task adapter, from 0")
    add("--family", choices=("t5", "mt5"), help="model_type of a Hugging Face model")
    add_boolean(parser, "without_prompt", "leave out the prompt that a t5x checkpoint holds")
    add_boolean(parser, "verify", "load both sides and compare their logits")
    return _parsed(parser, argv)


def parse_inspect(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags of `inspect`."""
    parser = _parser(program, about, "PATH [flags]")
    add = parser.add_argument
    add("path", metavar="PATH", help="a checkpoint, a prompt, or a run's folder")
    add("--base", metavar="PATH", help="the model of a prompt: shows the tokens nearest to it")
    add("--vocabulary", metavar="FILE", help="SentencePiece model: shows tokens as text")
    add("--init", metavar="PATH", help="the initial prompt, if it does not lie in the run's folder")
    add("--neighbours", type=int, default=5, metavar="K", help="how many tokens to show")
    add_boolean(parser, "values", "read all values of a model: norms and hash")
    add_boolean(parser, "json", "print one JSON object instead")
    return _parsed(parser, argv)


def parse_diff(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags of `diff`."""
    parser = _parser(program, about, "A B [flags]")
    add = parser.add_argument
    add("a", metavar="A", help="a checkpoint or prompt of any format")
    add("b", metavar="B", help="another")
    add("--frac", type=float, default=1.0, metavar="F", help="part of the arrays to read, (0, 1]")
    add("--seed", type=int, metavar="N", help="of the choice of these arrays")
    add("--check", action="append", default=[], metavar="NAME", help="read this one in any case")
    add("--rtol", type=float, default=0.0, metavar="R", help="tolerance relative to B's values")
    add("--atol", type=float, default=0.0, metavar="A", help="absolute tolerance")
    add("--output", metavar="FILE", help="where to write the differences as JSON")
    add_boolean(parser, "compare_step", "compare the steps as well")
    add_boolean(parser, "limit_to_params", "leave the optimizer's state out")
    return _parsed(parser, argv)


def parse_extract(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags of `extract`."""
    parser = _parser(
        program, about, "--checkpoint_dir=PATH --variable_path=NAME --output_path=FILE"
    )
    _add_extraction(parser)
    parser.add_argument(
        "--variable_path",
        required=True,
        metavar="NAME",
        help="t5x's path, e.g. target/encoder/prompt/prompt/prompt; `target/` may be left out",
    )
    return _parsed(parser, argv)


def parse_sample_vocabulary(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags of `sample-vocabulary`."""
    parser = _parser(program, about, "--checkpoint_dir=PATH --output_path=FILE [flags]")
    _add_extraction(parser)
    add = parser.add_argument
    add("--embeddings_path", default="target/token_embedder/embedding", metavar="NAME")
    add("--prompt_length", type=int, default=100, metavar="P", help="how many rows to draw")
    add(
        "--population_size",
        type=int,
        default=5000,
        metavar="N",
        help="draw from the first N rows, the most frequent pieces; 0 draws from all",
    )
    add("--seed", type=int, default=42, metavar="N")
    return _parsed(parser, argv)


def parse_splice(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags of `splice`."""
    parser = _parser(program, about, "--checkpoint_dir=PATH --prompt=PATH --output_path=PATH")
    add = parser.add_argument
    add("--checkpoint_dir", required=True, metavar="PATH", help="a full t5x checkpoint")
    add("--prompt", required=True, metavar="PATH", help="a prompt of any format")
    add("--output_path", required=True, metavar="PATH", help="the new checkpoint_<step>")
    add("--step", type=int, metavar="N", help="its step; without it that of the prompt, or the old")
    return _parsed(parser, argv)


def _add_extraction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint_dir", required=True, metavar="PATH", help="a checkpoint")
    parser.add_argument("--output_path", required=True, metavar="FILE", help="a numpy file to make")
    parser.add_argument("--restore_dtype", choices=DTYPES, default="float32")


def _parser(program: str, about: str, usage: str) -> Parser:
    return Parser(prog=program, usage=f"{program} {usage}", description=about, allow_abbrev=False)


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    parsed, unknown = parser.parse_known_args(list(argv))
    if not unknown:
        return parsed
    known = [flag for action in parser._actions for flag in action.option_strings]
    name = unknown[0].partition("=")[0]
    if name.startswith("-"):
        raise ConfigError(
            f"There is no flag {name} (see `{parser.prog} --help`).{nearest(name, known)}"
        )
    raise ConfigError(f"Unexpected argument {unknown[0]!r} (see `{parser.prog} --help`).")
