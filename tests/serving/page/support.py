"""stand-in engine until i7a's is there."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from tests.model.tiny import moe_model, processor

from medmoe.inference.chat import ChatChunk, ChatRequest
from medmoe.inference.engine import MedMoe
from medmoe.inference.evidence import explain
from medmoe.serving.page.cases import CaseStore
from medmoe.serving.page.mount import mount_page


class Local:
    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self.model = MedMoe(moe_model("stablelm"), processor(), max_new_tokens=4)
        self.requests: list[ChatRequest] = []
        self.closed = 0

    async def stream(
        self, request: ChatRequest, *, deadline: float | None = None
    ) -> AsyncIterator[ChatChunk]:
        if self.keep:
            self.requests.append(request)
        answer = await asyncio.to_thread(self.model.answer, request.image, request.turns[-1].text)
        try:
            for word in answer.text.split():
                yield ChatChunk(word + " ")
            yield ChatChunk("", "stop", answer)
        finally:
            self.closed += 1

    async def explain(self, image: Any, question: str) -> dict[str, Any]:
        return (await asyncio.to_thread(explain, self.model, image, question)).to_dict()

    def describe(self) -> Any:
        return types.SimpleNamespace(id="tiny")


def served(store: CaseStore | None = None) -> FastAPI:
    app = FastAPI()
    mount_page(app, Local(keep=False), cases=store)
    return app
