"""A peer as small as can be: one right way to keep states, and some wrong ones."""

import asyncio
import sys
from pathlib import Path

from benchmarks.wire import servers
from benchmarks.wire.carousel import Way
from benchmarks.wire.client import wait_until_it_answers
from benchmarks.wire.network import WIDTH, Network
from benchmarks.wire.servers import Server

HIDDEN = 16
APP = """
import asyncio, os
import numpy as np, onnxruntime as ort
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

model = ort.InferenceSession(os.environ["PEERS_MODEL"])
states, busy = {}, 0

def run(rows, state):
    h, c = state or (np.zeros((1, 1, HIDDEN), np.float32),) * 2
    y, h, c = model.run(None, {"x": np.array([rows], np.float32), "h": h, "c": c})
    return y[0].tolist(), (h, c)

async def right(request):
    body = await request.json()
    y, states[body["session_id"]] = run(body["x"], states.get(body["session_id"]))
    return JSONResponse({"y": y})

async def racing(request):  # others get in between its look at the state and its change of it
    body = await request.json()
    state = states.get(body["session_id"])
    await asyncio.sleep(0.005)
    y, states[body["session_id"]] = run(body["x"], state)
    return JSONResponse({"y": y})

async def forgetting(request):
    y, _ = run((await request.json())["x"], None)
    return JSONResponse({"y": y})

async def crowded(request):  # y depends on who else is there
    global busy
    busy += 1
    await asyncio.sleep(0.002)
    body = await request.json()
    y, states[body["session_id"]] = run(body["x"], states.get(body["session_id"]))
    y[0][0] += 1e-3 * (busy > 1)
    busy -= 1
    return JSONResponse({"y": y})

async def stream(socket):
    await socket.accept()
    state = None
    async for data in socket.iter_json():
        y, state = run(data["x"], state)
        await socket.send_json({"y": y})

app = Starlette(routes=[
    *(Route("/" + f.__name__, f, methods=["POST"]) for f in (right, racing, forgetting, crowded)),
    WebSocketRoute("/ws/{session}", stream),
])
""".replace("HIDDEN", str(HIDDEN))
RIGHT, RACING, FORGETTING, CROWDED = (
    Way("http", path) for path in ("/right", "/racing", "/forgetting", "/crowded")
)


def start_app(folder: Path, network: Network, port: int | None = None) -> Server:
    """On the `port` of another time, if it is given."""
    (folder / "peer_app.py").write_text(APP)
    port = port or servers.free_port()
    uvicorn = [sys.executable, "-m", "uvicorn", "peer_app:app", "--port", str(port)]
    settings = {"PEERS_MODEL": str(network.stock)}
    server = servers.start(uvicorn, folder, settings, folder / "log", port)
    asyncio.run(wait_until_it_answers(server, RIGHT.link, RIGHT.path, WIDTH))
    return server
