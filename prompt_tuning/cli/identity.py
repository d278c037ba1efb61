"""What makes a run the run it is: the settings that decide its numbers.

A folder is continued only by a run of the same identity. Where files lie, how long to train, how
often to save and what to evaluate may change from one start to the next; what the files contain may
not, so hashes of their contents stand here in place of their paths.
"""

import re
from collections.abc import Mapping

from prompt_tuning.vocabulary import Vocabulary

# `function.argument` of what may change freely, and of what a hash stands in for.
_FREE = re.compile(
    r"""
    .*\b(train\.(
        model_dir | total_steps | relative_steps | epochs | evaluations | eval_period | monitor
        | saving | run_eval_before_training | stats_period | dry_run | accept_changes | devices
        | stuck_after | partitioning | task | initial_checkpoint | vocabulary | train_data
    )
    | (evaluate | infer)\.(
        output_dir | checkpoint | prompt | checkpoints | evaluations | split | monitor | devices
        | partitioning | dry_run | vocabulary | merge_chunked_results | shard_id
    )
    | Partitioning\.\w+
    | Saving\.\w+ | Monitor\.\w+ | TeacherForced\.\w+ | TaskMetrics\.\w+ | task_evaluations\.\w+
    # Of the data the source's own fingerprint speaks, of the vocabulary its content.
    | task_split\.\w+ | FileTask\.\w+ | TsvTask\.\w+ | tsv_splits\.\w+ | register_\w+\.\w+
    | in_folder\.\w+ | load_corpus\.\w+ | corpus_vocabulary\.\w+ | SentencePieceVocabulary\.\w+
    | ByteVocabulary\.\w+ | load_embeddings\.path | task_batches\.split
    | CorpusBatches\.(tokens | vocabulary)
    )""",
    re.VERBOSE,
)
# Whatever stands for these macros, and what our own strategies are called.
_OF_ANSWERS = re.compile(
    r"""
    (.*\b)?(ANSWERING | DECODING | ENSEMBLE)/.*
    | (.*\b)?(Decode | ChooseLabel | Greedy | Sample | BeamSearch | HuggingFaceBeamSearch
            | Vote | MeanLogProbability)\.\w+
    """,
    re.VERBOSE,
)
_MACRO = re.compile(r"%(\w+)")


def identity(
    values: Mapping[str, str],
    *,
    data: str | None = None,
    vocabulary: Vocabulary | None,
    answers: bool = False,
) -> dict[str, str]:
    """Returns the settings that decide a run's numbers, by name.

    Args:
        values: what gin has set, as `config.operative_values` returns it, macros included.
        data: the fingerprint of the training data, where its source has one.
        vocabulary: the model's.
        answers: whether it matters how answers are made. To training it does not, which only looks
            at them now and then.
    """
    macros = {name: value for name, value in values.items() if "." not in name}
    settings = {
        name: _resolved(value, macros)
        for name, value in values.items()
        if "." in name
        and not _FREE.fullmatch(name)
        and (answers or not _OF_ANSWERS.fullmatch(name))
    }
    hashes = {"data": data, "vocabulary": vocabulary and vocabulary.fingerprint}
    return settings | {name: value for name, value in hashes.items() if value}


def _resolved(value: str, macros: Mapping[str, str]) -> str:
    """A value with its macros replaced by theirs: the same number by another macro is the same."""
    for _ in range(len(macros)):
        replaced = _MACRO.sub(lambda macro: macros.get(macro[1], macro[0]), value)
        if replaced == value:
            break
        value = replaced
    return value
