r"""Makes the JSON files of this folder by running the tasks of the original.

`records.json` is written by hand; everything else is what the original's registry says of itself
and what its own preprocessors, postprocessors and metrics answer for these records. Only the
sources are replaced, by tf.data datasets of the records.

The environment (Python 3.11) has nothing of this project, whose package has the same name:

    uv venv original && uv pip install --python original/bin/python \
        seqio==0.0.20 tensorflow==2.21.0 tensorflow-text==2.21.1 tensorflow-datasets==4.9.10 \
        rouge-score==0.1.2 sacrebleu==2.6.0 scikit-learn==1.9.1 scipy==1.17.1 \
        gin-config editdistance babel nltk pandas

SOURCES is a folder with the packages `t5` of google-research/text-to-text-transfer-transformer
(0.9.4, e081111) and `prompt_tuning` of google-research/prompt-tuning (72285eea). The released
vocabulary is replaced by a small one, which a process of this project makes first:

    python -c "from tests.small_vocabulary import train; train('small.model')"
    original/bin/python make.py --sources SOURCES --vocabulary small.model

`multilingual_t5` and `byt5` are stood in for by modules with nothing but features: copies of T5's
tasks under their prefix, which the original's mixtures need, are marked `external`.
"""

import argparse
import copy
import functools
import importlib
import importlib.metadata
import itertools
import pathlib
import sys
import tempfile
import types

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from records import (
    RECORDS,
    attempt,
    correct,
    dataset,
    failed,
    lines,
    plain,
    short,
    text_of,
)

HERE = pathlib.Path(__file__).parent
MODULES = (
    "t5.data.tasks",
    "t5.data.mixtures",
    "multilingual_t5.tasks",
    "byt5.tasks",
    "prompt_tuning.data.glue",
    "prompt_tuning.data.super_glue",
    "prompt_tuning.data.glue_transfer",
    "prompt_tuning.data.qa",
    "prompt_tuning.data.summarization",
    "prompt_tuning.data.c4",
    "prompt_tuning.spot.data.glue",
    "prompt_tuning.spot.data.mrqa",
    "prompt_tuning.spot.data.nli",
    "prompt_tuning.spot.data.summarization",
    "prompt_tuning.recycling.data.c4",
    "prompt_tuning.recycling.data.imdb",
    "prompt_tuning.recycling.data.qqp",
    "prompt_tuning.recycling.data.record",
    "prompt_tuning.recycling.data.sst2",
    "prompt_tuning.extended.perceptron.data.tasks",
)
EXTERNAL = {"multilingual_t5.tasks": "mt5_", "byt5.tasks": "byt5_"}
# Records of one dataset serve all that have its schema.
SCHEMAS = {
    "glue/mnli_matched": "glue/mnli",
    "glue/mnli_mismatched": "glue/mnli",
    "glue/ax": "glue/mnli",
}
ALL = ("train", "validation", "test")
# Splits of the TFDS datasets whose tasks name none: as their builders of TFDS 4.9.10 generate them.
TFDS_SPLITS = {
    "glue/mnli": ("train", *(f"{s}_{m}matched" for s in ALL[1:] for m in ("", "mis"))),
    "glue/mnli_matched": ALL[1:],
    "glue/mnli_mismatched": ALL[1:],
    "glue": ALL,
    "super_glue": ALL,
    "definite_pronoun_resolution": ("train", "test"),
    "squad": ALL[:2],
    "mrqa": ALL[:2],
    "xsum": ALL,
    "cnn_dailymail": ALL,
    "anli": ALL,
    "doc_nli": ALL,
    "snli": ALL,
    "aeslc": ALL,
    "billsum": ("train", "test", "ca_test"),
    "gigaword": ALL,
    "multi_news": ALL,
    "samsum": ALL,
    "newsroom": ALL,
    "c4": ALL[:2],
}
# Tasks of T5's that the original has no use for: of their names only is written.
LEFT_OUT = ("prefix_lm_objective", "_sentinel")
# Records that single tasks cannot read: this one takes the first answer for granted.
LEFT_OUT_RECORDS = {"pr:super_glue_record_v102_rc": [3]}
LENGTHS = {"inputs": 48, "targets": 64}
SEEDS = (0, 42)


# The original, over a small vocabulary.


def import_original(sources, vocabulary):
    """Imports the original's modules; returns which module registered which name."""
    sys.path.insert(0, str(sources))
    utils = importlib.import_module("t5.data.utils")
    utils.DEFAULT_SPM_PATH = str(vocabulary)
    small = seqio.SentencePieceVocabulary(str(vocabulary), utils.DEFAULT_EXTRA_IDS)
    stand_in("multilingual_t5", DEFAULT_OUTPUT_FEATURES=features(small))
    stand_in("byt5", DEFAULT_BYTE_OUTPUT_FEATURES=features(seqio.ByteVocabulary()))
    tasks, mixtures = {}, {}
    for module in MODULES:
        if module in EXTERNAL:
            copy_tasks(EXTERNAL[module], sys.modules[module])
        else:
            importlib.import_module(module)
        for name in seqio.TaskRegistry.names():
            tasks.setdefault(name, module)
            for feature in seqio.TaskRegistry.get(name).output_features.values():
                here(feature.vocabulary, vocabulary)
        for name in seqio.MixtureRegistry.names():
            mixtures.setdefault(name, module)
    return tasks, mixtures


def here(held, vocabulary):
    """Puts the small vocabulary into tasks that name a released one themselves."""
    if str(getattr(held, "_sentencepiece_model_file", "")).startswith("gs://"):
        held._sentencepiece_model_file, held._extra_ids = str(vocabulary), 100


def features(vocabulary):
    return {
        "inputs": seqio.Feature(vocabulary=vocabulary, add_eos=True, required=False),
        "targets": seqio.Feature(vocabulary=vocabulary, add_eos=True),
    }


def stand_in(package, **attributes):
    parent, child = types.ModuleType(package), types.ModuleType(f"{package}.tasks")
    vars(child).update(attributes)
    parent.tasks = child
    sys.modules |= {package: parent, f"{package}.tasks": child}


def copy_tasks(prefix, module):
    """Registers T5's GLUE and SuperGLUE tasks for another family of models."""
    (own,) = (value for name, value in vars(module).items() if name.startswith("DEFAULT"))
    for name in list(seqio.TaskRegistry.names()):
        if name.startswith(("glue_", "super_glue_", "dpr_")) and "sentinel" not in name:
            task = seqio.TaskRegistry.get(name)
            seqio.TaskRegistry.add_provider(
                prefix + name, task.replace(name=prefix + name, output_features=own)
            )


# Records.


def schema(task):
    """Returns the key of `records.json` for a task, or None."""
    source = task.source
    if not isinstance(source, seqio.TfdsDataSource):
        return None
    name = source.tfds_dataset.name.split(":")[0]
    name = SCHEMAS.get(name, name)
    if name in RECORDS:
        return name
    return name.split("/")[0] if name.split("/")[0] in RECORDS else None


def check_schemas():
    """Compares the dtypes of `records.json` with TFDS where this version can build the dataset."""
    old = {"cnn_dailymail": "cnn_dailymail:3.4.0", "multi_news": "multi_news", "c4": "c4/en:2.2.0"}
    names = {task.source.tfds_dataset.name: schema(task) for task in tasks_with_records()}
    with tempfile.TemporaryDirectory() as folder:
        for name, key in names.items():
            builder = tfds.builder(old.get(key, name), data_dir=folder)
            found = builder.info.features.get_tensor_info()
            assert described(found) == RECORDS[key]["dtypes"], (name, described(found))


def described(info):
    if isinstance(info, dict):
        return {key: described(value) for key, value in info.items()}
    return tf.dtypes.as_dtype(info.dtype).name + "".join(f"[{size or ''}]" for size in info.shape)


def tasks_with_records():
    return [
        task
        for task in map(seqio.TaskRegistry.get, seqio.TaskRegistry.names())
        if schema(task) and not any(word in task.name for word in LEFT_OUT)
    ]


def examples_of(task, records, lengths=None, seed=None):
    """Returns what a task makes of records, as the evaluator hands it on."""
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: records, splits=["train"]
    )
    found = task.replace(source=source).get_dataset(
        sequence_length=lengths, split="train", use_cached=False, shuffle=False, seed=seed
    )
    return list(found.as_numpy_iterator())


# What is written of tasks.


def spoken(function):
    """Names a function, with what `functools.partial` has bound to it."""
    if not callable(function):
        return repr(type(function).__name__)
    if not isinstance(function, functools.partial):
        return getattr(function, "__qualname__", type(function).__name__).split(".")[0]
    bound = [*function.args, *function.keywords.values()]
    inner = [spoken(one) for one in bound if callable(one)]
    return spoken(function.func) + (f"({', '.join(inner)})" if inner else "")


def splits_of(task):
    """Returns which split of TFDS each split of a task is."""
    loader = task.source.tfds_dataset
    name = loader.name.split(":")[0]
    known = TFDS_SPLITS.get(name) or TFDS_SPLITS.get(name.split("/")[0], ())
    return dict(loader._split_map or {split: split for split in known})


def entry(task, origin):
    found = {
        "origin": "external" if origin in EXTERNAL else origin,
        "source": task.source.tfds_dataset.name,
        "splits": splits_of(task),
        "features": sorted(task.output_features),
        "metrics": [spoken(function) for function in task.metric_fns],
        "preprocessors": [spoken(function) for function in task.preprocessors],
        "postprocessor": spoken(task.postprocessor) if task.postprocessor else None,
    }
    if task.score_metric_fns:
        found["scored"] = True
    return found


def names(tasks, mixtures):
    """Returns the registry; what a prefixed name has in common with its T5 sibling is said once."""

    def rates(mixture):
        return {
            name: rate if isinstance(rate, (int, float)) else spoken(rate)
            for name, rate in mixture._task_to_rate.items()
        }

    entries = {name: entry(seqio.TaskRegistry.get(name), module) for name, module in tasks.items()}
    for name, found in list(entries.items()):
        for prefix in EXTERNAL.values():
            sibling = entries.get(name.removeprefix(prefix), {})
            if name.startswith(prefix) and {**found, "origin": sibling.get("origin")} == sibling:
                entries[name] = {"origin": found["origin"], "like": name.removeprefix(prefix)}
    return {
        "tasks": entries,
        "mixtures": {
            name: {"origin": module, "tasks": rates(seqio.MixtureRegistry.get(name))}
            for name, module in mixtures.items()
        },
    }


# What is written of behaviour.


def predictions(examples):
    """Returns model outputs for every example, by kind."""
    right = [correct(example) for example in examples]
    others = list(dict.fromkeys(text for text in right if text != "<unk>"))
    wrong = [
        next((text for text in others[i % len(others) :] + others if text != one), "wrong")
        for i, one in enumerate(right)
    ]
    noise = itertools.cycle(["<unk>", "blah, blah", "True False", " 0", "não…", "-3.5", "nan"])
    kinds = {
        "right": right,
        "wrong": wrong,
        "empty": [""] * len(right),
        "garbage": [next(noise) for _ in right],
        "loud": [f"The {text.upper()}!" for text in right],
        "cut": [" ".join(text.split(" ")[1:]) or text[:-1] for text in right],
    }
    kinds["mixed"] = [(right, wrong, right, kinds["garbage"])[i % 4][i] for i in range(len(right))]
    return kinds


def scores(examples):
    """Returns log-likelihoods for every candidate, by kind."""
    truth = np.array([example["is_correct"] for example in examples], bool)
    steps = np.arange(len(examples))
    return {
        "right": np.where(truth, -0.5, -2.0 - 0.1 * steps),
        "wrong": np.where(truth, -3.0 - 0.1 * steps, -1.0),
        "same": np.full(len(steps), -1.0),
        "mixed": -((steps * 7 + 3) % 5) / 2 - 0.25 * truth,
    }


def counted(examples):
    """The examples that have a label, as the evaluated splits do."""
    unknown = (b"<unk>", b"UNK", b"-1.0")
    return [
        i
        for i, example in enumerate(examples)
        if np.ndim(example["targets_pretokenized"])
        or (example["targets_pretokenized"] not in unknown and example.get("label", 0) != -1)
    ]


def measured(functions, targets, answers, argument):
    """Returns the values of the metrics, those that raise with their exception."""
    found = {}
    for function in functions:
        # ROUGE draws its samples from numpy's generator.
        np.random.seed(0)
        given = {"targets": targets, argument: answers}
        result = attempt(function, **copy.deepcopy(given))
        found |= {spoken(function): result} if failed(result) else plain(result)
    return found


def behaviour(task):
    """Runs a task over its records: texts, postprocessed answers, metrics."""
    left_out = LEFT_OUT_RECORDS.get(task.name, [])
    records = [one for i, one in enumerate(RECORDS[schema(task)]["records"]) if i not in left_out]
    examples = examples_of(task, dataset(schema(task), records))
    found = {"schema": schema(task), "examples": [text_of(example) for example in examples]}
    if left_out:
        found["left_out"] = left_out
    index = sentinel(task, examples)
    if index is not None:
        found["task_index"] = index
    targets = [
        attempt(task.postprocess_fn, correct(example), example=example, is_target=True)
        for example in examples
    ]
    if task.metric_fns or task.postprocessor:
        found["targets"] = [plain(target) for target in targets]
    rows = counted(examples)
    if task.score_metric_fns:
        found["scored"] = {}
        for kind, given in scores(examples).items():
            values = [float(score) for score in given]
            labelled = groups(examples)
            found["scored"][kind] = {
                "scores": plain(values),
                "metrics": measured(
                    task.score_metric_fns,
                    [targets[i] for i in labelled],
                    [values[i] for i in labelled],
                    "scores",
                ),
            }
            found["counted"] = labelled
        return found
    if task.metric_fns or task.postprocessor:
        found["counted"] = rows
        found["answered"] = {}
        for kind, texts in predictions(examples).items():
            answers = [
                attempt(task.postprocess_fn, text, example=example, is_target=False)
                for text, example in zip(texts, examples, strict=True)
            ]
            result = {
                "predictions": texts,
                "postprocessed": [
                    short(answer, example, text)
                    for answer, example, text in zip(answers, examples, texts, strict=True)
                ],
            }
            if not any(failed(answers[i]) for i in rows):
                result["metrics"] = measured(
                    task.predict_metric_fns,
                    [targets[i] for i in rows],
                    [answers[i] for i in rows],
                    "predictions",
                )
            found["answered"][kind] = result
    return found


def groups(examples):
    """The candidates of examples that have a right one."""
    known = {example["idx"][0] for example in examples if example["is_correct"]}
    return [i for i, example in enumerate(examples) if example["idx"][0] in known]


def sentinel(task, examples):
    """Returns which sentinel, counted from the last id, stands before the text's own ids."""
    vocabulary = task.output_features["inputs"].vocabulary
    offsets = set()
    for example in examples:
        if "inputs_pretokenized" not in example or np.ndim(example["inputs_pretokenized"]):
            return None
        own = vocabulary.encode(example["inputs_pretokenized"].decode())
        ids = list(example["inputs"])
        if len(ids) == len(own) + 1:
            return None
        assert ids[1:-1] == own, (task.name, ids, own)
        offsets.add(int(vocabulary.vocab_size - 1 - ids[0]))
    (offset,) = offsets
    return offset


def stream(task):
    """Runs a task of C4 with two seeds: all ids."""
    found = {"schema": schema(task), "lengths": LENGTHS, "seeds": {}}
    for seed in SEEDS:
        tf.random.set_seed(seed)
        result = attempt(examples_of, task, dataset(schema(task)), lengths=LENGTHS, seed=seed)
        found["seeds"][str(seed)] = (
            result
            if failed(result)
            else [
                {key: " ".join(map(str, ids)) for key, ids in example.items() if np.ndim(ids) == 1}
                for example in result
            ]
        )
    return found


def family(name, module):
    """Returns the file for a task."""
    if module.startswith("prompt_tuning.spot"):
        return "spot"
    if module.startswith("prompt_tuning.recycling") and not name.startswith("c4"):
        return "recycling"
    if module.startswith("prompt_tuning.extended"):
        return "perceptron"
    if name.startswith("c4"):
        return "c4"
    if module == "prompt_tuning.data.glue_transfer":
        return "transfer"
    if "super_glue" in name or "dpr" in name:
        return "super_glue"
    if "glue" in name:
        return "glue"
    return (
        "summarization"
        if name.startswith(("xsum", "mt5_xsum", "byt5_xsum")) or "cnn" in name
        else "qa"
    )


def refusals(task):
    """Returns what a task says to each record that it cannot read."""
    found = []
    for record in RECORDS[schema(task)]["refused"]:
        result = attempt(examples_of, task, dataset(schema(task), [record]))
        found.append(
            {"error": result["error"].split(":")[0]}
            if failed(result)
            else [text_of(example) for example in result]
        )
    return found


TEXT_KEYS = ("schema", "examples", "task_index", "left_out")


def split_up(results, origins):
    """Writes what tasks share once: texts of a dataset and form, answers to them."""
    texts, answers, tasks = [], [], {}
    for name, result in results.items():
        if failed(result):
            tasks[name] = result
            continue
        text = {key: result[key] for key in TEXT_KEYS if key in result}
        answer = {key: item for key, item in result.items() if key not in text}
        if broken(answer):
            answer["upstream_bug"] = origins[name]
        twin = texts[tasks[name.removeprefix("byt5_")][0]] if name.startswith("byt5_") else None
        # The ids of ByT5 are another vocabulary's: bytes.
        if twin and without_ids(twin) == without_ids(text):
            text = twin
        row = [place(text, texts)]
        tasks[name] = row + ([place(answer, answers)] if answer else [])
    return {"tasks": tasks, "texts": texts, "answers": answers}


def place(item, items):
    if item not in items:
        items.append(item)
    return items.index(item)


def broken(answer):
    """Tells whether a task cannot evaluate what a model wrote."""
    return any(
        failed(item)
        for row in answer.get("answered", {}).values()
        for item in [*row["postprocessed"], *row.get("metrics", {}).values()]
    )


def without_ids(text):
    examples = [
        {key: example[key] for key in example if key != "ids"} for example in text["examples"]
    ]
    return {**text, "examples": examples}


# Files.


def write(name, found, depth):
    (HERE / f"{name}.json").write_text(lines(found, depth) + "\n", encoding="utf-8")
    print(name, (HERE / f"{name}.json").stat().st_size, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", required=True, type=pathlib.Path)
    parser.add_argument("--vocabulary", required=True, type=pathlib.Path)
    parser.add_argument("--only", default="", help="families, separated by commas")
    options = parser.parse_args()
    tasks, mixtures = import_original(options.sources, options.vocabulary)
    check_schemas()
    write("names", names(tasks, mixtures), 2)
    wanted = options.only.split(",") if options.only else None
    families = {}
    for task in tasks_with_records():
        families.setdefault(family(task.name, tasks[task.name]), []).append(task)
    for title, members in families.items():
        if wanted and title not in wanted:
            continue
        results, refused = {}, {}
        for task in members:
            if title == "c4":
                results[task.name] = stream(task)
                continue
            results[task.name] = attempt(behaviour, task)
            if failed(results[task.name]):
                print(task.name, results[task.name], flush=True)
            if "refused" in RECORDS[schema(task)] and schema(task) not in refused:
                refused[schema(task)] = {"task": task.name, "answers": refusals(task)}
        found = results if title == "c4" else split_up(results, tasks)
        write(title, {**found, **({"refused": refused} if refused else {})}, 2)


if __name__ == "__main__":
    main()
