import functools
import importlib
import itertools
import operator
import os
import pathlib
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data import fingerprints, module_versions
from prompt_tuning.data.fingerprints import IndescribableError, of_files, of_function
from prompt_tuning.errors import DataError
from prompt_tuning.vocabulary import SentencePieceVocabulary

BEFORE = '''
    import dataclasses
    import functools
    import logging

    import numpy as np

    from . import words
    from .words import shorten

    LIMIT = 10
    WORDS = {"a": 1, "b": 2}
    log = logging.getLogger(__name__)


    def clean(text):
        return text.strip()


    def even(n):
        return n == 0 or odd(n - 1)


    def odd(n):
        return n != 0 and even(n - 1)


    @dataclasses.dataclass
    class Step:
        start: int = 0

        @functools.cached_property
        def first(self):
            return self.start + 1

        def __call__(self, text):
            return self.first, text


    class Plain:
        def act(self, text):
            return text.upper()


    @functools.cache
    def remembered(text):
        return text.title()


    def make(suffix):
        def inner(text):
            return text + suffix

        return inner


    STEP = Step(start=3)
    PLAIN = Plain()
    ADD = make("!")
    SHORT = functools.partial(shorten, length=3)
    TABLE = np.array([1, 2, 3])


    def late(text):
        from .words import tail as end

        return end(text)


    def run(text, flag=True, *, width=5):
        """Does it all."""
        log.info("running")
        pieces = [clean(piece)[:LIMIT] for piece in text.split()]
        pieces = [WORDS.get(piece, piece) for piece in pieces if even(len(piece))]
        parts = words.longest(pieces), STEP(text), PLAIN.act(text), ADD(text), SHORT(text)
        return parts, remembered(text), late(text), TABLE[0], (lambda x: x + 1)(width), flag
'''
WORDS = """
    def longest(pieces):
        return max(pieces, key=size)


    def size(piece):
        return len(piece)


    def shorten(text, length):
        return text[:length]


    def tail(text):
        return text[-1]


    def unused(text):
        return text
"""
CHANGES = [
    ("a constant of the function", "x + 1", "x + 2"),
    ("a default", "flag=True", "flag=False"),
    ("a keyword's default", "width=5", "width=6"),
    ("the name of an argument", "flag", "other"),
    ("a number of the module", "LIMIT = 10", "LIMIT = 11"),
    ("a dictionary of the module", '"b": 2', '"b": 3'),
    ("the order of a dictionary", '"a": 1, "b": 2', '"b": 2, "a": 1'),
    ("an array of the module", "[1, 2, 3]", "[1, 2, 4]"),
    ("the dtype of an array", "[1, 2, 3]", "[1, 2, 3.0]"),
    ("a function that it calls", "text.strip()", "text.lstrip()"),
    ("a function in a circle", "return n != 0 and", "return n != 1 and"),
    ("a field of an object", "start=3", "start=4"),
    ("a method of an object", "self.first, text", "self.start, text"),
    ("a property of an object", "self.start + 1", "self.start + 2"),
    ("a method of a plain object", "text.upper()", "text.lower()"),
    ("a remembering function", "text.title()", "text.lower()"),
    ("what a closure holds", 'make("!")', 'make("?")'),
    ("what a partial holds", "length=3", "length=4"),
    ("a function of another module", "key=size", "key=str"),
    ("a function that one of another module calls", "len(piece)", "-len(piece)"),
    ("a function behind a partial", "text[:length]", "text[1:length]"),
    ("a function that is imported late", "text[-1]", "text[-2]"),
]
names = (f"steps_{number}" for number in itertools.count())


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Imports `run` of a new package with the modules `steps` and `words`."""
    monkeypatch.syspath_prepend(tmp_path)
    # The same name again and again: as if the user had edited the files between two runs.
    name = next(names)

    def load(before="", after=""):
        for module in [one for one in sys.modules if one.partition(".")[0] == name]:
            del sys.modules[module]
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        for module, source in (("steps", BEFORE), ("words", WORDS)):
            text = textwrap.dedent(source).replace(before, after) if before else source
            (folder / f"{module}.py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        module_versions.is_versioned.cache_clear()
        sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
        try:
            return importlib.import_module(f"{name}.steps").run
        finally:
            sys.dont_write_bytecode = kept

    yield load
    for module in [one for one in sys.modules if one.partition(".")[0] == name]:
        del sys.modules[module]


@pytest.mark.parametrize(("what", "before", "after"), CHANGES, ids=[one[0] for one in CHANGES])
def test_a_change_of_what_a_function_does_is_seen(load, what, before, after):
    assert before in textwrap.dedent(BEFORE + WORDS)
    assert of_function(load()) != of_function(load(before, after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def unused(text):\n    return text", "def unused(text):\n    return 1"),
        ("\n\n\ndef size", "\n\n\n# A comment.\n\n\ndef size"),
        ("for piece in text.split()]", "for piece in text.split()]  # words"),
        ('log.info("running")', 'log.info("running" )'),
    ],
)
def test_a_change_of_what_does_not_matter_is_not(load, before, after):
    assert of_function(load()) == of_function(load(before, after))


def test_a_function_that_was_used_is_still_the_same(load):
    run = load()
    before = of_function(run)
    for _ in range(200):  # until the interpreter has specialised its bytecode
        run("ab cd")
    assert of_function(run) == before


def test_the_hash_is_the_same_in_every_process(tmp_path):
    code = (
        "from prompt_tuning.data.fingerprints import of_function\n"
        "WORDS = {'one', 'two', 'three', 'four'}\n"
        "def f(x):\n"
        "    return x in WORDS or x in {'a', 'b', 'c', 'd'}\n"
        "print(of_function(f))\n"
    )
    (tmp_path / "steps.py").write_text(code)
    printed = {
        subprocess.run(
            [sys.executable, tmp_path / "steps.py"],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(printed) == 1


@pytest.mark.parametrize(
    "pair",
    [
        (functools.partial(str.replace, old="a"), functools.partial(str.replace, old="b")),
        (operator.itemgetter("inputs"), operator.itemgetter("targets")),
        (str.upper, str.lower),
        ("a".join, "b".join),
        (len, max),
        (np.add, np.subtract),
        (seqio.preprocessors.tokenize, seqio.preprocessors.append_eos),
        (functools.partial(len, 1), functools.partial(len, 1.0)),
        (functools.partial(len, True), functools.partial(len, 1)),
        (functools.partial(len, (1, 2)), functools.partial(len, [1, 2])),
        (functools.partial(len, ("ab", "c")), functools.partial(len, ("a", "bc"))),
        (functools.partial(len, tf.int32), functools.partial(len, tf.int64)),
        (functools.partial(len, tf.constant([1])), functools.partial(len, tf.constant([2]))),
        (tf.function(lambda x: x + 1), tf.function(lambda x: x + 2)),
        (seqio.map_over_dataset(lambda x: x), seqio.map_over_dataset(lambda x: [x])),
    ],
)
def test_different_functions_have_different_hashes(pair):
    assert len({of_function(one) for one in pair}) == 2
    assert of_function(pair[0]) == of_function(pair[0])


def test_of_a_vocabulary_the_contents_count(vocabulary, tmp_path):
    copy = tmp_path / "copy.model"
    copy.write_bytes(pathlib.Path(vocabulary.path).read_bytes())
    again, other = SentencePieceVocabulary(str(copy)), SentencePieceVocabulary(str(copy), 0)
    known = of_function(functools.partial(len, vocabulary))
    assert of_function(functools.partial(len, again)) == known
    assert of_function(functools.partial(len, other)) != known


def test_libraries_count_by_their_version(monkeypatch):
    before = of_function(seqio.preprocessors.tokenize)
    monkeypatch.setattr(seqio, "__version__", "99")
    module_versions.name_with_version.cache_clear()
    after = of_function(seqio.preprocessors.tokenize)
    module_versions.name_with_version.cache_clear()
    assert before != after


@pytest.mark.parametrize("value", [threading.Lock(), (x for x in ()), sys.stdout])
def test_what_cannot_be_described_is_named(value):
    with pytest.raises(IndescribableError, match=type(value).__qualname__):
        of_function(functools.partial(len, value))


def test_the_caller_may_know_more():
    lock = threading.Lock()
    known = {id(lock): "a lock"}
    assert of_function(functools.partial(len, lock), lambda value: known.get(id(value)))


def test_of_files_the_contents_count(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"text")
    two.write_bytes(b"text")
    os.utime(two, (1, 1))
    assert of_files([str(one)]) == of_files([str(two)])
    assert of_files([str(one)]) != of_files([str(one), str(two)])
    two.write_bytes(b"txet")
    assert of_files([str(one)]) != of_files([str(two)])
    assert of_files([str(one), str(two)]) != of_files([str(two), str(one)])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"Cannot read '.*missing'"):
        of_files([str(tmp_path / "missing")])


def test_a_package_from_a_folder_is_read_and_one_from_an_index_is_not(monkeypatch):
    monkeypatch.setattr(module_versions, "_is_from_elsewhere", lambda package: True)
    module_versions.is_versioned.cache_clear()
    assert not module_versions.is_versioned("seqio.utils", "seqio")
    assert module_versions.is_versioned("seqio.utils", "other")
    monkeypatch.undo()
    module_versions.is_versioned.cache_clear()
    assert module_versions.is_versioned("seqio.utils", "seqio")
    assert not module_versions.is_versioned(fingerprints.__name__, "prompt_tuning")
    assert module_versions.is_versioned("json.decoder", "json")
