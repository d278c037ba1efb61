"""SQuAD and XSum with a few records, as TFDS lays them out in a folder."""

import numpy as np
import tensorflow_datasets as tfds

SQUAD = {
    "train": [("It rained.", "What did it?", ["rain"])],
    "validation": [
        ("Ada wrote it.", "Who?", ["Ada", "Ada L."]),
        ("Bo rang, twice.", "Who rang?", ["Bo"]),
    ],
}
XSUM = {
    "train": [("The boats came home. All of them.", "Boats are home.")],
    "validation": [("Rain fell\non the roof.", "It rained."), ("Nothing fell.", "It was dry.")],
    "test": [("Snow fell.", "It snowed.")],
}
# TFDS has builders of these names; ours only write files, which are then read without a builder.
with tfds.core.registered.skip_registration():

    class Squad(tfds.core.GeneratorBasedBuilder):
        """SQuAD of three questions."""

        VERSION = tfds.core.Version("3.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="v1.1"),)
        url_infos = {}  # noqa: RUF012 - nothing is downloaded, so there are no checksums.

        def _info(self):
            names = ("id", "title", "context", "question")
            answers = {"text": tfds.features.Text(), "answer_start": np.int32}
            features = {name: tfds.features.Text() for name in names}
            features["answers"] = tfds.features.Sequence(answers)
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in SQUAD.items()}

        def _generate_examples(self, rows):
            for number, (context, question, answers) in enumerate(rows):
                yield (
                    number,
                    {
                        "id": f"q{number}",
                        "title": "",
                        "context": context,
                        "question": question,
                        "answers": {"text": answers, "answer_start": [0] * len(answers)},
                    },
                )

    class Xsum(tfds.core.GeneratorBasedBuilder):
        """XSum of four articles."""

        VERSION = tfds.core.Version("1.1.0")
        url_infos = {}  # noqa: RUF012

        def _info(self):
            features = {name: tfds.features.Text() for name in ("document", "summary")}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in XSUM.items()}

        def _generate_examples(self, rows):
            for number, (document, summary) in enumerate(rows):
                yield number, {"document": document, "summary": summary}


def build(folder):
    """Builds both in a folder, TFDS's `data_dir`."""
    here = tfds.download.DownloadConfig(try_download_gcs=False)
    Squad(config="v1.1", data_dir=folder).download_and_prepare(download_config=here)
    Xsum(data_dir=folder).download_and_prepare(download_config=here)
