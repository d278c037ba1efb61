"""A TFDS folder with the few records of `golden/tasks` under the names of TFDS's own data sets."""

import numpy as np
import tensorflow_datasets as tfds

from tests.golden.tasks.records import RECORDS


def write(folder, name, *, splits=("train", "validation")):
    """Writes a data set, such as `super_glue/boolq:1.0.2`, with the same records in every split."""
    path, version = name.split(":")
    base, _, config = path.partition("/")
    known = RECORDS.get(path) or RECORDS[base]
    builder = _builder(base, config, version, known, splits)
    here = tfds.download.DownloadConfig(try_download_gcs=False)
    builder(config=config or None, data_dir=folder).download_and_prepare(download_config=here)


def _builder(base, config, version, known, splits):
    def info(self):
        features = tfds.features.FeaturesDict(_features(known["dtypes"]))
        return self.dataset_info_from_configs(features=features)

    def examples(self):
        yield from enumerate(known["records"])

    members = {
        "__module__": __name__,
        "VERSION": tfds.core.Version(version),
        "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)] if config else [],
        "url_infos": {},  # Nothing is downloaded, so there are no checksums to look for.
        "_info": info,
        "_split_generators": lambda self, _: {split: examples(self) for split in splits},
        "_generate_examples": examples,
    }
    # TFDS has builders of these names; ours only write files, which are read without a builder.
    with tfds.core.registered.skip_registration():
        name = "".join(part.capitalize() for part in base.split("_"))
        return type(name, (tfds.core.GeneratorBasedBuilder,), members)


def _features(dtypes):
    if isinstance(dtypes, dict):
        return {key: _features(value) for key, value in dtypes.items()}
    dtype, *dimensions = dtypes.replace("]", "").split("[")
    feature = (
        tfds.features.Text() if dtype == "string" else tfds.features.Scalar(np.dtype(dtype).type)
    )
    for _ in dimensions:
        feature = tfds.features.Sequence(feature)
    return feature
