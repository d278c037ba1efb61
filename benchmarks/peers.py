r"""Our step of prompt tuning against that of PEFT in PyTorch, at equal shapes and weights.

T5 1.1 small in float32, batch 8, inputs 64, targets 8, prompt 100; every way has a process of its
own, which makes a step when it is told to, so that no two compute at once. Both start from the same
random weights, by way of a Hugging Face checkpoint, and from the same prompt; the logits and the
prompt's gradient must agree before anything is timed. PEFT's prompt stands at the encoder alone
(`num_transformer_submodules=1`; with PEFT's own default of 2 another 100 vectors are kept that a T5
does not read) and is trained by AdamW, ours by Adafactor: neither costs what could be measured.

    make .venv-interop/.installed  # our environment, and torch, transformers and PEFT in it
    .venv-interop/bin/python benchmarks/peers.py [--quick]

On a GPU in bfloat16, each with random weights of its own, ten steps at a time:

    python benchmarks/peers.py --device=gpu --size=xl --batch=16 --inputs=512 --targets=64 \
        --ways=ours,peft,peft-compiled

Ways: `ours`; `peft` (attention as transformers chooses it, which is PyTorch's
`scaled_dot_product_attention`), `peft-eager` (attention in single products), and `peft-compiled`
(`torch.compile`).
"""

import argparse
import functools
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

WAYS = ("ours", "peft", "peft-eager", "peft-compiled")
STEPS = {"cpu": 1, "gpu": 10}  # between two looks at the clock
DTYPES = {"cpu": "float32", "gpu": "bfloat16"}


def main() -> None:
    """Starts one process for each way, has them step in turn, and prints what it found."""
    arguments = parsed()
    if arguments.child:
        serve(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        children: dict[str, Child] = {}
        try:
            for way in arguments.ways:
                child = Child(way, folder)
                if child.ready is None:  # It did not fit, or has said what it lacks.
                    print(f"{way} does not run here, see above.")
                    continue
                children[way] = child
            ready = {way: child.ready for way, child in children.items() if child.ready}
            if not ready:
                sys.exit(1)
            agreement = agreed(ready) if arguments.device == "cpu" else {}
            steps = {way: [] for way in children}
            for turn in range(arguments.rounds):
                # Each goes first as often as the others, and none finds the caches as another's.
                order = list(children) if turn % 2 else list(reversed(children))
                for way in order:
                    steps[way].append(children[way].ask("step"))
            ended = {way: child.ask("end") for way, child in children.items()}
        finally:
            for child in children.values():
                child.close()
    report(arguments, ready, steps, ended, agreement)


def parsed() -> argparse.Namespace:
    """Reads the flags; a child gets those of its parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--device", choices=STEPS, default="cpu")
    parser.add_argument("--size", default="small", help="of T5 1.1, or a name `t5_config` knows")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--inputs", type=int, default=64)
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--ways", default="ours,peft", help=f"some of {', '.join(WAYS)}")
    parser.add_argument("--ours", default="", help="fields of our T5Config: remat=full,unroll=True")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.ways = arguments.ways.split(",")
    if unknown := set(arguments.ways) - set(WAYS):
        parser.error(f"--ways: {', '.join(unknown)} is none of {', '.join(WAYS)}")
    arguments.rounds = arguments.rounds or (8 if arguments.quick else 30)
    return arguments


class Child:
    """A process that runs one way and answers in lines of JSON."""

    def __init__(self, way: str, folder: str):
        command = [sys.executable, __file__, *sys.argv[1:], f"--child={way}", f"--folder={folder}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._way = way
        self.ready = self._answer()

    def ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin
        print(what, file=self._process.stdin, flush=True)
        answer = self._answer()
        if answer is None:
            sys.exit(f"The process of {self._way!r} ended, see above.")
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


def serve(arguments: argparse.Namespace) -> None:
    """Makes steps as the parent asks for them."""
    # Nothing that a library prints may come between.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    prepare = our_way if arguments.child == "ours" else their_way
    began = time.monotonic()
    ready, steps, memory = prepare(arguments)
    warm_up = [timed(steps, 1) for _ in range(3)]
    ready |= {"ready_s": time.monotonic() - began, "first_steps_s": [x["wall"] for x in warm_up]}
    print(json.dumps(ready), file=answers)
    for asked in sys.stdin:
        if asked.strip() == "end":
            print(json.dumps({"peak_gib": memory()}), file=answers)
            return
        print(json.dumps(timed(steps, STEPS[arguments.device])), file=answers)


def timed(steps, number: int) -> dict[str, float]:
    """Returns the seconds of one step, on the clock and on all cores."""
    wall, cores = time.monotonic(), time.process_time()
    steps(number)
    return {
        "wall": (time.monotonic() - wall) / number,
        "cores": (time.process_time() - cores) / number,
    }


def our_way(arguments: argparse.Namespace):
    """Compiles our step; writes its weights and what it makes of them for the others."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # Another process needs room as well.
    import jax
    from gpu_step import parsed as configured
    from gpu_step import peak, random_batch, random_model

    from prompt_tuning.training.optimizer import adafactor
    from prompt_tuning.training.step import make_train_step

    dtype = DTYPES[arguments.device]
    settings = [f"dtype={dtype}", f"param_dtype={dtype}", shapes(arguments), arguments.ours]
    config, shape = configured(f"{arguments.size}:{','.join(settings)}")
    graph, prompt, frozen = random_model(config, shape)
    batch = random_batch(config, shape)
    ready = {"version": f"jax {jax.__version__}"}
    if arguments.device == "cpu":
        ready["agreement"] = write_for_others(
            arguments.folder, config, graph, prompt, frozen, batch
        )
    batch = jax.device_put(batch)
    optimizer = adafactor()
    state = [prompt, optimizer.init(prompt, step=0)]
    lowered = make_train_step(graph, optimizer).lower(*state, frozen, batch, None)
    began = time.monotonic()
    compiled = lowered.compile()
    ready["compile_s"] = time.monotonic() - began

    def steps(number: int) -> None:
        for _ in range(number):
            *state[:], sums = compiled(*state, frozen, batch, None)
        jax.block_until_ready((state, sums))

    return ready, steps, lambda: peak(jax.devices()[0])


def write_for_others(folder: str, config, graph, prompt, frozen, batch) -> dict:
    """Writes a Hugging Face checkpoint, the prompt and the batch; returns what we make of them."""
    import jax
    from etils import epath
    from flax import nnx

    from prompt_tuning.checkpoints.containers.stored import Stored
    from prompt_tuning.checkpoints.hugging_face import save_hugging_face
    from prompt_tuning.checkpoints.mapping import to_t5x
    from prompt_tuning.losses import Loss
    from prompt_tuning.model import parameters

    named = parameters.named(frozen)
    arrays = to_t5x({name: np.asarray(array) for name, array in named.items()})
    stored = {name: Stored.of(array, name) for name, array in arrays.items()}
    save_hugging_face(stored, config, 0, epath.Path(folder) / "model")
    (vectors,) = parameters.named(prompt).values()
    place = pathlib.Path(folder) / "given.npz"
    np.savez(place, prompt=vectors, inputs=batch.inputs, targets=batch.targets)

    loss = Loss(z_loss=0.0, normalizing_factor="NUM_REAL_TARGET_TOKENS")

    def found(prompt):
        logits = nnx.merge(graph, prompt, frozen)(batch)
        return loss(logits, batch)[0], logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(found, has_aux=True))(prompt)
    (gradient,) = parameters.named(gradient).values()
    return written(folder, "ours", logits, gradient)


def their_way(arguments: argparse.Namespace):
    """Makes PEFT's step."""
    torch, transformers, peft = map(imported, ("torch", "transformers", "peft"))
    dtype = getattr(torch, DTYPES[arguments.device])
    eager = {"attn_implementation": "eager"} if arguments.child == "peft-eager" else {}
    own = arguments.device == "gpu"
    if own:
        device = torch.device("cuda")
        config = their_config(arguments, **eager)
        with device:
            torch.set_default_dtype(dtype)
            model = transformers.T5ForConditionalGeneration(config)
            torch.set_default_dtype(torch.float32)
        rng, most = np.random.default_rng(0), config.vocab_size - 100
        inputs = rng.integers(2, most, (arguments.batch, arguments.inputs))
        targets = rng.integers(2, most, (arguments.batch, arguments.targets))
    else:
        device = torch.device("cpu")
        torch.set_num_threads(os.cpu_count() or 1)
        given = np.load(pathlib.Path(arguments.folder) / "given.npz")
        inputs, targets = given["inputs"], given["targets"]
        model = transformers.T5ForConditionalGeneration.from_pretrained(
            pathlib.Path(arguments.folder) / "model", dtype=dtype, **eager
        )
    model.config.use_cache = False
    settings = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=arguments.prompt,
        num_transformer_submodules=1,
    )
    tuned = peft.get_peft_model(model, settings).to(device)
    tuned.train()  # As it is trained; its dropout rate is 0.
    learned = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    assert [tuple(one.shape) for one in learned] == [(arguments.prompt, model.config.d_model)]
    tokens = functools.partial(torch.tensor, dtype=torch.long, device=device)
    batch = {"input_ids": tokens(inputs), "labels": tokens(targets)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    ready = {
        "version": f"torch {torch.__version__}, transformers {transformers.__version__}, peft "
        f"{peft.__version__}",
        "attention": model.config._attn_implementation,
        "threads": torch.get_num_threads(),
    }
    if not own:
        with torch.no_grad():
            learned[0].copy_(torch.tensor(given["prompt"]))
        found = tuned(**batch)
        found.loss.backward()
        ready["agreement"] = written(
            arguments.folder, arguments.child, found.logits.detach(), learned[0].grad
        )
    optimizer = torch.optim.AdamW(learned, lr=1e-3)
    forward = torch.compile(tuned) if arguments.child == "peft-compiled" else tuned

    def steps(number: int) -> None:
        for _ in range(number):
            optimizer.zero_grad()
            forward(**batch).loss.backward()
            optimizer.step()
        if own:
            torch.cuda.synchronize()

    return ready, steps, lambda: torch.cuda.max_memory_allocated() / 2**30 if own else None


def their_config(arguments: argparse.Namespace, **more):
    """Returns the same size for transformers."""
    from gpu_step import parsed as configured

    ours, _ = configured(arguments.size)
    return imported("transformers").T5Config(
        vocab_size=ours.vocab_size,
        d_model=ours.embed_dim,
        d_kv=ours.head_dim,
        d_ff=ours.mlp_dim,
        num_layers=ours.encoder_layers,
        num_decoder_layers=ours.decoder_layers,
        num_heads=ours.num_heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        **more,
    )


def imported(name: str):
    """Returns one of the peers' packages, or says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(
            f"{error}. This benchmark compares with torch, transformers and PEFT: run "
            "`make .venv-interop/.installed`, then .venv-interop/bin/python benchmarks/peers.py "
            '(or install them beside this package: pip install -e ".[interop]").'
        )


def written(folder: str, way: str, logits, gradient) -> str:
    """Keeps what a way makes of the weights, and returns where."""
    place = pathlib.Path(folder) / f"{way}.npz"
    np.savez(place, logits=np.asarray(logits), gradient=np.asarray(gradient))
    return str(place)


def agreed(ready: dict[str, dict]) -> dict[str, float]:
    """Returns how far the ways are apart, in units of the largest number; stops if too far."""
    first, *others = (np.load(one["agreement"]) for one in ready.values())
    found = {
        f"{name}_difference": max(
            (float(np.abs(one[name] - first[name]).max() / np.abs(first[name]).max()))
            for one in others
        )
        for name in ("logits", "gradient")
        if others
    }
    # Float32 in another order, through 16 layers; a wrong mask or bias is off by far more.
    for name, difference in found.items():
        assert difference < 2e-3, (name, difference)
    return found


def share_of_peak(arguments: argparse.Namespace, seconds: float) -> float:
    """Returns the MFU of either way: what the shapes ask for at least, against the data sheet."""
    from gpu_step import PEAK_TFLOPS, least_flops
    from gpu_step import parsed as configured

    least = least_flops(*configured(f"{arguments.size}:{shapes(arguments)}"))
    return least / seconds / PEAK_TFLOPS / 1e12


def shapes(arguments: argparse.Namespace) -> str:
    """Returns the shapes of a step as `gpu_step` reads them."""
    names = ("batch", "inputs", "targets", "prompt")
    return ",".join(f"{name}={getattr(arguments, name)}" for name in names)


def report(arguments, ready, steps, ended, agreement) -> None:
    """Prints a table and, as the last line, everything as JSON."""
    tokens, on_gpu = arguments.batch * arguments.inputs, arguments.device == "gpu"
    print(
        f"{'':14} {'median s':>9} {'min':>8} {'max':>8} {'on cores':>9} {'tokens/s':>9}  peak GiB"
    )
    rows = {}
    for way, found in steps.items():
        walls = [one["wall"] for one in found]
        rows[way] = {
            "median_s": statistics.median(walls),
            "min_s": min(walls),
            "max_s": max(walls),
            "on_cores_s": statistics.median([one["cores"] for one in found]),
            "tokens_per_second": tokens / statistics.median(walls),
            **({"mfu": share_of_peak(arguments, statistics.median(walls))} if on_gpu else {}),
            **ended[way],
            **ready[way],
        }
        rows[way].pop("agreement", None)
        row = rows[way]
        print(
            f"{way:14} {row['median_s']:9.4f} {row['min_s']:8.4f} {row['max_s']:8.4f} "
            f"{row['on_cores_s']:9.4f} {row['tokens_per_second']:9.0f}  {row['peak_gib'] or ''}"
        )
    figures = {}
    for way in rows:
        if way == "ours" or "ours" not in rows:
            continue
        pairs = [a["wall"] / b["wall"] for a, b in zip(steps["ours"], steps[way], strict=True)]
        figures[way] = {
            "ratio": rows["ours"]["median_s"] / rows[way]["median_s"],
            "ratio_pairwise": [min(pairs), statistics.median(pairs), max(pairs)],
            "ratio_on_cores": rows["ours"]["on_cores_s"] / rows[way]["on_cores_s"],
        }
        print(f"ours / {way}: {figures[way]['ratio']:.3f} ({min(pairs):.3f} to {max(pairs):.3f})")
    print(
        json.dumps(
            {
                "benchmark": "peers",
                "ratio": figures.get("peft", {}).get("ratio"),
                "against": figures,
                **agreement,
                **{name: getattr(arguments, name) for name in ("device", "size", "batch")},
                **{name: getattr(arguments, name) for name in ("inputs", "targets", "prompt")},
                "dtype": DTYPES[arguments.device],
                "ways": rows,
                "rounds": arguments.rounds,
                "load": os.getloadavg(),
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
