"""`prompt-tuning launch`: the processes of a run, started on all hosts with one command."""

import pathlib
import shutil
import subprocess
import sys

from prompt_tuning.cli import config
from prompt_tuning.cli.configuration import gin_checks
from prompt_tuning.cli.configuration.gin_files import package_root
from prompt_tuning.cli.launch_command_arguments import LaunchArguments
from prompt_tuning.cli.launch_command_hosts import run_on_hosts
from prompt_tuning.cli.launch_command_scripts import PREEMPTED, script, ssh_commands
from prompt_tuning.errors import ConfigError

_NEEDS = {"tpu-vm": "gcloud", "slurm": "sbatch", "ssh": "ssh"}


def run(arguments: LaunchArguments) -> int:
    """Checks the configuration here, and shows, writes or runs what starts the processes."""
    _check(arguments)
    text = script(arguments)
    if arguments.script:
        path = pathlib.Path(arguments.script)
        path.write_text(text, "utf-8")
        path.chmod(0o755)
        print(f"Wrote {path}.", file=sys.stderr)
    if not arguments.run:
        if not arguments.script:
            print(text, end="")
        return 0
    tool = _NEEDS[arguments.on]
    if shutil.which(tool) is None:
        raise ConfigError(
            f"--run needs `{tool}`, which is not installed here. Without --run the script is "
            "shown, to start it elsewhere."
        )
    if arguments.on == "slurm":
        return subprocess.run(["sbatch"], input=text, text=True, check=False).returncode
    if arguments.on == "tpu-vm":
        return subprocess.run(["bash", "-c", text], check=False).returncode
    while True:
        code = run_on_hosts(ssh_commands(arguments))
        if code != PREEMPTED or not arguments.restart_preempted:
            return code
        print("Preempted and saved: starting again.", file=sys.stderr)


def _check(arguments: LaunchArguments) -> None:
    """Reads the configuration as every process will, where its files are here."""
    configuration = config.read(arguments.arguments)
    gin_checks.check_order(configuration, package_root())
    gin_checks.check_macros(configuration, package_root())
