"""Whether the object stores and hubs that a configuration names answer.

Whatever else is asked of them by the libraries may take minutes to fail: some look for the metadata
server of Google's machines first. So one plain request is made here, and nobody waits for long.
Without such a path no network is touched.
"""

import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.checkups.configuration import Settings
from prompt_tuning.cli.checkups.distributions import Distributions
from prompt_tuning.cli.checkups.finding import Finding
from prompt_tuning.cli.checkups.folders import CHECKPOINTS, WRITTEN
from prompt_tuning.errors import CheckpointError, ConfigError, DataError, PromptTuningError

GROUP = "network"
PATIENCE = 5.0  # seconds for all of them together


def check(
    settings: Settings, run: RunArguments, installed: Distributions, environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Yields a finding for each remote path, if there is any."""
    named = _remote_paths(settings, run)
    answers = _ask({path: _address(path, environment) for _, path in named})
    for name, path in named:
        yield _finding(name, path, answers.get(path), environment)
    if any(name in WRITTEN and path.startswith("gs://") for name, path in named):
        yield _gcsfs(installed)


def _remote_paths(settings: Settings, run: RunArguments) -> list[tuple[str, str]]:
    found = [(name, text) for name in settings.values for text in settings.texts(name)]
    found += [("--gin_file", name) for name in run.gin_file]
    found += [("--gin_search_paths", name) for name in run.gin_search_paths]
    found += [("--tfds_data_dir", run.tfds_data_dir or "")]
    found += [("--seqio_additional_cache_dirs", one) for one in run.seqio_additional_cache_dirs]
    return [(name, text) for name, text in found if "://" in text]


def _address(path: str, environment: Mapping[str, str]) -> str | None:
    """Returns what to ask for: a file by its name, of a folder its bucket; None if unknown."""
    scheme, _, rest = path.partition("://")
    bucket, _, name = rest.partition("/")
    if scheme in ("http", "https"):
        return path
    if scheme == "hf":
        return environment.get("HF_ENDPOINT") or "https://huggingface.co"
    if scheme == "s3":
        endpoint = environment.get("AWS_ENDPOINT_URL")
        return f"{endpoint}/{bucket}" if endpoint else f"https://{bucket}.s3.amazonaws.com"
    if scheme != "gs":
        return None
    store = environment.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    is_file = os.path.splitext(name)[1] in (".model", ".npy", ".safetensors", ".gin", ".tsv")
    return f"{store}/{bucket}/{urllib.parse.quote(name)}" if is_file else f"{store}/{bucket}"


def _ask(addresses: Mapping[str, str | None]) -> dict[str, Any]:
    """Returns by path the HTTP status, or what went wrong; those without an answer are left out."""
    answers: dict[str, Any] = {}

    def ask(path: str, address: str) -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                answers[path] = answer.status
        except urllib.error.HTTPError as error:
            answers[path] = error.code
        except (OSError, ValueError) as error:
            answers[path] = str(getattr(error, "reason", error))

    # In threads: looking up the name of a host has no time limit of its own.
    threads = [
        threading.Thread(target=ask, args=(path, address), daemon=True)
        for path, address in addresses.items()
        if address
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return dict(answers)


def _finding(name: str, path: str, answer: Any, environment: Mapping[str, str]) -> Finding:
    if path.startswith("hf://") and environment.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return _row("warning", name, f"{path}, but HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    if isinstance(answer, int) and answer < 400:
        return _row("ok", name, f"{path} answers")
    if answer in (401, 403):
        if known := _credentials(path, environment):
            return _row("ok", name, f"{path} answers, to those it knows; credentials: {known}")
        advice = "gcloud auth application-default login" if path.startswith("gs://") else ""
        found = f"{path} answers, but does not let everybody in, and no credentials are seen here"
        return _row("warning", name, found, advice)
    kind = _kind(name)
    if answer == 404:
        return _row("fault", name, f"{path} is not there", f"Set {name}", kind)
    why = f"HTTP status {answer}" if isinstance(answer, int) else answer
    why = why or f"no answer within {PATIENCE:g} seconds"
    advice = f"Mend the network (a proxy? HTTPS_PROXY), or set {name} to a copy on this machine"
    return _row("fault", name, f"{path} cannot be reached: {why}", advice, kind)


def _credentials(path: str, environment: Mapping[str, str]) -> str | None:
    """Returns where credentials lie for a store, if they lie where its tools put them."""
    home = environment.get("HOME", os.path.expanduser("~"))
    if path.startswith("gs://"):
        usual = os.path.join(home, ".config/gcloud/application_default_credentials.json")
        places = [environment.get("GOOGLE_APPLICATION_CREDENTIALS") or usual]
    elif path.startswith("s3://"):
        places = [os.path.join(home, ".aws/credentials")]
        if environment.get("AWS_ACCESS_KEY_ID"):
            return "AWS_ACCESS_KEY_ID"
    else:
        places = [os.path.join(home, ".cache/huggingface/token")]
    return next(filter(os.path.isfile, places), None)


def _gcsfs(installed: Distributions) -> Finding:
    if version := installed.version("gcsfs"):
        return _row("ok", "gcsfs", version)
    advice = "pip install '.[gcs]' in the checkout"
    return _row("warning", "gcsfs", "not installed; runs in a Google bucket need it", advice)


def _kind(name: str) -> type[PromptTuningError]:
    if name in WRITTEN:
        return WRITTEN[name]
    if name in CHECKPOINTS or name == "EMBEDDING_FILE":
        return CheckpointError
    data = ("TSV_DIR", "CORPUS", "--tfds_data_dir", "--seqio_additional_cache_dirs")
    return DataError if name in data else ConfigError


def _row(
    state: Any, name: str, found: str, advice: str = "", kind: type[Any] = ConfigError
) -> Finding:
    return Finding(group=GROUP, name=name, state=state, found=found, advice=advice, kind=kind)
