"""What functions return, as Python values again.

Only here does Chappe unpickle, and only what a Site sealed for the very Job that was asked about, with the
key that the user knows it by (see link.values and sdk.keyring).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from chappe.link import values
from chappe.link.results import VALUE
from chappe.link.values import Opened, RemoteException, SiteFileRef, ValueProblem
from chappe.sdk.errors import ChappeError, Invalid
from chappe.sdk.keyring import Keyring
from chappe.sdk.results import ResultFile


class RemoteError(ChappeError):
    """A function raised what cannot be raised here: its exception could not be pickled, or not loaded.

    `type` is the name of the exception's class, `traceback` the text from the Site.
    """

    default_code = "remote_error"

    def __init__(self, said: RemoteException, why: str = "") -> None:
        super().__init__(f"{said.type}: {said.message}" + (f" ({why})" if why else ""))
        self.type = said.type
        self.traceback = said.traceback


class RemoteTraceback(Exception):
    """The traceback from the Site: the `__cause__` of an exception that a function raised."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class SiteFile(msgspec.Struct, frozen=True):
    """A result too large to travel: a file at the Site that made it, relative to its data directory.

    Give it to another function at the same Site, which reads it with `load`.
    """

    site: str
    path: str
    size_bytes: int
    sha256: str
    media: str

    def load(self) -> Any:
        """The value, read at its own Site, in a function or another Job. Raises Invalid elsewhere, or when
        the file was changed."""
        data = os.environ.get("CHAPPE_DATA")
        path = Path(data or "/nonexistent") / self.path
        if data is None or not path.is_file():
            raise Invalid(
                f"{self.path} is at site {self.site}: load it in a function that runs there",
                field="path",
            )
        body = path.read_bytes()
        if hashlib.sha256(body).hexdigest() != self.sha256:
            raise Invalid(f"{path} was changed since it was made", field="sha256")
        return _decode(self.media, body, self.site)


def load(found: ResultFile, job: str, keyring: Keyring) -> Any:
    """The value that the function of `job` returned; raises what it raised, with the traceback from the Site.

    Raises ValueProblem or SiteKeyChanged, and loads nothing, when the Site did not say so.
    """
    opened = _open(found, job, keyring)
    if opened.statement.media == values.EXCEPTION:
        raise _exception(opened.body)
    return _decode(opened.statement.media, opened.body, opened.statement.site)


def unsealed(found: ResultFile, job: str, keyring: Keyring) -> ResultFile:
    """What is in the envelope, as it is. Raises as `load` does, and unpickles nothing."""
    opened = _open(found, job, keyring)
    return ResultFile(opened.statement.media, opened.body)


def _open(found: ResultFile, job: str, keyring: Keyring) -> Opened:
    if found.media != VALUE:
        raise ValueProblem(
            f"the hub gave {found.media}, which no site has signed, for what a function returned"
        )
    return values.unseal(found.body, job, keyring.key_of)


def _decode(media: str, body: bytes, site: str) -> Any:
    try:
        if media == values.MSGPACK:
            return msgspec.msgpack.decode(body)
        if media == values.REFERENCE:
            ref = msgspec.msgpack.decode(body, type=SiteFileRef)
            return SiteFile(site, ref.path, ref.size_bytes, ref.sha256, ref.media)
        if media == values.NPY and find_spec("numpy") is not None:
            import numpy as np  # here: most results need no NumPy, and it takes 0.1 s to import

            return np.load(io.BytesIO(body), allow_pickle=False)
        if media == values.ARROW and find_spec("pyarrow") is not None:
            return importlib.import_module("pyarrow").ipc.open_file(body).read_all()
        if media == values.PICKLE:
            return pickle.loads(body)  # noqa: S301 - its site signed it
    except Exception as e:  # whatever a class's own code raises when it is loaded
        raise Invalid(
            f"the result cannot be loaded here ({type(e).__name__}: {e}): is a module missing, or of "
            "another version?",
            field="result",
        ) from e
    return body


def _exception(body: bytes) -> BaseException:
    said = msgspec.msgpack.decode(body, type=RemoteException)
    if said.pickle is None:
        return _explained(RemoteError(said), said)
    try:
        error = pickle.loads(said.pickle)  # noqa: S301 - its site signed it
    except Exception as e:  # noqa: BLE001 - whatever a class's own code raises when it is loaded
        return _explained(RemoteError(said, f"its class cannot be loaded here: {e}"), said)
    if not isinstance(error, BaseException):
        return _explained(RemoteError(said), said)
    return _explained(error, said)


def _explained(error: BaseException, said: RemoteException) -> BaseException:
    error.__cause__ = RemoteTraceback(said.traceback)
    return error
