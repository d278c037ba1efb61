"""The plan of a small training step: a guard on its bytes, FLOPs and collectives."""

import functools

import pytest
from flax import nnx

from prompt_tuning.decoding import BeamSearch
from prompt_tuning.model import T5, t5_config
from prompt_tuning.partitioning import Partitioning
from prompt_tuning.planning import (
    Split,
    plan_decoding,
    plan_evaluation,
    plan_training,
    search,
    topologies,
)
from prompt_tuning.planning.plan import asked
from prompt_tuning.prompts import Prompt, PromptParam, uniform
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model
from prompt_tuning.training.step import make_train_step

PROMPT, WIDTH = 4, 32
SHAPE = {"inputs": 28, "targets": 4}


def plan(name, *, rows=8, partitions=1, microbatches=1, program="train", **fields):
    config = t5_config("ours_tiny", param_dtype="bfloat16", attention="plain", **fields)
    topology = topologies.topology(name)
    placement = Partitioning(num_partitions=partitions).placement(topology.devices)
    prompt = functools.partial(Prompt, length=PROMPT, init=uniform())
    module = nnx.eval_shape(lambda: T5(config, prompt=prompt, rngs=nnx.Rngs(0)))
    module.hold(placement.layout)
    graph, chosen, frozen = split_model(module, PromptParam)
    split = Split(model=module, graph=graph, chosen=chosen, frozen=frozen)
    if program == "eval":
        return plan_evaluation(split, topology, placement, rows=rows, **SHAPE)
    if program == "decode":
        return plan_decoding(split, topology, placement, BeamSearch(), rows=rows, **SHAPE)
    optimizer = adafactor()
    step = make_train_step(graph, optimizer, microbatches=microbatches, placement=placement)
    return plan_training(
        split, step, optimizer, topology, placement, microbatches=microbatches, rows=rows, **SHAPE
    )


@pytest.fixture(scope="module", params=["cpu:8", "v5e:2x4"])
def training(request):
    """The plan over a base that is whole on each of eight devices."""
    if request.param.startswith("v"):
        request.getfixturevalue("tpu_compiler")
    return plan(request.param, remat="projections")


def test_a_step_computes_what_its_policy_needs_and_no_more(training):
    assert training.policy_ratio == pytest.approx(1.0, abs=1e-6)
    assert 1.0 < training.ratio < 1.1
    assert not training.counts.unknown


def test_a_whole_base_exchanges_one_gradient_of_the_prompts_size(training):
    # With it go the sums of the metrics.
    ((kind, (count, size)),) = training.counts.collectives.items()
    assert kind == ("all-reduce", "f32")
    assert count == 1
    assert 0 <= size - PROMPT * WIDTH * 4 <= 64


def test_arguments_are_the_base_in_its_dtype(training):
    # 574,080 parameters in two bytes, and what a compiler rounds up.
    assert training.argument == pytest.approx(2 * 574_080, rel=0.02)
    assert training.memory.argument == pytest.approx(training.argument, rel=0.25)
    assert training.fits
    assert training.memory.peak < 32 * 2**20


def test_all_of_it_goes_into_json(training):
    found = training.as_dict()
    assert found["memory_bytes"]["peak"] == training.memory.peak
    assert found["collectives"][0]["count"] == 1
    assert (found["step_seconds"] is None) == (training.chip.platform == "cpu")


@pytest.mark.slow
def test_microbatches_take_less_memory_and_the_same_flops():
    pieces = plan("cpu:1", rows=32, microbatches=8)
    whole = plan("cpu:1", rows=32)
    assert pieces.counts.flops == whole.counts.flops
    assert pieces.memory.temporary < whole.memory.temporary / 2


@pytest.mark.slow
def test_more_devices_with_as_many_rows_each_compute_and_exchange_the_same():
    two, eight = plan("cpu:2", rows=2), plan("cpu:8", rows=8)
    assert eight.counts.flops == pytest.approx(two.counts.flops, rel=0.03)
    assert eight.counts.collectives == two.counts.collectives


@pytest.mark.slow
def test_a_divided_base_halves_its_arguments_and_exchanges_activations():
    whole, halves = plan("cpu:2", rows=4), plan("cpu:2", rows=4, partitions=2)
    assert halves.memory.argument < 0.55 * whole.memory.argument
    assert halves.counts.flops == pytest.approx(whole.counts.flops, rel=0.05)
    assert sum(size for _, size in halves.counts.collectives.values()) > 10 * PROMPT * WIDTH * 4


@pytest.mark.parametrize("program", ["eval", "decode"])
def test_other_programs_compute_what_they_must(program):
    assert plan("cpu:1", program=program).ratio == pytest.approx(1.0, abs=0.02)


@pytest.mark.usefixtures("tpu_compiler")
def test_what_a_compiler_refuses_is_a_plan_that_does_not_fit():
    found = plan("v5e:1x1", rows=65536)
    assert not found.fits
    assert "RESOURCE_EXHAUSTED" in found.refusal
    assert found.asked > found.chip.memory
    assert found.as_dict()["flops"] is None


@pytest.mark.parametrize(
    ("refusal", "gib"),
    [
        ("required for HLO temporaries (33.50G) exceeds available HBM (15.75G).", 33.5),
        ("Used 22.25G of 15.75G hbm. Exceeded hbm capacity by 6.50G.", 22.25),
        ("out of luck", 0),
    ],
)
def test_the_compilers_figures_are_read(refusal, gib):
    assert asked(refusal) == gib * 2**30


class Fitting:
    """A plan of which nothing is asked but whether it fits."""

    def __init__(self, fits):
        self.fits = fits


@pytest.mark.parametrize("start", [1, 3, 8, 100])
@pytest.mark.parametrize("most", [1, 2, 7, 20, 100, 1000])
def test_a_search_ends_within_an_eighth_of_the_most_that_fits(start, most):
    found = search.largest(lambda rows: Fitting(rows <= most), start)
    assert [rows for rows, _ in found] == sorted({rows for rows, _ in found})
    fitting = max(rows for rows, one in found if one.fits)
    assert most - max(0, most // 8) <= fitting <= most
    assert search.largest(lambda rows: Fitting(False), start)[0][0] == 1


def test_the_first_that_fits_is_the_last_that_is_tried():
    tried = iter([Fitting(False), Fitting(True), Fitting(True)])
    assert [one.fits for one in search.first(tried)] == [False, True]
    assert len(list(tried)) == 1
