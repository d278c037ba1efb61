"""Small data sets under the names and with the features of TFDS's own, built without a network."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

SST2 = {
    "train": [("a slow film", 0), ("a moving film", 1), ("what a story", 1), ("dull", 0)],
    "validation": [("the boats came home", 1), ("a copy", 0)],
    "test": [("nobody knows", -1)],
}
MULTIRC = {
    "train": [("<b>Bo rang.</b><br>", "Who rang?", "Bo", 1, (0, 0, 0))],
    "validation": [
        ("<b>Bo rang.</b><br>", "Who rang?", "Bo", 1, (1, 0, 0)),
        ("<b>Bo rang.</b><br>", "Who rang?", "Al", 0, (1, 0, 1)),
        ("<b>Bo rang.</b><br>", "Who slept?", "Al", 0, (1, 1, 2)),
    ],
}
# TFDS has builders of these names; ours only write files, which are then read without a builder.
with tfds.core.registered.skip_registration():

    class Glue(tfds.core.GeneratorBasedBuilder):
        """SST-2 of a few sentences."""

        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="sst2")]
        url_infos: ClassVar = {}  # Nothing is downloaded, so there are no checksums to look for.

        def _info(self):
            label = tfds.features.ClassLabel(names=["negative", "positive"])
            features = {"sentence": tfds.features.Text(), "label": label, "idx": np.int32}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in SST2.items()}

        def _generate_examples(self, rows):
            for number, (sentence, label) in enumerate(rows):
                yield number, {"sentence": sentence, "label": label, "idx": number}

    class SuperGlue(tfds.core.GeneratorBasedBuilder):
        """MultiRC of one paragraph."""

        VERSION = tfds.core.Version("1.0.2")
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="multirc")]
        url_infos: ClassVar = {}

        def _info(self):
            indices = dict.fromkeys(("paragraph", "question", "answer"), np.int32)
            texts = {name: tfds.features.Text() for name in indices}
            label = tfds.features.ClassLabel(names=["False", "True"])
            features = {**texts, "label": label, "idx": tfds.features.FeaturesDict(indices)}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in MULTIRC.items()}

        def _generate_examples(self, rows):
            for number, (paragraph, question, answer, label, indices) in enumerate(rows):
                names = ("paragraph", "question", "answer")
                texts = dict(zip(names, (paragraph, question, answer), strict=True))
                idx = dict(zip(names, indices, strict=True))
                yield number, {**texts, "label": label, "idx": idx}


def build(folder):
    """Builds all of them in a folder, TFDS's `data_dir`."""
    here = tfds.download.DownloadConfig(try_download_gcs=False)
    for builder in (Glue, SuperGlue):
        for config in builder.BUILDER_CONFIGS:
            builder(config=config.name, data_dir=folder).download_and_prepare(download_config=here)
