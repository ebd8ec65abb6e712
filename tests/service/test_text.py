"""Text in and out, labels and alarms, through the native app in process."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.artifact import Artifact
from service.catalog import Catalog
from service.engine import Engine
from service.errors import ArtifactError
from service.model import Model
from service.pipeline import Pipeline
from service.session import SessionKey
from tests.service.build_artifact import Array, Spec, build_artifact, oracle, reseal
from tests.service.test_engine import run
from tests.service.test_native import with_app

LETTERS = "abcdefgh "
SAMPLE = {"method": "sample", "temperature": 0.8, "top_k": 6, "seed": 1}


def pipeline(**parts: Any) -> Pipeline:
    return Pipeline.model_validate(parts)


WRITER = Spec(
    "writer", 4, len(LETTERS), ids=len(LETTERS), seed=5, scaling=pipeline(vocabulary=[*LETTERS])
)
DREAMER = Spec(
    "dreamer",
    4,
    len(LETTERS),
    ids=len(LETTERS),
    seed=5,
    scaling=pipeline(vocabulary=[*LETTERS], unknown=" ", choose=SAMPLE),
)
ONE_HOT = Spec(
    "one-hot", len(LETTERS), len(LETTERS), seed=6, scaling=pipeline(vocabulary=[*LETTERS])
)
WORDS = ("to", "be", "or", "not", " ")
SPEAKER = Spec("speaker", 3, 5, ids=5, seed=7, scaling=pipeline(vocabulary=WORDS))
JUDGE = Spec("judge", 2, 3, seed=8, scaling=pipeline(classes=["calm", "loud", "off"]))
GUARD = Spec("guard", 2, 1, seed=9, scaling=pipeline(alarm={"score": "y", "threshold": 0.75}))
SPECS = {spec.name: spec for spec in (WRITER, DREAMER, ONE_HOT, SPEAKER, JUDGE, GUARD)}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: build_artifact(root, spec) for name, spec in SPECS.items()}


@pytest.fixture(scope="module")
def catalog(paths: dict[str, Path]) -> Catalog:
    return Catalog([Model.load(path) for path in paths.values()])


Post = Callable[..., Awaitable[Any]]


def talk(catalog: Catalog, use: Callable[[Post, Engine], Awaitable[None]]) -> None:
    """Run `use` with a `post(model, session, x, **more)` that returns the reply's JSON."""

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        async def post(model: str, session_id: str, x: object, **more: object) -> Any:
            body = {"session_id": session_id, "x": x, "model": model, **more}
            return (await client.post("/predict", json=body)).json()

        await use(post, engine)

    run(with_app(catalog, scenario))


def greedy(spec: Spec, x: Array) -> str:
    tokens = spec.scaling.vocabulary or ()
    return "".join(tokens[i] for i in oracle(spec, x).argmax(axis=1))


def test_text_in_text_out(catalog: Catalog) -> None:
    """One character a step, after its logits, which numpy computes as well."""
    text = "a bad cab he fed"
    ids = np.array([LETTERS.index(c) for c in text])

    async def use(post: Post, engine: Engine) -> None:
        reply = await post("writer", "s", text)
        assert list(reply) == ["session_id", "model", "version", "step", "created", "y", "text"]
        assert reply["step"] == len(reply["y"]) == len(text)
        assert np.allclose(reply["y"], oracle(WRITER, ids), atol=1e-5)
        assert reply["text"] == greedy(WRITER, ids)
        assert len(set(reply["text"])) > 2  # or the comparison says little

    talk(catalog, use)


def test_text_its_tokens_and_its_ids_are_one_request(catalog: Catalog) -> None:
    """Whichever is sent again gets the same reply."""

    async def use(post: Post, engine: Engine) -> None:
        first = await post("writer", "s", "bed", step=0)
        assert await post("writer", "s", ["b", "e", "d"], step=0) == first
        assert await post("writer", "s", [1, 4, 3], step=0) == first
        assert (await post("writer", "s", "bad", step=0))["error"]["code"] == "step_conflict"

    talk(catalog, use)


def test_one_hot_rows_are_made_of_text(catalog: Catalog) -> None:
    """The same as the rows themselves; ids are no rows."""
    text = "fed cab"
    ids = [LETTERS.index(c) for c in text]
    rows = np.eye(len(LETTERS))[ids]

    async def use(post: Post, engine: Engine) -> None:
        reply = await post("one-hot", "s", text, step=0)
        assert reply["text"] == greedy(ONE_HOT, rows)
        assert await post("one-hot", "s", rows.tolist(), step=0) == reply
        assert (await post("one-hot", "t", ids))["error"]["code"] == "bad_shape"

    talk(catalog, use)


def test_longer_tokens_come_back_as_a_list(catalog: Catalog) -> None:
    """The client knows how to join them."""

    async def use(post: Post, engine: Engine) -> None:
        reply = await post("speaker", "s", "to be or not to be", want=["tokens"])
        assert reply["step"] == len(reply["tokens"]) == 11
        assert set(reply["tokens"]) <= set(WORDS)
        listed = await post("speaker", "t", ["to", " ", "be"], want=["tokens"])
        assert listed["tokens"] == reply["tokens"][:3]

    talk(catalog, use)


def test_an_unknown_token_leaves_the_session_unmoved(catalog: Catalog) -> None:
    """Nor does a wrong wish move it; unless a token stands for what is unknown."""

    async def use(post: Post, engine: Engine) -> None:
        await post("writer", "s", "abc")
        before = await engine.look_up(SessionKey("", "s"))
        refused = (await post("writer", "s", "abz"))["error"]
        assert (refused["code"], refused["token"], refused["position"]) == ("unknown_token", "z", 2)
        for wish in ({"want": ["labels"]}, {"choose": {"method": "sample", "top_k": 0}}):
            assert (await post("writer", "s", "ab", **wish))["error"]["code"] == "invalid_request"
        assert await engine.look_up(SessionKey("", "s")) == before
        assert (await post("dreamer", "u", "abz"))["y"] == (await post("dreamer", "v", "ab "))["y"]

    talk(catalog, use)


def test_what_is_drawn_does_not_depend_on_chunks_or_retries(catalog: Catalog) -> None:
    """A retry gets the same bytes; one step at a time gives what the whole gives."""
    text = "a bad cab he fed a head " * 3

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        async def post(body: dict[str, object]) -> httpx.Response:
            return await client.post("/predict", json={"model": "dreamer", **body})

        whole = await post({"session_id": "s", "x": text, "step": 0})
        for _ in range(3):
            again = await post({"session_id": "s", "x": text, "step": 0})
            assert again.content == whole.content
        assert (await client.delete("/sessions/s")).status_code == 200
        parts = []
        for at in range(0, len(text), 5):
            body = {"session_id": "s", "x": text[at : at + 5], "step": at}
            parts.append((await post(body)).json()["text"])
        assert "".join(parts) == whole.json()["text"]
        lines = [{"session_id": "t", "model": "dreamer", "x": c, "want": ["text"]} for c in text]
        stream = await client.post("/stream", content="\n".join(map(json.dumps, lines)))
        streamed = "".join(json.loads(line)["text"] for line in stream.text.splitlines())
        other = await post({"session_id": "t", "x": "a"})
        assert other.json()["step"] == len(text) + 1
        assert len(streamed) == len(text)
        assert streamed != whole.json()["text"]  # another session draws otherwise

    run(with_app(catalog, use))


def test_a_request_may_choose_and_want(catalog: Catalog) -> None:
    """Another seed, another text; a retry may ask to see more."""

    async def use(post: Post, engine: Engine) -> None:
        texts = []
        for seed in (1, 2, 1):
            await post("dreamer", "s", "a")
            more = {"choose": {**SAMPLE, "seed": seed}, "want": ["text"], "step": 1}
            reply = await post("dreamer", "s", "bad cab he fed a head ", **more)
            assert "y" not in reply
            texts.append(reply["text"])
            del more["want"]
            seen = await post("dreamer", "s", "bad cab he fed a head ", **more)
            assert (seen["text"], len(seen["y"])) == (reply["text"], 22)
            await engine.drop(SessionKey("", "s"))
        assert texts[0] == texts[2] != texts[1]

    talk(catalog, use)


def test_classes_come_with_labels_and_probabilities(catalog: Catalog) -> None:
    """Of each step."""
    x = np.random.default_rng(0).normal(0, 2, (12, 2))

    async def use(post: Post, engine: Engine) -> None:
        reply = await post("judge", "s", x.tolist())
        y = oracle(JUDGE, x)
        classes = JUDGE.scaling.classes or ()
        assert reply["labels"] == [classes[i] for i in y.argmax(axis=1)]
        weights = np.exp(y)
        assert np.allclose(
            reply["probabilities"], weights / weights.sum(axis=1, keepdims=True), atol=1e-5
        )
        only = await post("judge", "t", x.tolist(), want=["labels"])
        assert {"y", "probabilities"} & set(only) == set()
        assert only["labels"] == reply["labels"]

    talk(catalog, use)


def test_an_alarm_is_raised_step_by_step(catalog: Catalog) -> None:
    """Where the score in y is above the threshold."""
    x = np.random.default_rng(0).normal(0, 2, (40, 2))

    async def use(post: Post, engine: Engine) -> None:
        reply = await post("guard", "s", x.tolist())
        assert reply["alarm"] == (oracle(GUARD, x)[:, 0] > 0.75).tolist()
        assert {True, False} == set(reply["alarm"])

    talk(catalog, use)


def test_models_tell_what_their_replies_hold(catalog: Catalog) -> None:
    """The parts of the pipeline, of long ones the size, and the fields to want."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        models = {m["name"]: m for m in (await client.get("/models")).json()["models"]}
        shown = {name: (m["pipeline"], m["reply"]) for name, m in models.items()}
        classes = ["calm", "loud", "off"]
        assert shown == {
            "writer": ({"vocabulary": 9}, ["y", "text"]),
            "dreamer": ({"vocabulary": 9, "unknown": " ", "choose": SAMPLE}, ["y", "text"]),
            "one-hot": ({"vocabulary": 9}, ["y", "text"]),
            "speaker": ({"vocabulary": 5}, ["y", "tokens"]),
            "judge": ({"classes": classes}, ["y", "labels", "probabilities"]),
            "guard": ({"alarm": {"score": "y", "threshold": 0.75}}, ["y", "alarm"]),
        }

    run(with_app(catalog, use))


def test_an_artifact_whose_pipeline_does_not_fit_is_not_served(
    tmp_path: Path,
) -> None:
    """Somebody edited its manifest and made the version right again."""
    path = build_artifact(tmp_path, JUDGE)
    manifest = path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["pipeline"]["classes"] = ["a", "b"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="has 2 `classes`, the module's y has shape"):
        Artifact.load(path)
    with pytest.raises(ValueError, match="has 2 `classes`"):
        reseal(path)
