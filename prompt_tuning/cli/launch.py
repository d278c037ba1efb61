"""What all commands that run a gin configuration do before and around their work."""

import contextlib
import errno
import logging
import sys
from collections.abc import Iterator

from etils import epath

from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.compile_cache import kept_programs
from prompt_tuning.cli.configuration.gin_reader import binding_name
from prompt_tuning.errors import CheckpointError
from prompt_tuning.partitioning import connect, connected
from prompt_tuning.partitioning.clusters import CLUSTERS, detected
from prompt_tuning.paths import NO_ROOM
from prompt_tuning.training.preemption import Preemption

log = logging.getLogger("prompt_tuning")

_NO_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextlib.contextmanager
def launched(arguments: RunArguments) -> Iterator[Preemption]:
    """Reads the configuration, connects the processes and listens to signals.

    Also while data and models are read, which may take minutes.
    """
    start_logging()
    _use_folders(arguments)
    config.parse(arguments)
    with kept_programs(), _together(arguments), Preemption() as preemption:
        yield preemption


def _together(arguments: RunArguments) -> contextlib.AbstractContextManager[None]:
    """Connects this process with the others of its run, if there are any."""
    wanted, cluster = arguments.multiprocess_gpu, None
    if wanted is None:
        cluster = detected()
        if cluster is not None:
            log.info("%s has started several processes: connecting them.", CLUSTERS[cluster])
    if not (wanted or cluster):
        return contextlib.nullcontext()
    fellows = connect(
        coordinator_address=arguments.coordinator_address,
        process_count=arguments.process_count,
        process_index=arguments.process_index,
        initialization_timeout=arguments.initialization_timeout,
        cluster=cluster,
        settings=_common_settings(arguments),
    )
    return connected(fellows)


def _common_settings(arguments: RunArguments) -> dict[str, str]:
    """Returns what all processes of a run must have in common, by name."""
    bindings = config.read(arguments).bindings()
    found = {binding_name(one): repr(one.value) for one in bindings}
    found.pop("CACHE_DIR", None)  # a disk of the host's own
    return found | {"--dry_run": str(arguments.dry_run)}


@contextlib.contextmanager
def writing_explained(folder: epath.Path, setting: str) -> Iterator[None]:
    """Says of a full disk what is lost, nothing, and of a folder which setting names it.

    Args:
        folder: where everything goes.
        setting: the macro that says so.
    """
    try:
        yield
    except OSError as error:
        where = f"{error.filename or folder!s} could not be written ({error.strerror})."
        if error.errno in NO_ROOM:
            raise CheckpointError(
                f"{where} What was saved before is whole. Make room and start the same command "
                "again."
            ) from error
        # Of others, such as a file that a metric reads, the traceback says more.
        if error.errno in _NO_FOLDER and str(error.filename).startswith(str(folder)):
            raise CheckpointError(
                f"{where} Set {setting} to a folder that can be written."
            ) from error
        raise


def start_logging() -> None:
    """Sends the program's own messages to stderr, whatever the libraries do with theirs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    # In place of an earlier run's, whose stderr may be closed by now.
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)


def _use_folders(arguments: RunArguments) -> None:
    """Passes on where TFDS and seqio's caches lie."""
    if arguments.tfds_data_dir or arguments.seqio_additional_cache_dirs:
        # Here, because TensorFlow takes seconds that a misspelt gin name should not wait for.
        from prompt_tuning.data import seqio_tasks

        seqio_tasks.use_folders(
            tfds_data_dir=arguments.tfds_data_dir,
            cache_dirs=arguments.seqio_additional_cache_dirs,
        )
