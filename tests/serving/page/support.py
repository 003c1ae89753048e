"""A small real engine behind the page, and the page alone as an app.

It answers one conversation at a time with the real model; batching and queues are tested with the
server. ``python -m tests.serving.page.support PORT`` serves it to a browser.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from PIL import Image
from tests.model.tiny import moe_model, processor

from medmoe.inference.chat import ChatChunk, ChatRequest, stream_chat
from medmoe.inference.engine import MedMoe
from medmoe.inference.evidence import explain
from medmoe.serving.app import answer_problems
from medmoe.serving.chat_engine import ChatEngine, Load, ModelFacts
from medmoe.serving.page.cases import CaseStore
from medmoe.serving.page.mount import mount_page
from medmoe.serving.service import Service
from medmoe.serving.settings import ServerSettings

#: A question that begins so is answered with a pause after the first piece, in seconds.
SLOWLY, PAUSE = "Slowly", 60.0


class Local(ChatEngine):
    """An engine that remembers what it was asked, if it is told to."""

    def __init__(self, *, remember: bool) -> None:
        self.explains, self._state, self._max_waiting = True, "ready", 1
        if path := os.environ.get("MEDMOE_PAGE_MODEL"):  # a trained one, for pictures worth seeing
            self.model = MedMoe.load(path)
        else:
            self.model = MedMoe(moe_model("stablelm"), processor(), max_new_tokens=4)
        self.facts = ModelFacts("tiny", "0" * 64, self.model.domains)
        self.requests: list[ChatRequest] = []
        self.freed = 0
        self._remember = remember

    async def stream(
        self, request: ChatRequest, *, deadline: float | None = None
    ) -> AsyncGenerator[ChatChunk]:
        if self._remember:
            self.requests.append(request)
        chunks = stream_chat(self.model, request)
        step = None
        try:
            while True:
                step = asyncio.ensure_future(asyncio.to_thread(next, chunks, None))
                chunk = await asyncio.shield(step)
                if chunk is None:
                    return
                yield chunk
                if request.turns[-1].text.startswith(SLOWLY):
                    await asyncio.sleep(PAUSE)
        finally:
            if step is not None:
                await step
            chunks.close()
            self.freed += 1

    async def explain(self, image: Image.Image, question: str) -> dict[str, Any]:
        return (await asyncio.to_thread(explain, self.model, image, question)).to_dict()

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    def load(self) -> Load:
        return Load(0, 0)


def service_of(engine: Local, tokens: int = 4) -> Service:
    return Service(engine, ServerSettings(max_new_tokens=tokens), None)


def served(store: CaseStore, *, explains: bool = True) -> FastAPI:
    """Return the page alone, as an app."""
    app, engine = FastAPI(), Local(remember=False)
    engine.explains = explains
    answer_problems(app)
    mount_page(app, service_of(engine), store)
    return app


def main(port: int) -> None:
    """Serve the page to a browser; `/open-cases` tells a test how many it holds."""
    import uvicorn

    store = CaseStore(grace_seconds=0.5)
    app = FastAPI()
    app.get("/open-cases")(lambda: len(store))
    app.get("/health/ready")(lambda: "ready")
    answer_problems(app)
    mount_page(app, service_of(Local(remember=False), 16), store)
    uvicorn.run(app, port=port)


if __name__ == "__main__":
    main(int(sys.argv[1]))
