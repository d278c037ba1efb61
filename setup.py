"""The package: its name, its dependencies, and where `gin/` and `tasks/` are mounted in it.

`gin/` never has an `__init__.py`: from the root of the repository it would shadow gin-config.
"""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"$', (ROOT / "prompt_tuning/__init__.py").read_text("utf-8"), re.M
).group(1)

# Every dependency is on PyPI and has two bounds: the lower one is the release that the locks in
# `requirements/` were tested with, the upper one the next that may break us.
DEPENDENCIES = [
    "absl-py>=2.5,<3",
    "argcomplete>=3.7,<4",
    "etils[epath]>=1.15,<2",
    "flax>=0.12.8,<0.13",
    "gin-config>=0.5.0,<0.6",
    "google-crc32c>=1.9,<2",
    "grain>=0.2.18,<0.3",
    # tensorflow-datasets 4.9.10 builds no data set without it, and does not ask for it.
    "importlib_resources>=7.1,<8",
    "jax>=0.10.2,<0.11",
    "jaxtyping>=0.3.11,<0.4",
    "jinja2>=3.1.6,<4",
    "matplotlib>=3.11.2,<3.12",
    "ml_dtypes>=0.6,<0.7",
    "numpy>=2.4,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "packaging>=26,<27",
    "pyarrow>=26,<27",
    "rouge-score>=0.1.2,<0.2",
    "sacrebleu>=2.6,<3",
    "safetensors>=0.8,<0.9",
    "scikit-learn>=1.9.1,<2",
    "scipy>=1.17.1,<2",
    "sentencepiece>=0.2.3,<0.3",
    # Never `t5` of PyPI: it requires `seqio-nightly`, which overwrites the files of `seqio`.
    "seqio>=0.0.20,<0.0.21",
    "tensorboardX>=2.6.5,<3",
    "tensorflow>=2.21,<2.22",
    "tensorflow-datasets>=4.9.10,<5",
    "tensorstore>=0.1.86,<0.2",
    "tqdm>=4.70,<5",
]

EXTRAS = {
    # For a driver older than 580, install `jax[cuda12]` instead of this extra.
    "cuda": ["jax[cuda13]>=0.10.2,<0.11"],
    "tpu": ["jax[tpu]>=0.10.2,<0.11"],
    # The compiler for TPUs, which needs none: for `prompt-tuning plan`. As in the extra of JAX.
    "tpu-plan": ["libtpu>=0.0.42.1,<0.0.43"],
    # For a MODEL_DIR in a Google bucket: orbax deletes and lists there with what this brings along.
    # It also reads `gs://` where TensorFlow is not installed, or not asked (EPATH_USE_TF=false).
    "gcs": ["gcsfs>=2026.10,<2027"],
    # What our exports are checked against. PyPI's torch for Linux brings CUDA along.
    "interop": ["peft>=0.21.2,<0.22", "torch>=2.13,<3", "transformers>=5.23,<6"],
    "dev": [
        "beartype>=0.23,<0.24",
        "build>=1.6,<2",
        "gcsfs>=2026.10,<2027",
        "hypothesis>=6.170,<7",
        "libtpu>=0.0.42.1,<0.0.43",
        "mkdocs>=1.6.1,<2",
        # The extra is Node.js in a wheel, so that the type check needs no network.
        "pyright[nodejs]>=1.1.414,<1.2",
        "pytest>=9.2,<10",
        "pytest-xdist>=3.8,<4",
        "ruff>=0.17.5,<0.18",
        # What `pip install --no-build-isolation` builds with.
        "setuptools>=84,<85",
        "uv>=0.13,<0.14",
        "wheel>=0.48,<0.49",
    ],
}

setuptools.setup(
    name="prompt-tuning",
    version=VERSION,
    description="Prompt tuning of a frozen T5 in JAX, on a laptop CPU, a GPU or a TPU pod.",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    python_requires=">=3.11,<3.14",  # those that TensorFlow has wheels for
    install_requires=DEPENDENCIES,
    extras_require=EXTRAS,
    packages=[
        *setuptools.find_packages(include=["prompt_tuning", "prompt_tuning.*"]),
        "prompt_tuning.gin",
        "prompt_tuning.tasks",
    ],
    package_dir={"prompt_tuning.gin": "gin", "prompt_tuning.tasks": "tasks"},
    package_data={
        "prompt_tuning.gin": ["**/*.gin"],
        "prompt_tuning.reporting": ["page.html", "page.css"],
        "prompt_tuning.shipped": ["*.safetensors", "*.model", "everyday/*.tsv"],
    },
    entry_points={"console_scripts": ["prompt-tuning = prompt_tuning.__main__:main"]},
)
