import pytest

from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import parse_run
from prompt_tuning.decoding import BeamSearch, Greedy, Sample
from prompt_tuning.evaluation import Decode
from prompt_tuning.vocabulary import ByteVocabulary

# A models/ file alone decodes as the original evaluates.
FILES = {
    None: BeamSearch(beams=1, alpha=0.6),
    "decoding/beam_search.gin": BeamSearch(beams=4, alpha=0.6),
    "decoding/nucleus_sampling.gin": Sample(temperature=1.0, top_p=0.9),
    "decoding/greedy.gin": Greedy(),
}
READER = """
from __gin__ import dynamic_registration
from prompt_tuning.evaluation import answering
answering.Decode.strategy = %DECODING
VOCABULARY_FILE = 'nobody reads it'
"""


@pytest.fixture(autouse=True)
def nothing_configured():
    yield
    config.clear()


@pytest.mark.parametrize("name", FILES)
def test_every_file_makes_the_strategy_it_is_named_after(tmp_path, name):
    (tmp_path / "reader.gin").write_text(READER)
    files = ["models/ours_tiny.gin", *([name] if name else []), f"{tmp_path}/reader.gin"]
    config.parse(parse_run("prompt-tuning", "", [f"--gin_file={file}" for file in files]))
    assert config.call(Decode, vocabulary=ByteVocabulary()).strategy == FILES[name]


def test_there_are_no_other_files():
    found = {f"decoding/{path.name}" for path in (config.gin_root() / "decoding").glob("*.gin")}
    assert found == set(FILES) - {None}
