from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.model.tiny import moe_model, processor
from tests.serving.support import Inside, Running, running

from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import save_model
from medmoe.serving.app import create_app
from medmoe.serving.audit import AuditLog
from medmoe.serving.local_engine import LocalEngine
from medmoe.serving.settings import ServerSettings


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served") / "tiny" / "model"
    save_model(moe_model("stablelm"), processor(), directory, {"seed": 7})
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> MedMoe:
    return MedMoe.load(tiny_model)


@pytest.fixture(scope="session")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Without a token, with an audit log."""
    folder = tmp_path_factory.mktemp("server")
    with running(tiny_model, folder, "--audit-log", str(folder / "audit.jsonl")) as server:
        yield server


Talk = Callable[..., httpx.Response]


@pytest.fixture
def inside(tiny_model: Path, tiny: MedMoe, tmp_path: Path) -> Iterator[Inside]:
    """The app in this process, without its page; its engine runs for real."""
    engine = LocalEngine(tiny_model, load_model=lambda: tiny)
    audit = AuditLog(tmp_path / "audit.jsonl")
    app = create_app(engine, ServerSettings(body_seconds=0.5), audit=audit, page=False)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.start())
    yield Inside(app, loop, tmp_path / "audit.jsonl")
    loop.run_until_complete(engine.stop())
    loop.close()
    audit.close()


@pytest.fixture
def talk(inside: Inside) -> Talk:
    """An ordinary client of that app: ``talk(method, path, **httpx's)``."""

    async def send(method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=inside.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **more)

    return lambda method, path, **more: inside.loop.run_until_complete(send(method, path, **more))
