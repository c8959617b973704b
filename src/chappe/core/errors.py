"""What can go wrong, by what the caller can do about it.

    ChappeError
    ├── Invalid        422  the request can never succeed as it is: correct the named field
    │   └── TooLarge   413  a limit of core.limits is passed: send less at a time
    ├── Unauthenticated 401 no token, or one that is unknown, expired or revoked
    ├── Forbidden      403  the token's scope does not allow it
    ├── NotFound       404  never existed, or is not yours: the two look the same
    ├── Conflict       409  the object is in a state that forbids it, or the id names something else
    │   └── SessionDead 409 the Session was proven dead: kill what it holds, and end
    ├── Gone           410  deleted, or a cursor of an older incarnation
    ├── Busy           429  a bounded queue is full: wait and repeat (transient)
    └── Unavailable    503  starting, stopping, disk full, network: wait and repeat (transient)

Every error carries a message fit for a person and, where there is one, the field to mend.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ChappeError(Exception):
    """Base of all errors that Chappe raises on purpose."""

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "error"
    transient: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        details: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.field = field
        self.details = details


class Invalid(ChappeError):
    """The request can never succeed as it is."""

    status = 422
    default_code = "invalid"


class TooLarge(Invalid):
    """A limit is passed; send less at a time."""

    status = 413
    default_code = "too_large"


class Unauthenticated(ChappeError):
    """No token, or one that is unknown, expired or revoked."""

    status = 401
    default_code = "unauthenticated"


class Forbidden(ChappeError):
    """The token's scope does not allow this."""

    status = 403
    default_code = "forbidden"


class NotFound(ChappeError):
    """Never existed, or belongs to somebody else."""

    status = 404
    default_code = "not_found"


class Conflict(ChappeError):
    """The object's state forbids it, or its id already names something else."""

    status = 409
    default_code = "conflict"


class SessionDead(Conflict):
    """The Session was proven dead; its pilot kills what it holds and ends."""

    default_code = "session_dead"


class Gone(ChappeError):
    """The object was deleted, or the cursor belongs to an older incarnation of the Hub."""

    status = 410
    default_code = "gone"


class Busy(ChappeError):
    """A bounded queue is full; wait and repeat."""

    status = 429
    default_code = "busy"
    transient = True


class Unavailable(ChappeError):
    """Starting, stopping, out of disk or out of reach; wait and repeat."""

    status = 503
    default_code = "unavailable"
    transient = True


BY_STATUS: dict[int, type[ChappeError]] = {
    413: TooLarge,
    422: Invalid,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    429: Busy,
    503: Unavailable,
}
