"""Serve a kept winner over HTTP: ``GET /health``, ``POST /invocations``, on loopback by default.

Every error has one JSON shape: ``{"error": {"message": ..., "status": ...}}``.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

import etude
from etude.core import EtudeError
from etude.lab.artifact import Artifact, load_artifact

__all__ = ["LARGEST_BODY", "MOST_ROWS", "is_loopback", "make_app", "serve"]

LARGEST_BODY = 16 << 20  # bytes
MOST_ROWS = 10_000
BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "additionalProperties": False,
                "properties": {
                    "inputs": {
                        "type": "array", "minItems": 1, "maxItems": MOST_ROWS,
                        "items": {"anyOf": [{"type": "array"}, {"type": "object"}]},
                    },
                },
            },
        },
    },
}  # fmt: skip


def make_app(artifact: Artifact) -> FastAPI:
    """The application that answers for one artifact.

    ``POST /invocations`` takes ``{"inputs": rows}``, each row a list in the order of the
    columns or an object by column name, and gives ``{"predictions": [...]}``, one a row. At
    most ``LARGEST_BODY`` bytes and ``MOST_ROWS`` rows; 400 what is no JSON (NaN is none), 413
    too large, 422 a row that breaks a rule.
    """
    app = FastAPI(
        title=f"{artifact.card.get('method', 'etude')} by etude", version=artifact.version,
        docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    # Requests are read at the same time, but answered one by one: no method promises that two
    # threads may use it at once.
    turn, rows_in = Lock(), 0

    def predict(rows: Any) -> list[Any]:
        nonlocal rows_in
        with turn:
            answers = artifact.predict(rows)
            rows_in += len(answers)
        return answers

    @app.get("/")
    async def about() -> dict[str, Any]:
        """What is served, and what it reads."""
        columns = [
            {name: c[name] for name in ("name", "kind", "categories") if name in c}
            for c in artifact.schema.get("columns", ())
        ]
        told, key, row = "numbers", "n_features", "[...]"
        if "sets" in artifact.schema and not columns:
            told, key, row = "sets of vectors of", "sets", "[[...], ...]"
        return {
            "what": f"{artifact.card.get('method')}, kept by etude",
            "card": dict(artifact.card),
            "inputs": columns or {told: artifact.schema.get(key)},
            "classes": list(artifact.classes),
            "use": f"POST /invocations with {{'inputs': [{row}, ...]}}",
        }

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the service is there, and how many rows it has answered."""
        return {
            "status": "ok",
            "method": artifact.card.get("method"),
            "arxiv": artifact.card.get("arxiv"),
            "version": etude.__version__,
            "task": artifact.card.get("task"),
            "rows_in": rows_in,
        }

    @app.post("/invocations", openapi_extra={"requestBody": BODY})
    async def invocations(request: Request) -> dict[str, Any]:
        """Predictions for the rows."""
        rows = _inputs(_parsed(await _body(request)))
        return {"predictions": await run_in_threadpool(predict, rows)}

    _tell_errors(app)
    return app


def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    say: Callable[[str], None] = print,
    warn: Callable[[str], None] = print,
) -> None:
    """Serve the artifact until interrupted; port 0 takes a free one.

    Raises:
        EtudeError: the artifact is refused, or the address cannot be had.
    """
    import uvicorn

    artifact = load_artifact(folder)
    listener = _listen(host, port)
    if not is_loopback(host):
        warn(f"warning: {host} lets other machines in; there is no password and no encryption")
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    say(f"{artifact.card.get('method')} at {address} (GET /health, POST /invocations)")
    config = uvicorn.Config(make_app(artifact), log_level="warning", server_header=False)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # the way to end it
    finally:
        listener.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server((host, port), family=found[0][0], backlog=128)
    except (OSError, OverflowError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise EtudeError(
            f"{host}, port {port} cannot be served: {said}; choose others with --host and --port"
        ) from None


async def _body(request: Request) -> bytes:
    """The body, read no further than the limit."""
    if request.headers.get("content-encoding", "identity") != "identity":
        _fail(400, "the body must not be compressed")
    too_large = f"the body must have at most {LARGEST_BODY:,} bytes: send fewer rows at a time"
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > LARGEST_BODY:
        _fail(413, too_large)
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > LARGEST_BODY:
            _fail(413, too_large)
    return bytes(content)


def _parsed(body: bytes) -> Any:
    def refuse_constant(word: str) -> NoReturn:
        raise ValueError(f"{word} is not a number of JSON")

    try:
        return json.loads(body.decode(), parse_constant=refuse_constant)
    except RecursionError:
        _fail(400, "the body must be JSON: it is nested too deeply")
    except ValueError as error:
        _fail(400, f"the body must be JSON: {error}")


def _inputs(content: Any) -> list[Any]:
    """The rows of a request."""
    if not isinstance(content, dict) or set(content) != {"inputs"}:
        _fail(422, 'the body must be {"inputs": [row, ...]} and nothing else')
    rows = content["inputs"]
    if not isinstance(rows, list) or not rows:
        _fail(422, "inputs must be a list of at least one row")
    if len(rows) > MOST_ROWS:
        _fail(413, f"inputs must have at most {MOST_ROWS:,} rows, got {len(rows):,}")
    return rows


def _fail(status: int, message: str) -> NoReturn:
    raise HTTPException(status, message)


def _tell_errors(app: FastAPI) -> None:
    """Give every error its one shape."""

    def shaped(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        content = {"error": {"message": message, "status": status}}
        return JSONResponse(content, status, headers)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = {
            404: f"{request.url.path} is not here: GET /, GET /health or POST /invocations",
            405: f"{request.url.path} does not take {request.method}",
        }.get(error.status_code, str(error.detail))
        return shaped(error.status_code, message, error.headers)

    async def on_bad_input(request: Request, error: Exception) -> JSONResponse:
        return shaped(422, " ".join(str(error).split()))

    async def on_gone(request: Request, error: Exception) -> JSONResponse:
        return shaped(400, "the body is not complete")

    async def on_fault(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises the error again after this answer, so that the server logs it.
        return shaped(500, f"the method failed on these inputs: {type(error).__name__}")

    handlers: dict[Any, Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
        HTTPException: on_http, EtudeError: on_bad_input, ClientDisconnect: on_gone,
        Exception: on_fault,
    }  # fmt: skip
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
