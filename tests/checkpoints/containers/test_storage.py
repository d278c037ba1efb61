import re

import pytest
from etils import epath

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.errors import CheckpointError

PLACES = {
    "/models/t5/checkpoint_1": {"driver": "file", "path": "/models/t5/checkpoint_1"},
    "gs://models/t5/checkpoint_1": {
        "driver": "gcs",
        "bucket": "models",
        "path": "t5/checkpoint_1",
    },
    "s3://models/t5": {"driver": "s3", "bucket": "models", "path": "t5"},
    "gs://models": {"driver": "gcs", "bucket": "models", "path": ""},
}


@pytest.mark.parametrize(("path", "place"), PLACES.items(), ids=PLACES.keys())
def test_places_are_those_of_tensorstore(path, place):
    assert storage.kvstore(epath.Path(path)) == place


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.kvstore(epath.Path("here"))["path"] == str(tmp_path / "here")


def test_a_scheme_without_a_store_is_refused():
    message = (
        "az://models/t5 has the scheme 'az', expected a local path or one of gs://, s3://. Copy "
        "the checkpoint to one of these."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        storage.kvstore(epath.Path("az://models/t5"))


def files(folder):
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*"))


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = epath.Path(tmp_path / "deep" / "model")
    with storage.new_folder(path) as partial:
        (partial / "file").write_text("content")
        assert not path.exists()
        assert partial.parent == path.parent
        assert re.fullmatch(r"model\.tmp-[0-9a-f]{32}", partial.name)
    assert files(tmp_path) == ["deep", "deep/model", "deep/model/file"]


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = epath.Path(tmp_path / "deep" / "model")
    with storage.new_file(path) as partial:
        partial.write_text("content")
        assert not path.exists()
    assert files(tmp_path) == ["deep", "deep/model"]


@pytest.mark.parametrize("new", [storage.new_folder, storage.new_file])
def test_what_fails_leaves_nothing(tmp_path, new):
    class Interrupt(BaseException):
        pass

    with pytest.raises(Interrupt), new(epath.Path(tmp_path / "model")) as partial:
        (partial / "file" if new is storage.new_folder else partial).write_text("content")
        raise Interrupt
    assert files(tmp_path) == []


@pytest.mark.parametrize("new", [storage.new_folder, storage.new_file])
def test_what_is_there_already_is_kept(tmp_path, new):
    path = epath.Path(tmp_path / "model")
    path.write_text("precious")
    message = f"{path} already exists; choose another path or remove it."
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"), new(path):
        pass
    assert files(tmp_path) == ["model"]
    assert path.read_text() == "precious"


@pytest.mark.parametrize("new", [storage.new_folder, storage.new_file])
def test_what_comes_there_in_between_is_kept(tmp_path, new):
    path = epath.Path(tmp_path / "model")
    with pytest.raises(CheckpointError, match="already exists"), new(path) as partial:
        if new is storage.new_file:
            partial.write_text("content")
        path.write_text("precious")
    assert files(tmp_path) == ["model"]
    assert path.read_text() == "precious"


def test_a_small_file_is_replaced_whole(tmp_path):
    path = epath.Path(tmp_path / "deep" / "file")
    storage.write_whole(path, b"first")
    storage.write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert files(tmp_path) == ["deep", "deep/file"]
