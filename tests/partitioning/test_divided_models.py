"""A model that is divided among devices trains and answers as the same model on one device."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from prompt_tuning.batch import Batch
from prompt_tuning.decoding import BeamSearch, make_generate
from prompt_tuning.errors import ConfigError, DeviceError
from prompt_tuning.model import T5, BaseParam, t5_config
from prompt_tuning.model.parameters import count, named
from prompt_tuning.partitioning import Partitioning, on_host
from prompt_tuning.prompts import Prompt, PromptParam, uniform
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.schedules import learning_rate
from prompt_tuning.training.state import laid_out, split_model, start
from prompt_tuning.training.step import make_train_step
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, small_model

# Every dimension that is divided is a multiple of 8.
SIZES = {"vocab_size": 64, "mlp_dim": 32, "num_heads": 8, "head_dim": 2}
STEPS = 20
# By name: the partitioning, and how many devices share the rows.
MESHES = {
    "data 8": (Partitioning(), 8),
    "data 4 x model 2": (Partitioning(num_partitions=2), 4),
    "model 8": (Partitioning(num_partitions=8), 1),
    "fsdp 8": (Partitioning(fsdp=8), 8),
    "data 2 x fsdp 2 x model 2": (Partitioning(num_partitions=2, fsdp=2), 4),
    "2D parameters": (Partitioning(num_partitions=2, parameter_partitioning_dims=2), 4),
    "2D activations": (Partitioning(num_partitions=2, activation_partitioning_dims=2), 4),
    "2D both": (
        Partitioning(
            num_partitions=2, parameter_partitioning_dims=2, activation_partitioning_dims=2
        ),
        4,
    ),
}


def meshes(*quick):
    """Parametrizes a test by all meshes; those that are not named here are for the slow tests."""
    return pytest.mark.parametrize(
        "mesh",
        [pytest.param(one, marks=() if one in quick else pytest.mark.slow) for one in MESHES],
    )


every_mesh = meshes("data 8", "data 4 x model 2", "model 8", "data 2 x fsdp 2 x model 2")
one_mesh = meshes("data 4 x model 2")


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        inputs, targets = (rng.integers(2, 64, (8, n)).astype(np.int32) for n in (9, 5))
        yield Batch(inputs=inputs, targets=targets, weights=np.ones((8, 5), np.float32))


class Run:
    """A small model on a mesh, and its step, compiled for the arrays that are there at first."""

    def __init__(self, placed, trainable=PromptParam, *, microbatches=1, hold=True, model=None):
        self.placed, self.microbatches = placed, microbatches
        module = small_model(**SIZES) if model is None else model
        if hold:
            module.hold(placed.layout)
        self.graph, chosen, frozen = split_model(module, trainable)
        # At 0.3 this tiny model is chaotic: the differences of rounding grow tenfold in 5 steps,
        # between 1 and 8 devices as between any two. At 0.03 they stay what they are.
        self._optimizer = adafactor(
            learning_rate("constant", base_learning_rate=0.03), min_dim_size_to_factor=16
        )
        self.state = laid_out(start(chosen, self._optimizer, step=1_100_000), placed)
        self.frozen = placed.parameters(frozen)

    @functools.cached_property
    def program(self):
        return self.program_for(next(batches()))

    def program_for(self, batch):
        step = make_train_step(
            self.graph, self._optimizer, microbatches=self.microbatches, placement=self.placed
        )
        return step.lower(*self._arguments(batch)).compile(compiler_options=QUICKLY)

    def _arguments(self, batch):
        placed = self.placed.batch(batch, microbatches=self.microbatches)
        return self.state.trainable, self.state.opt_state, self.frozen, placed, None

    def take(self, batch):
        """Takes a step: the program would refuse arrays that lie elsewhere than at first."""
        before = jax.tree.leaves(self.state[:2])
        chosen, slots, _ = self.program(*self._arguments(batch))
        # Those of one number for each layer stand for slots that this optimizer does not use.
        assert all(old.is_deleted() for old in before if old.size > 3)
        self.state = self.state._replace(trainable=chosen, opt_state=slots)

    def learned(self):
        # Copies, as those of a CPU may be views, which keep the arrays from being given away.
        return {name: on_host(one).copy() for name, one in named(self.state.trainable).items()}


def placed_on(mesh):
    """Returns the placement of this name; None is a single device."""
    return Partitioning().placement(1) if mesh is None else MESHES[mesh][0].placement()


@functools.cache
def trained(mesh, trainable=PromptParam, microbatches=1, steps=STEPS):
    """Returns a run after some steps."""
    run = Run(placed_on(mesh), trainable, microbatches=microbatches)
    for batch, _ in zip(batches(), range(steps), strict=False):
        run.take(batch)
    return run


def distance(one, other):
    """Returns how far apart two runs are, as a part of the whole."""
    found, wanted = one.learned(), other.learned()
    return max(
        np.linalg.norm(found[name] - array) / np.linalg.norm(array)
        for name, array in wanted.items()
    )


@every_mesh
def test_a_prompt_is_the_same_after_20_steps_on_every_mesh(mesh):
    assert distance(trained(mesh), trained(None)) < 1e-5
    assert distance(trained(mesh), trained(None, steps=0)) > 0.01


@meshes()
def test_microbatches_go_with_every_mesh(mesh):
    assert distance(trained(mesh, microbatches=2), trained(None, microbatches=2)) < 1e-5


@pytest.mark.slow
@one_mesh
def test_a_whole_model_is_tuned_where_its_parts_lie(mesh):
    found, wanted = (trained(one, BaseParam, steps=3) for one in (mesh, None))
    assert distance(found, wanted) < 1e-4


@functools.cache
def said(mesh):
    """Returns the tokens and scores of the answers of a model that has learned nothing yet."""
    run, placed = Run(placed_on(mesh)), placed_on(mesh)
    generate = make_generate(run.graph, length=6, strategy=BeamSearch(beams=2))
    arguments = run.state.trainable, run.frozen, placed.batch(BATCH).inputs
    found = generate.lower(*arguments).compile(compiler_options=QUICKLY)(*arguments)
    return [on_host(one)[: len(BATCH.inputs)] for one in found]


@one_mesh
def test_a_model_says_the_same_on_every_mesh(mesh):
    (tokens, scores), (tokens_1, scores_1) = said(mesh), said(None)
    np.testing.assert_array_equal(tokens, tokens_1)
    np.testing.assert_allclose(scores, scores_1, rtol=1e-5)


# What lies where.


def specs(state):
    return {name: leaf.sharding.spec for name, leaf in named(state).items()}


def test_the_base_is_divided_and_the_prompt_is_whole():
    run = Run(placed_on("data 4 x model 2"))
    found = specs(run.frozen)
    assert found["encoder/layers/attention/query/kernel"] == P(None, None, "model")
    assert found["decoder/layers/mlp/wo/kernel"] == P(None, "model")
    assert found["token_embedder/embedding"] == P("model")
    assert found["encoder/encoder_norm/scale"] == P()
    for leaf in jax.tree.leaves((run.state.trainable, run.state.opt_state)):
        assert leaf.sharding.is_fully_replicated


def test_slots_of_a_parameters_shape_lie_where_it_does():
    run = Run(placed_on("data 4 x model 2"), BaseParam)
    slots = run.state.opt_state["encoder/layers/mlp/wi_0/kernel"][0]
    assert slots.v_row.sharding.spec == slots.v_col.sharding.spec == P()
    table = run.state.opt_state["decoder/relpos_bias/rel_embedding"][0]
    assert table.v.shape == (8, 8) and table.v.sharding.spec == P("model")


def held(tree):
    """Returns the bytes of arrays on the first device, and of all that they are."""
    leaves = jax.tree.leaves(tree)
    return sum(one.addressable_shards[0].data.nbytes for one in leaves), sum(
        one.nbytes for one in leaves
    )


@pytest.mark.parametrize(
    ("mesh", "parts"),
    [
        ("data 8", 1),
        ("data 4 x model 2", 2),
        ("model 8", 8),
        ("2D parameters", 8),
    ],
)
def test_a_device_holds_its_part_of_the_base(mesh, parts):
    here, whole = held(Run(placed_on(mesh)).frozen)
    # Norms are whole unless the width is divided: 15 of them, 16 numbers each.
    assert whole / parts <= here <= whole / parts + 4 * 15 * 16


@pytest.mark.parametrize(
    ("mesh", "layers", "tables"), [("fsdp 8", 8, 1), ("data 2 x fsdp 2 x model 2", 4, 2)]
)
def test_devices_share_the_kernels_of_the_layers(mesh, layers, tables):
    arrays = named(Run(placed_on(mesh)).frozen)
    for name, parts in [
        ("encoder/layers/attention/out/kernel", layers),
        ("decoder/layers/mlp/wi_1/kernel", layers),
        ("token_embedder/embedding", tables),
        ("decoder/logits_dense/kernel", tables),
        ("encoder/layers/pre_mlp_layer_norm/scale", 1),
    ]:
        here, whole = held(arrays[name])
        assert here == whole / parts, name


@pytest.mark.parametrize("settings", [{}, {"num_partitions": 2, "fsdp": 2}])
def test_offloaded_are_the_kernels_of_the_layers(settings):
    placed = Partitioning(offload=True, **settings).placement()
    run = Run(placed)
    arrays = named(run.frozen)
    host = {name for name, one in arrays.items() if one.sharding.memory_kind == "pinned_host"}
    assert host == {name for name in arrays if "/layers/" in name and name.endswith("kernel")}
    assert specs(run.frozen) == specs(Partitioning(**settings).placement().parameters(run.frozen))
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(run.state.trainable)}
    assert kinds == {"device"}


@pytest.mark.slow
def test_a_prompt_over_an_offloaded_base_is_the_same_after_20_steps():
    run = Run(Partitioning(offload=True, num_partitions=2, fsdp=2).placement())
    for batch in batches():
        run.take(batch)
    assert distance(run, trained(None)) < 1e-5


def test_layers_that_are_trained_are_not_offloaded():
    message = "OFFLOAD keeps the layers in the host's memory, but here they are trained, and lie"
    with pytest.raises(ConfigError, match=message):
        Run(Partitioning(offload=True).placement(), BaseParam)


def test_the_program_is_given_its_part_of_the_base():
    alone, divided = (
        trained(mesh).program.memory_analysis().argument_size_in_bytes for mesh in (None, "model 8")
    )
    assert divided < alone / 4
    assert alone - divided == pytest.approx(
        held(trained(None).frozen)[0] - held(trained("model 8").frozen)[0], rel=0.05
    )


def test_a_model_that_does_not_divide_is_refused_by_name():
    placed = Partitioning(num_partitions=4).placement()
    frozen = split_model(small_model(vocab_size=64), PromptParam)[2]
    message = "'decoder/relpos_bias/rel_embedding' has 2 'heads', which do not divide among the 4"
    for lay in (placed.shardings, placed.parameters):
        with pytest.raises(DeviceError, match=re.escape(message)):
            lay(frozen)


# What devices exchange.

EXCHANGES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def exchanged(program, kind, *, in_loops):
    """Returns the shapes that devices exchange in the layers, or apart from them."""
    text = program.as_text()
    loops = set(re.findall(r"body=%?([\w.\-]+)", text))
    found, computation = [], None
    for line in text.splitlines():
        if start := re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = start[1]
        if (computation in loops) == in_loops and (
            one := re.search(rf"= (.*?) {kind}(?:-start)?\(", line)
        ):
            found += re.findall(r"\w+\[[\d,]*\]", one[1])
    return found


@pytest.mark.parametrize("mesh", ["data 4 x model 2", "model 8"])
def test_layers_exchange_activations_and_no_kernels(mesh):
    program, rows = trained(mesh).program, MESHES[mesh][1]
    for kind in EXCHANGES[1:]:
        assert exchanged(program, kind, in_loops=True) == [], kind
    # Rows of a batch, positions with the prompt's or of the answer, width.
    allowed = {f"f32[{8 // rows},{length},16]" for length in (9, 12, 5)}
    assert set(exchanged(program, "all-reduce", in_loops=True)) <= allowed


def test_xxl_compiles_for_its_part_of_the_base_and_exchanges_no_kernels():
    placed = placed_on("model 8")
    config = t5_config("t5_1_1_xxl", param_dtype="bfloat16", remat="full")
    prompt = functools.partial(Prompt, length=100, init=uniform())
    model = nnx.eval_shape(lambda: T5(config, prompt=prompt, rngs=nnx.Rngs(0)))
    model.hold(placed.layout)
    graph, chosen, frozen = split_model(model, PromptParam)
    state = jax.eval_shape(lambda chosen: start(chosen, adafactor(), step=0), chosen)
    shardings = placed.shardings(frozen)
    base = nnx.from_flat_state(
        [
            (path, leaf.replace(leaf.get_value().update(sharding=shardings["/".join(path)])))
            for path, leaf in nnx.to_flat_state(frozen)
        ]
    )
    step = make_train_step(graph, adafactor(), placement=placed)
    arguments = state.trainable, state.opt_state, base, placed.batch(next(batches())), None
    program = step.lower(*arguments).compile(compiler_options=QUICKLY)
    size = program.memory_analysis().argument_size_in_bytes
    assert size == pytest.approx(2 * count(frozen) / 8, rel=0.01)
    assert exchanged(program, "all-gather", in_loops=True) == []


def kernels(*, divided_by):
    """Returns the shapes of the layers' kernels as a device multiplies with them."""
    found = {"mlp": SIZES["mlp_dim"], "joined_kv": SIZES["num_heads"] * SIZES["head_dim"]}
    sides = [(16, size // divided_by) for size in found.values()]
    return {f"f32[{a},{b}]" for side in sides for a, b in (side, side[::-1])}


@pytest.mark.parametrize("mesh", ["fsdp 8", "data 2 x fsdp 2 x model 2"])
def test_fsdp_gathers_the_kernels_of_a_layer_at_its_turn(mesh):
    placed = placed_on(mesh)
    program, split = Run(placed).program, placed.mesh.shape["model"]
    assert set(exchanged(program, "all-gather", in_loops=True)) == kernels(divided_by=split)
    for kind in EXCHANGES[2:]:
        for in_loops in (True, False):
            assert exchanged(program, kind, in_loops=in_loops) == [], kind
    if split == 1:
        # Nothing but that: no table is gathered, and one gradient summed.
        assert exchanged(program, "all-gather", in_loops=False) == []
        assert exchanged(program, "all-reduce", in_loops=True) == []
        sums = exchanged(program, "all-reduce", in_loops=False)
        assert [one for one in sums if one != "f32[]"] == ["f32[3,16]"]


@pytest.mark.parametrize(
    ("settings", "few", "many"),
    [
        ({}, 2, 8),
        pytest.param({"num_partitions": 2}, 4, 8, marks=pytest.mark.slow),
        pytest.param({"fsdp": 2}, 4, 8, marks=pytest.mark.slow),
    ],
)
def test_more_devices_with_as_many_rows_each_work_and_exchange_no_more(settings, few, many):
    def work(devices):
        placed = Partitioning(**settings).placement(devices)
        # Two rows for each; the batch that there is, as often as it takes.
        batch = jax.tree.map(lambda one: np.tile(one[:2], (placed.rows, 1)), next(batches()))
        program = Run(placed).program_for(batch)
        shapes = [
            sorted(exchanged(program, kind, in_loops=in_loops))
            for kind in EXCHANGES
            for in_loops in (True, False)
        ]
        return shapes, program.cost_analysis()["flops"]

    (shapes, flops), (shapes_2, flops_2) = work(few), work(many)
    assert shapes == shapes_2 and sum(map(len, shapes)) > 0
    assert flops_2 == pytest.approx(flops, rel=0.03)


def test_over_a_whole_base_there_is_nothing_to_hold():
    for mesh in MESHES:
        assert (placed_on(mesh).layout.stream is None) == (mesh == "data 8")


@pytest.mark.parametrize("hold", [True, False])
def test_2d_parameters_gather_kernels_and_not_the_batch(hold):
    """The second case shows what holding the activations is for."""
    placed = Partitioning(parameter_partitioning_dims=2).placement()
    gathered = exchanged(Run(placed, hold=hold).program, "all-gather", in_loops=True)
    batches = [one for one in gathered if re.match(r"f32\[8,\d+,\d+\]", one)]
    assert ("f32[16,32]" in gathered and not batches) == hold
