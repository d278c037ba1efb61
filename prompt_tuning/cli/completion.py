"""`prompt-tuning completion bash|zsh|fish`: prints what makes TAB work, for the shell to source."""

import argparse
from collections.abc import Sequence

from prompt_tuning.cli.arguments import Parser
from prompt_tuning.errors import ConfigError, nearest

# By shell, the line for a user's own start-up file.
SHELLS = {
    "bash": 'in ~/.bashrc: eval "$(prompt-tuning completion bash)"',
    "zsh": 'in ~/.zshrc, after compinit: eval "$(prompt-tuning completion zsh)"',
    "fish": "in ~/.config/fish/config.fish: prompt-tuning completion fish | source",
}


def parse(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the name of the shell."""
    parser = Parser(
        prog=program,
        description=about,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            ["to have it in every shell:", *(f"  {line}" for line in SHELLS.values())]
        ),
    )
    parser.add_argument("shell", choices=list(SHELLS), metavar="SHELL", help=", ".join(SHELLS))
    parsed, unknown = parser.parse_known_args(list(argv))
    if unknown:
        hint = nearest(unknown[0], SHELLS)
        raise ConfigError(f"Unexpected argument {unknown[0]!r} (see `{program} --help`).{hint}")
    return parsed


def run(arguments: argparse.Namespace) -> int:
    """Prints the script."""
    import argcomplete  # here, because every command comes past this module

    # Bash is not to put a space after `--gin_file=`, nor the names of files where we know better.
    print(argcomplete.shellcode(["prompt-tuning"], True, arguments.shell, ["-o", "nospace"]))
    return 0
