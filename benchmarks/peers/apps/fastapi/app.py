"""FastAPI and a dict of states, as FastAPI's documentation has it (Lifespan Events, WebSockets)."""

import os
from contextlib import asynccontextmanager

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

HIDDEN = int(os.environ["PEERS_HIDDEN"])

ml_models = {}
states = {}


@asynccontextmanager
async def lifespan(app: FastAPI):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the fastest for one step: 17 us of a core, by default 56
    ml_models["lstm"] = ort.InferenceSession(os.environ["PEERS_MODEL"], options)
    yield
    ml_models.clear()


app = FastAPI(lifespan=lifespan)


class Chunk(BaseModel):
    session_id: str
    x: list[list[float]]


class Prediction(BaseModel):
    session_id: str
    y: list[list[float]]


def step(session_id: str, rows: list[list[float]]) -> list[list[float]]:
    h, c = states.get(session_id) or (np.zeros((1, 1, HIDDEN), np.float32),) * 2
    x = np.array([rows], dtype=np.float32)
    y, h, c = ml_models["lstm"].run(None, {"x": x, "h": h, "c": c})
    states[session_id] = (h, c)
    return y[0].tolist()


@app.post("/predict")
async def predict(chunk: Chunk) -> Prediction:
    return Prediction(session_id=chunk.session_id, y=step(chunk.session_id, chunk.x))


@app.post("/predict-def")
def predict_in_a_thread(chunk: Chunk) -> Prediction:
    return Prediction(session_id=chunk.session_id, y=step(chunk.session_id, chunk.x))


@app.websocket("/ws/{session_id}")
async def stream(websocket: WebSocket, session_id: str):
    await websocket.accept()
    try:
        while True:
            data = await websocket.receive_json()
            await websocket.send_json({"y": step(session_id, data["x"])})
    except WebSocketDisconnect:
        pass
