"""Folders of packages as pip leaves them, with nothing in them that would run."""

import base64
import hashlib
import pathlib


def digest(content):
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def install(folder, name, version, *, requires=(), extras=(), files=(), python=">=3.11"):
    """Writes a distribution's files and metadata, and returns the folder."""
    folder = pathlib.Path(folder)
    lines = [f"Name: {name}", f"Version: {version}", f"Requires-Python: {python}"]
    lines += [f"Requires-Dist: {one}" for one in requires]
    lines += [f"Provides-Extra: {one}" for one in extras]
    record = []
    for file in files:
        content = f"# {name} {version} {file}\n".encode()
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        record.append(f"{file},sha256={digest(content)},{len(content)}")
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
    (about / "RECORD").write_text("\n".join([*record, f"{about.name}/METADATA,,", ""]))
    return folder


def by_name(findings):
    """Returns findings by their names; a name that is there twice is a mistake of the test."""
    found = list(findings)
    assert len({one.name for one in found}) == len(found), found
    return {one.name: one for one in found}
