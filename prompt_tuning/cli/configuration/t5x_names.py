"""What the settings of t5x and of the original are called here.

A setting is known by the last part of its function and its parameter, `DatasetConfig.split`, as gin
knows it on a command line; a longer name comes first where the last part alone is one of ours, too.
A target is a macro, or `module:function.parameter`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

from prompt_tuning.cli.configuration.gin_reader import Macro


@dataclasses.dataclass(frozen=True)
class Ours:
    """The same setting has another name here.

    Attributes:
        target: our name.
        values: our values for those of t5x that are written otherwise.
        scope: of our name, where it is another than that of t5x's.
    """

    target: str
    values: Mapping[Any, Any] = dataclasses.field(default_factory=dict)
    scope: str | None = None


@dataclasses.dataclass(frozen=True)
class Always:
    """Here it is always as one of these values says; another one cannot be had."""

    values: tuple[Any, ...]
    why: str


@dataclasses.dataclass(frozen=True)
class NoEffect:
    """Whatever it is, nothing changes here."""

    why: str


@dataclasses.dataclass(frozen=True)
class Wired:
    """Says how t5x puts its parts together; ours are put together by our files.

    Attributes:
        instead: what to do who wants it put together otherwise.
    """

    instead: str = "Bind the parts of this package, see docs/gin.md."


@dataclasses.dataclass(frozen=True)
class Nothing:
    """There is nothing like it here."""

    instead: str


Meaning: TypeAlias = Ours | Always | NoEffect | Wired | Nothing

_SPLIT = "prompt_tuning.data.task_batches:task_split"
_BATCHES = "prompt_tuning.data.task_batches:task_batches"
_EVALUATIONS = "prompt_tuning.evaluation.task_evaluations:task_evaluations"
_INFER = "prompt_tuning.cli.infer:infer"
_RATE = "prompt_tuning.training.schedules:learning_rate"
_ADAFACTOR = "prompt_tuning.training.optimizer:adafactor"
_LOSS = "prompt_tuning.losses:Loss"
_T5 = "prompt_tuning.model.config:t5_config"
_LABELS = "prompt_tuning.prompts.initializers:from_class_labels"
_SAMPLED = "prompt_tuning.prompts.initializers:from_sampled_vocabulary"
_BEAMS = "prompt_tuning.decoding.beam_search:BeamSearch"
_SAMPLE = "prompt_tuning.decoding.sampling:Sample"

_NEVER_PACKED = Always(
    (False,), "examples are never packed, and a batch is cut to its longest example instead"
)
_IN_MEMORY = NoEffect("a split is tokenised once and read by index")
_ORDER = "which example comes when is a function of RANDOM_SEED alone"


def _split(scope: str | None) -> dict[str, Meaning]:
    """What of a data set is the same in training, evaluation and inference."""
    return {
        "mixture_or_task_name": Ours(f"{_SPLIT}.name", scope=scope),
        "split": Ours(f"{_SPLIT}.split", scope=scope),
        "task_feature_lengths": Ours(f"{_SPLIT}.lengths", scope=scope),
        "use_cached": Ours(f"{_SPLIT}.use_cached", scope=scope),
        "module": Ours(f"{_SPLIT}.modules", scope=scope),
        "pack": _NEVER_PACKED,
        "use_custom_packing_ops": _NEVER_PACKED,
        "use_memory_cache": _IN_MEMORY,
        "trim_output_features": Always((True,), "features are trimmed to TASK_FEATURE_LENGTHS"),
    }


def _asked(scope: str | None, batch_size: str) -> dict[str, Meaning]:
    return _split(scope) | {
        "batch_size": Ours(batch_size, scope=""),
        "shuffle": Always((False,), "examples are asked in the order of their split"),
        "seed": NoEffect("examples are asked in the order of their split"),
    }


def _named(prefix: str, meanings: Mapping[str, Meaning]) -> dict[str, Meaning]:
    return {f"{prefix}.{name}": meaning for name, meaning in meanings.items()}


_UNSCOPED = Nothing(
    "In t5x, too, a training run reads train/utils.DatasetConfig and infer_eval/utils."
    "DatasetConfig: write one of them, or set a macro such as BATCH_SIZE."
)

# Of the data of a run, by the run.
DATA: dict[str, dict[str, Meaning]] = {
    "train": {
        **_named(
            "train/DatasetConfig",
            _split("train")
            | {
                "batch_size": Ours(f"{_BATCHES}.batch_size", scope=""),
                "shuffle": Always((True,), _ORDER),
                "seed": Ours(f"{_BATCHES}.seed", {None: Macro("RANDOM_SEED")}, scope=""),
            },
        ),
        # The loss is measured on the examples that are answered.
        **_named("train_eval/DatasetConfig", _asked("eval", f"{_EVALUATIONS}.batch_size")),
        **_named("infer_eval/DatasetConfig", _asked("eval", f"{_EVALUATIONS}.batch_size")),
        **_named("DatasetConfig", dict.fromkeys(_asked(None, ""), _UNSCOPED)),
        "RestoreCheckpointConfig.path": Ours("INITIAL_CHECKPOINT_PATH"),
        "RestoreCheckpointConfig.mode": Always(
            ("specific",), "a run starts at the checkpoint in INITIAL_CHECKPOINT_PATH"
        ),
    },
    "eval": {
        **_named("DatasetConfig", _asked(None, f"{_EVALUATIONS}.batch_size")),
        "RestoreCheckpointConfig.path": Ours("CHECKPOINT_PATH"),
        "RestoreCheckpointConfig.mode": Ours("CHECKPOINTS", {"specific": "latest"}),
    },
    "infer": {
        **_named("DatasetConfig", _asked(None, f"{_INFER}.batch_size")),
        "RestoreCheckpointConfig.path": Ours("CHECKPOINT_PATH"),
        "RestoreCheckpointConfig.mode": Ours("CHECKPOINTS", {"specific": "latest"}),
    },
}

_MATCHED = NoEffect("parameters are matched by name, and a prompt is never looked for in the base")
_HOOK = Nothing("Functions of t5x that change what a run does cannot be handed over here.")

SETTINGS: dict[str, Meaning] = {
    **_named(
        "RestoreCheckpointConfig",
        {
            "dtype": Ours("PARAM_DTYPE"),
            "strict": Always((True,), "parameters are never left out in silence"),
            "fallback_to_scratch": _MATCHED,
            "assignment_map": _MATCHED,
            "restore_dataset": NoEffect("the place in the data is always restored"),
            "checkpointer_cls": Wired(),
            "state_transformation_fns": Always((None, [], ()), "checkpoints are read as they are"),
        },
    ),
    **_named(
        "SaveCheckpointConfig",
        {
            "period": Ours("SAVE_PERIOD"),
            "keep": Ours("KEEP_CHECKPOINTS"),
            "dtype": NoEffect("the prompt and its optimizer slots are saved as they are"),
            "save_dataset": NoEffect("the place in the data is always saved"),
            "keep_dataset_checkpoints": NoEffect("the place in the data is part of a checkpoint"),
            "checkpoint_steps": Nothing("Set SAVE_PERIOD; prompts of all saved steps are kept."),
            "checkpointer_cls": Wired(),
            "checkpoint_manager_cls": Wired(),
            "state_transformation_fns": Always((None, [], ()), "states are saved as they are"),
        },
    ),
    "CheckpointConfig.restore": Wired(),
    "CheckpointConfig.save": Wired(),
    "Checkpointer.save_paths": Wired(),
    "match_any.regexes": Wired(),
    **_named(
        "PjitPartitioner",
        {
            "num_partitions": Ours("NUM_PARTITIONS"),
            "model_parallel_submesh": Ours("MODEL_PARALLEL_SUBMESH"),
            "logical_axis_rules": Wired(),
            "params_on_devices": Always((True,), "parameters lie on the devices"),
            "backend": Nothing("JAX_PLATFORMS in the environment says which devices to use."),
        },
    ),
    "standard_logical_axis_rules.additional_rules": Wired(),
    "standard_logical_axis_rules.parameter_partitioning_dims": Ours(
        "prompt_tuning.partitioning:Partitioning.parameter_partitioning_dims"
    ),
    "standard_logical_axis_rules.activation_partitioning_dims": Ours(
        "prompt_tuning.partitioning:Partitioning.activation_partitioning_dims"
    ),
    **_named(
        "Trainer",
        {
            "num_microbatches": Ours("MICROBATCHES", {None: 1}),
            "learning_rate_fn": Wired(),
            "weight_metrics_computer": NoEffect("the prompt's own numbers are in `inspect`"),
        },
    ),
    **{
        f"create_learning_rate_scheduler.{name}": Ours(f"{_RATE}.{name}")
        for name in [
            "factors",
            "base_learning_rate",
            "warmup_steps",
            "decay_factor",
            "steps_per_decay",
            "steps_per_cycle",
            "step_offset",
            "min_learning_rate",
        ]
    },
    **{
        f"Adafactor.{name}": Ours(f"{_ADAFACTOR}.{name}")
        for name in [
            "multiply_by_parameter_scale",
            "decay_rate",
            "step_offset",
            "clipping_threshold",
            "weight_decay_rate",
            "min_dim_size_to_factor",
        ]
    },
    "Adafactor.beta1": Ours(f"{_ADAFACTOR}.momentum"),
    "Adafactor.learning_rate": Always((None,), "the rate comes from LEARNING_RATE"),
    "Adafactor.logical_factor_rules": Wired(),
    "Adafactor.factored": Always((True,), "a large matrix is always factored"),
    "MultiOptimizer.traversals_and_optimizers": Wired(),
    "ModelParamTraversal.filter_fn": Wired(),
    **_named(
        "EncoderDecoderModel",
        {
            "z_loss": Ours(f"{_LOSS}.z_loss"),
            "label_smoothing": Ours(f"{_LOSS}.label_smoothing"),
            "loss_normalizing_factor": Ours(f"{_LOSS}.normalizing_factor"),
            "module": Wired(),
            "input_vocabulary": Wired(),
            "output_vocabulary": Wired(),
            "optimizer_def": Wired(),
            "decode_fn": Ours("DECODING"),
        },
    ),
    "predict_batch_with_aux.num_decodes": Ours(f"{_BEAMS}.beams"),
    "decoding.beam_search.alpha": Ours(f"{_BEAMS}.alpha"),
    "decoding.beam_search.num_decodes": Ours(f"{_BEAMS}.beams"),
    "decoding.temperature_sample.temperature": Ours(f"{_SAMPLE}.temperature"),
    "decoding.temperature_sample.topk": Ours(f"{_SAMPLE}.top_k"),
    "decoding.temperature_sample.topp": Ours(f"{_SAMPLE}.top_p"),
    "decoding.temperature_sample.num_decodes": Ours(f"{_SAMPLE}.decodes"),
    # t5x's own network, and the original's architecture by the same names.
    **{
        f"network.T5Config.{theirs}": Ours(f"{_T5}.{ours}")
        for theirs, ours in {
            "vocab_size": "vocab_size",
            "dtype": "dtype",
            "emb_dim": "embed_dim",
            "num_heads": "num_heads",
            "num_encoder_layers": "encoder_layers",
            "num_decoder_layers": "decoder_layers",
            "head_dim": "head_dim",
            "mlp_dim": "mlp_dim",
            "mlp_activations": "mlp_activations",
            "dropout_rate": "dropout_rate",
            "logits_via_embedding": "tied_logits",
        }.items()
    },
    "network.Transformer.config": Wired(),
    "SentencePieceVocabulary.sentencepiece_model_file": Ours("VOCABULARY_FILE"),
    "seqio.SentencePieceVocabulary.extra_ids": Ours(
        "prompt_tuning.vocabulary:SentencePieceVocabulary.extra_ids"
    ),
    "Evaluator.logger_cls": Wired(),
    "Evaluator.num_examples": Ours("EVALUATOR_NUM_EXAMPLES"),
    "Evaluator.use_memory_cache": _IN_MEMORY,
    "JSONLogger.write_n_results": Ours("JSON_WRITE_N_RESULTS"),
    # The prompt.
    "Prompt.prompt": Wired(),
    "Prompt.prompt_init": Ours("prompt_tuning.prompts.prompt:Prompt.init"),
    "Prompt.dtype": NoEffect("the vectors are float32, and cast where they meet the input"),
    "from_embedded_list.embeddings": Ours(f"{_LABELS}.embeddings"),
    "from_embedded_list.vocab": Ours(f"{_LABELS}.vocabulary"),
    "from_embedded_list.texts": Ours(f"{_LABELS}.labels"),
    "from_embedded_list.initializer": Ours(f"{_LABELS}.fallback"),
    "from_sample_of_embeddings.embeddings": Ours(f"{_SAMPLED}.embeddings"),
    "from_sample_of_embeddings.population_size": Ours(f"{_SAMPLED}.population_size"),
    "t5x_load.checkpoint_path": Ours("prompt_tuning.checkpoints.base:load_embeddings.path"),
    "t5x_load.variable_path": Always(
        ("token_embedder/embedding",), "what is read is the table of embeddings"
    ),
    "np_load.path": Ours("prompt_tuning.checkpoints.formats:load_vectors.path"),
    "linen.initializers.uniform.scale": Ours("prompt_tuning.prompts.initializers:uniform.scale"),
    # The functions that run.
    **_named(
        "train",
        {
            "eval_steps": Ours("EVAL_STEPS"),
            "train_dataset_cfg": Wired(),
            "train_eval_dataset_cfg": Wired("EVAL_SPLIT = None evaluates nothing."),
            "infer_eval_dataset_cfg": Wired("EVAL_SPLIT = None evaluates nothing."),
            "checkpoint_cfg": Wired(),
            "partitioner": Wired(),
            "trainer_cls": Wired(),
            "summarize_config_fn": Wired(),
            "inference_evaluator_cls": Wired(),
            "use_hardware_rng": Always((False,), "random bits are the same on every device"),
            "use_orbax": Always((True,), "runs are saved by orbax"),
            "concurrent_metrics": NoEffect("metrics are computed between two steps"),
            "gc_period": NoEffect("garbage is collected as Python does"),
            "verify_matching_vocabs_fn": NoEffect("vocabularies are always compared"),
            "actions": Nothing("MONITOR stops a run early; a loss that is not finite always does."),
            "get_dataset_fn": _HOOK,
            "train_eval_get_dataset_fn": _HOOK,
            "train_state_initializer_cls": _HOOK,
        },
    ),
    **_named(
        "evaluate",
        {
            "dataset_cfg": Wired(),
            "partitioner": Wired(),
            "restore_checkpoint_cfg": Wired(),
            "inference_evaluator_cls": Wired(),
            "inference_evaluator_fn": Wired(),
            "summarize_config_fn": Wired(),
            "use_orbax": NoEffect("the format of a checkpoint is recognised"),
            "fallback_init_rng": NoEffect("nothing is initialised at random"),
        },
    ),
    **_named(
        "infer",
        {
            "dataset_cfg": Wired(),
            "partitioner": Wired(),
            "restore_checkpoint_cfg": Wired(),
            "summarize_config_fn": Wired(),
            "use_orbax": NoEffect("the format of a checkpoint is recognised"),
            "fallback_init_rng": NoEffect("nothing is initialised at random"),
            "write_fn": _HOOK,
            "keep_aux": NoEffect("MODE = 'predict_with_aux' writes it"),
        },
    ),
}

# Macros of t5x and of the original that none of our files reads.
MACROS: dict[str, Meaning] = {
    "EVALUATOR_USE_MEMORY_CACHE": _IN_MEMORY,
    "USE_HARDWARE_RNG": Always((False,), "random bits are the same on every device"),
    "PROMPT_REGEX": Always(
        ([".*/prompt/.*"],), "what is trained is the prompt, or with runs/finetune.gin the model"
    ),
    "OPTIMIZER": Wired(),
    "ARCHITECTURE": Wired(),
    "SHUFFLE_TRAIN_EXAMPLES": Always((True,), _ORDER),
    "NUM_LAYERS": Nothing("Set NUM_ENCODER_LAYERS and NUM_DECODER_LAYERS."),
    "LABELS": Ours("CLASS_LABELS"),
}

# What stands for a function of theirs in the value of a macro, or of a setting above.
REFERENCES: dict[str, str] = {
    "train_prompts.Prompt": "prompt_tuning.prompts.prompt:Prompt",
    "from_embedded_list": _LABELS,
    "from_sample_of_embeddings": _SAMPLED,
    "t5x_load": "prompt_tuning.checkpoints.base:load_embeddings",
    "np_load": "prompt_tuning.checkpoints.formats:load_vectors",
    "linen.initializers.uniform": "prompt_tuning.prompts.initializers:uniform",
    "create_learning_rate_scheduler": _RATE,
    "decoding.beam_search": _BEAMS,
    "decoding.temperature_sample": _SAMPLE,
    "seqio.SentencePieceVocabulary": "prompt_tuning.vocabulary:SentencePieceVocabulary",
    "seqio.ByteVocabulary": "prompt_tuning.vocabulary:ByteVocabulary",
}

# Functions of theirs that only say how parts are put together.
PARTS = [
    "DatasetConfig",
    "CheckpointConfig",
    "RestoreCheckpointConfig",
    "SaveCheckpointConfig",
    "Checkpointer",
    "PjitPartitioner",
    "standard_logical_axis_rules",
    "Trainer",
    "Evaluator",
    "PyLoggingLogger",
    "JSONLogger",
    "TensorBoardLogger",
    "EncoderDecoderModel",
    "Adafactor",
    "MultiOptimizer",
    "ModelParamTraversal",
    "match_any",
    "standard_logical_factor_rules",
    "summarize_gin_config",
    "create_learning_rate_scheduler",
    "Prompt",
    "T5Config",
    "Transformer",
    "SaveBestCheckpointer",
    "OrbaxCheckpointManagerInterface",
]

# Modules of theirs that a gin file may import and that are not there.
MODULES = ("t5x", "flaxformer", "prompt_tuning.train", "prompt_tuning.extended")
