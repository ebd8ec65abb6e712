"""ModelStreamInfer: requests in, replies out, for any number of sequences in one stream.

Rules
- A reply leaves as soon as its request is done; requests of one sequence are answered in their
  order, sequences do not wait for each other. Each message gets one message.
- A request that is refused gets a message with `error_message`, its id, and `carousel-error` (our
  code) among the parameters; the stream goes on.
- Every reply is its request's only one, and says so: `triton_final_response` is true, whether the
  request asked for that (`triton_enable_empty_final_response`) or not.
- When the server drains, what was read is answered, then the stream ends with UNAVAILABLE.
- Who waits for whom is `Exchange`'s affair, as under every protocol that streams.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from service.engine import Engine
from service.errors import CarouselError, DrainingError, InternalError
from service.job import Answer, Job, Request
from service.protocols.asgi import ClientGone
from service.protocols.exchange import Exchange
from service.protocols.v2.inference import (
    submit,
    to_requests,
    to_response,
)
from service.protocols.v2.messages import InferRequest
from service.protocols.v2.proto import inference_pb2 as pb
from service.protocols.v2.rpc_call import PROTOCOL, Call, Unreadable
from service.protocols.v2.rpc_codec import read_request, wants_raw, write_parameter, write_response
from service.protocols.v2.rpc_status import hints_of

FINAL = "triton_final_response"

Reply = pb.ModelStreamInferResponse
Messages = AsyncIterator[pb.ModelInferRequest | Unreadable]


@dataclass(slots=True)
class Tag:
    """A request under way, by which its reply or error is written."""

    message: pb.ModelInferRequest
    asked: InferRequest | None = None  # what was read in it; None: it could not be


async def serve_stream(engine: Engine, call: Call, messages: Messages, max_batch: int) -> None:
    """Answer one stream to its end.

    Args:
        max_batch: rows of one request, at most.
    Raises:
        DrainingError: the server shuts down; what was accepted was answered.
        UnauthorizedError, ForbiddenError: nothing was read.
        ClientGone: the client left before it had all replies.
    """
    tenant = call.caller().tenant
    engine.refuse_if_draining()
    exchange: Exchange[Tag, Reply] = Exchange(
        engine, tenant, _write, _write_error, protocol=PROTOCOL
    )

    async def read() -> None:
        async for message in messages:
            if isinstance(message, Unreadable):
                exchange.refuse(Tag(pb.ModelInferRequest()), message.error())
            else:
                await take(Tag(message))

    async def take(tag: Tag) -> None:
        async def start() -> list[Job]:
            caller = call.caller()
            tag.asked = read_request(tag.message)
            return await submit(engine, to_requests(tag.asked, caller, call.origin, max_batch))

        await exchange.submit_together(tag, start, lambda answers: _write(tag, *answers))

    async def send(replies: list[Reply]) -> None:
        try:
            for reply in replies:
                await call.context.write(reply)
        except grpc.aio.BaseError:
            raise ClientGone from None

    if not await exchange.run(read(), send):
        raise DrainingError(
            "the server is shutting down; what it did not answer was not run, send that to "
            "another, or try again"
        )


def _write(tag: Tag, *answers: Answer) -> Reply:
    if tag.asked is None:
        raise InternalError("the server answered what it could not read")
    response = to_response(tag.asked, answers)
    response.parameters[FINAL] = True
    return Reply(infer_response=write_response(response, wants_raw(tag.message)))


def _write_error(tag: Tag, error: CarouselError, request: Request | None = None) -> Reply:
    reply = Reply(error_message=error.message)
    reply.infer_response.id = tag.message.id
    reply.infer_response.model_name = tag.message.model_name
    parameters = reply.infer_response.parameters
    for name, value in hints_of(error).items():
        write_parameter(parameters[name], value)
    write_parameter(parameters[FINAL], True)
    if "sequence_id" in tag.message.parameters:
        told = tag.message.parameters["sequence_id"]
        parameters["sequence_id"].CopyFrom(told)
    return reply
