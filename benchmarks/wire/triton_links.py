"""Links by tritonclient as it comes from PyPI, its asyncio clients (`Link` has the rules).

One client for all sessions of a link: over HTTP a connection for each request under way, over gRPC
one channel. Most of the time is the client's own: the server's is what is compared.
"""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from tritonclient.utils import InferenceServerException

from benchmarks.wire.link import HOST, Answered, Link, LinkError, Row


class TritonLink(Link):
    """Many sessions, each a sequence of the model that `path` names."""

    shared = True
    package: Any  # triton_http or triton_grpc

    def __init__(self, path: str, names: Sequence[str], answered: Answered) -> None:
        super().__init__(path, names, answered)
        self._client: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, port: int) -> None:
        self._client = self.client(f"{HOST}:{port}")
        try:
            if not await self._client.is_model_ready(self.path):
                raise LinkError(f"model {self.path} is not ready")
        except InferenceServerException as error:
            raise LinkError(str(error)) from None
        self._open()

    @abstractmethod
    def client(self, url: str) -> Any:
        """The package's client."""

    def question(
        self, session: int, x: Row, *, is_first: bool, step: int | None = None
    ) -> dict[str, Any]:
        rows = self.package.InferInput("x", [1, 1, len(x)], "FP32")
        rows.set_data_from_numpy(np.array(x, np.float32)[None, None])
        return {
            "model_name": self.path,
            "inputs": [rows],
            "sequence_id": self.names[session],
            "sequence_start": is_first,
            "parameters": None if step is None else {"step": step},
        }

    def ask(self, session: int, question: dict[str, Any]) -> None:
        self.spawn(self._infer(session, question))

    def spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _infer(self, session: int, question: dict[str, Any]) -> None:
        try:
            reply = await self._client.infer(**question)
        except (InferenceServerException, OSError) as error:
            self.fail(str(error))
        else:
            self.answered(session, reply)

    def read_y(self, reply: Any) -> list[float]:
        row: list[float] = reply.as_numpy("y").reshape(-1).tolist()
        return row

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()


class TritonHttpLink(TritonLink):
    """tritonclient.http: a POST for each step, tensors as bytes."""

    package = triton_http

    def client(self, url: str) -> Any:
        return triton_http.InferenceServerClient(url, conn_limit=len(self.names))


class TritonGrpcLink(TritonLink):
    """tritonclient.grpc: an RPC for each step."""

    package = triton_grpc

    def client(self, url: str) -> Any:
        return triton_grpc.InferenceServerClient(url)


class TritonStreamLink(TritonGrpcLink):
    """tritonclient.grpc: one bidirectional stream, a message for each step."""

    async def connect(self, port: int) -> None:
        await super().connect(port)
        self._questions: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.spawn(self._listen(self._client.stream_infer(self._asked())))

    def question(
        self, session: int, x: Row, *, is_first: bool, step: int | None = None
    ) -> dict[str, Any]:
        return {
            **super().question(session, x, is_first=is_first, step=step),
            "request_id": str(session),
        }

    def ask(self, session: int, question: dict[str, Any]) -> None:
        self._questions.put_nowait(question)

    async def _asked(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self._questions.get()

    async def _listen(self, replies: AsyncIterator[tuple[Any, Any]]) -> None:
        async for reply, error in replies:
            if error is not None:
                self.fail(str(error))
                return
            self.answered(int(reply.get_response().id), reply)
