"""Specs written to a temporary folder, and what loading them says."""

import os

import pytest

from nqs_sae_service.spec import SpecError, load_spec

MINIMAL = """\
name = "ring"
[lattice]
kind = "chain"
length = 16
[hamiltonian]
kind = "tfim"
h = 1.0
"""


class Folder:
    """A folder that is the current directory: file names in messages are short."""

    minimal = MINIMAL

    def write(self, text, name="spec.toml"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "wb") as stream:
            stream.write(text if isinstance(text, bytes) else text.encode())
        return name

    def load(self, text, sets=()):
        return load_spec(self.write(text), sets)

    def problems(self, text=None, sets=(), path="spec.toml"):
        """The lines that loading prints; it must fail."""
        if text is not None:
            self.write(text, path)
        with pytest.raises(SpecError) as error:
            load_spec(path, sets)
        lines = str(error.value).split("\n")
        assert lines == [str(problem) for problem in error.value.problems]
        return lines


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Folder()
