"""What an error of ours is as a gRPC status: the one table."""

from urllib.parse import quote

from grpc import StatusCode

from service.errors import CarouselError, StepConflictError
from service.protocols.asgi import retry_after

# By the status that the error has over HTTP.
CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    405: StatusCode.UNIMPLEMENTED,
    409: StatusCode.FAILED_PRECONDITION,  # what the session or model is must change first
    410: StatusCode.NOT_FOUND,
    413: StatusCode.INVALID_ARGUMENT,  # not RESOURCE_EXHAUSTED, which clients send again
    415: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    426: StatusCode.UNIMPLEMENTED,  # of HTTP alone
    429: StatusCode.RESOURCE_EXHAUSTED,
    500: StatusCode.INTERNAL,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
# Of these the code that says more than their status does.
CODES_OF: dict[type[CarouselError], StatusCode] = {
    StepConflictError: StatusCode.ABORTED,  # start again, from the step that it says
}
ERROR_CODE = "carousel-error"  # in the trailing metadata: our own code, as HTTP's bodies have it
# In the trailing metadata, escaped; clients take 8 KiB of metadata in all.
MAX_DETAILS_BYTES = 4096

Metadata = tuple[tuple[str, str], ...]


def code_of(error: CarouselError) -> StatusCode:
    return CODES_OF.get(type(error)) or CODES.get(error.status, StatusCode.UNKNOWN)


def status_of(error: CarouselError) -> tuple[StatusCode, str, Metadata]:
    """Code, details and trailing metadata, as `abort` takes them."""
    return code_of(error), _short(error.message), tuple(hints_of(error).items())


def hints_of(error: CarouselError) -> dict[str, str]:
    """What a program reads in an error, beside its gRPC code: name -> value."""
    hints = {ERROR_CODE: error.code}
    if (retry_after_s := retry_after(error)) is not None:
        hints["retry-after"] = str(retry_after_s)
    return hints


def _short(message: str) -> str:
    """The message, or as much of it as fits: it may quote what the client sent."""
    if len(message) * 3 <= MAX_DETAILS_BYTES and message.isascii():
        return message
    while len(quote(message)) > MAX_DETAILS_BYTES:
        message = message[: len(message) // 2].rstrip() + " ..."
    return message
