"""What starts the processes of a run on a TPU slice, under Slurm and on hosts with ssh.

Every word is quoted for the shell that reads it, once for each shell that it passes.
"""

import shlex

from prompt_tuning.cli.launch_command_arguments import PORT, LaunchArguments

SSH = ("ssh", "-tt", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15")
PREEMPTED = 75


def script(arguments: LaunchArguments) -> str:
    """Returns the script for what `--on` names."""
    return {"tpu-vm": tpu_vm, "slurm": slurm, "ssh": ssh}[arguments.on](arguments)


def tpu_vm(arguments: LaunchArguments) -> str:
    """Returns a script that starts the command on all hosts of a TPU by gcloud."""
    words = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", f"{arguments.name}"]
    words += [f"--zone={arguments.zone}"]
    words += [f"--project={arguments.project}"] if arguments.project else []
    # All: a slice waits for its missing hosts.
    words += ["--worker=all", f"--command={_on_host(arguments)}"]
    return f"#!/bin/bash\n{shlex.join(words)}\n"


def slurm(arguments: LaunchArguments) -> str:
    """Returns a batch script for sbatch, with one task for each GPU."""
    tasks = arguments.tasks_per_node or arguments.gpus_per_node or 1
    options = [
        "--job-name=prompt-tuning",
        f"--nodes={arguments.nodes or 1}",
        f"--ntasks-per-node={tasks}",
        *([f"--gpus-per-node={arguments.gpus_per_node}"] if arguments.gpus_per_node else []),
        "--signal=TERM@120",  # time to save
        "--requeue",
        "--open-mode=append",
        *arguments.sbatch,
    ]
    start = shlex.join([arguments.executable, *arguments.command, *_connected(arguments)])
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), *_before(arguments)]
    lines += [f"srun --kill-on-bad-exit=1 {start}"]
    if arguments.restart_preempted:
        lines += [
            "code=$?",
            f'if [ "$code" -eq {PREEMPTED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            'exit "$code"',
        ]
    return "\n".join([*lines, ""])


def ssh(arguments: LaunchArguments) -> str:
    """Returns a script that starts the command on every host, and stops all when one fails."""
    starts = [f'{shlex.join(words)} & pids+=("$!")' for words in ssh_commands(arguments).values()]
    return "\n".join(
        [
            "#!/bin/bash",
            "pids=()",
            *starts,
            """trap 'kill "${pids[@]}" 2>/dev/null' INT TERM EXIT""",
            # One after the other is enough: when one ends early the others end, too.
            'for pid in "${pids[@]}"; do wait "$pid" || exit "$?"; done',
            "",
        ]
    )


def ssh_commands(arguments: LaunchArguments) -> dict[str, list[str]]:
    """Returns the words of the local command that starts the process of each host."""
    return {
        host: [*SSH, host, _on_host(arguments, index)] for index, host in enumerate(arguments.hosts)
    }


def _on_host(arguments: LaunchArguments, index: int | None = None) -> str:
    """What the shell of a host gets."""
    words = [arguments.executable, *arguments.command, *_connected(arguments, index)]
    return " && ".join([*_before(arguments), f"exec {shlex.join(words)}"])


def _before(arguments: LaunchArguments) -> list[str]:
    lines = [f"cd {shlex.quote(arguments.directory)}"] if arguments.directory else []
    return lines + ([arguments.setup] if arguments.setup else [])


def _connected(arguments: LaunchArguments, index: int | None = None) -> list[str]:
    if index is None:
        return ["--multiprocess_gpu"]  # the cluster says which process each is
    first = arguments.hosts[0].rpartition("@")[2]
    return [
        "--multiprocess_gpu",
        f"--coordinator_address={first}:{arguments.port or PORT}",
        f"--process_count={len(arguments.hosts)}",
        f"--process_index={index}",
    ]
