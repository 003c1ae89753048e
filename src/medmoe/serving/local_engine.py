"""The engine in our own process: one thread owns the model and answers all conversations together.

The event loop only hands requests over and passes words on. The thread works in steps: take in who
has come, say one token of every conversation, let go of who has ended, was left, or is late. Rows
about one picture share its encoding, also with conversations that came before (a small cache by
content). It is for one machine and moderate use; for more there is `medmoe.serving.vllm`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from medmoe.errors import MedMoeError
from medmoe.inference.answer import Answer, ranked
from medmoe.inference.chat import ChatBatch, ChatChunk, ChatRequest, ChatRow, prepare
from medmoe.inference.engine import MedMoe
from medmoe.inference.kept import MOST_SECONDS
from medmoe.model.locate import EXPORT
from medmoe.serving.aside import Aside
from medmoe.serving.chat_engine import ChatEngine, EngineError, Load, failed, late, not_ready
from medmoe.serving.evidence_thread import EvidenceThread, LeftError, Question

_log = logging.getLogger(__name__)
_SWITCH_SECONDS = 0.0002


@dataclass(eq=False, slots=True)
class _Job:
    """A request on its way through the thread."""

    request: ChatRequest
    deadline: float
    loop: asyncio.AbstractEventLoop
    chunks: asyncio.Queue[ChatChunk | MedMoeError] = field(default_factory=asyncio.Queue)
    left: bool = False

    def give(self, chunk: ChatChunk | MedMoeError) -> None:
        """Hand a piece to the event loop, from the thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self.loop.call_soon_threadsafe(self.chunks.put_nowait, chunk)


class LocalEngine(ChatEngine):
    """The engine in this process.

    Args:
        load_model: Returns the model, in the thread; by default `MedMoe.load` of the folder.
    """

    explains = True

    def __init__(
        self,
        directory: Path,
        name: str | None = None,
        *,
        load_model: Callable[[], MedMoe] | None = None,
        **limits: int,
    ) -> None:
        super().__init__(directory, name, **limits)
        if (directory / EXPORT).is_file():
            self.explains = False
        self._load_model = load_model or (lambda: MedMoe.load(directory))
        self._waiting: deque[_Job] = deque()
        self._evidence: EvidenceThread | None = None
        self._explaining = Aside(1, self._max_waiting, "medmoe-evidence")
        self._running = 0
        self._changed = threading.Condition()
        self._ended = False
        self._thread: threading.Thread | None = None

    def load(self) -> Load:
        """Return how much there is to do."""
        return Load(len(self._waiting), self._running, self._explaining.calls)

    async def start(self) -> None:
        """Load the model in the thread that will own it.

        Raises:
            MedMoeError: It cannot be loaded.
        """
        loaded: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(loaded,), name="medmoe-engine", daemon=True
        )
        self._thread.start()
        await asyncio.wrap_future(loaded)
        self._state = "ready"

    async def stream(
        self, request: ChatRequest, *, deadline: float | None = None
    ) -> AsyncGenerator[ChatChunk]:
        """Answer a conversation, as `ChatEngine.stream` says."""
        self.check_room()
        seconds = deadline if deadline is not None else float("inf")
        job = _Job(request, time.monotonic() + seconds, asyncio.get_running_loop())
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        end = None if deadline is None else asyncio.get_running_loop().time() + deadline
        finish = None
        try:
            while finish is None:
                async with asyncio.timeout_at(end):  # never around a yield: it cancels the task
                    chunk = await job.chunks.get()
                if isinstance(chunk, MedMoeError):
                    raise chunk
                yield chunk
                finish = chunk.finish
        except TimeoutError:
            raise late() from None
        finally:
            job.left = True

    async def explain(self, image: Image.Image, question: str) -> dict[str, Any]:
        """Explain an answer beside the conversations that are under way, which go first."""
        if not self.explains:
            return await super().explain(image, question)
        if self.state != "ready" or self._evidence is None:
            raise not_ready(self.state)
        asked = Question(image, question)
        try:
            return await self._explaining.run(partial(self._evidence.work_out, asked))
        except MedMoeError:
            raise
        except Exception as error:
            if not isinstance(error, LeftError):
                _log.error("explaining failed: %s", type(error).__name__)
            raise failed("explaining") from None
        finally:
            self._evidence.leave(asked)

    async def stop(self) -> None:
        """End the thread after its present step."""
        self.drain()
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._evidence is not None:
            self._evidence.end()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10.0)

    def _run(self, loaded: Future[None]) -> None:
        """Load the model and answer until the end: the thread's whole life."""
        # The event loop asks for the interpreter's lock at every socket; it must not wait long.
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            model = self._load_model()
        except BaseException as error:  # told to whoever waits for it, whatever it is
            self._state = "broken"
            loaded.set_exception(error)
            return
        evidence = self._evidence = EvidenceThread(model)
        loaded.set_result(None)
        answers = _Answers(model)
        while self._wait_for_work(answers, evidence):
            new: list[_Job] = []
            try:
                with evidence.answering():
                    answers.let_go()
                    new = self._next_jobs(answers)
                    answers.take_in(new)
                    answers.step()
            except Exception as error:  # an own fault must not end the thread and hang everybody
                _log.error("a step failed: %s", type(error).__name__)
                answers.fail(failed("answering"), new)
            self._running = len(answers.jobs)
        answers.fail(not_ready("stopped"), list(self._waiting))

    def _wait_for_work(self, answers: _Answers, evidence: EvidenceThread) -> bool:
        with self._changed:
            while not (self._ended or self._waiting or answers.jobs):
                evidence.go_on()
                if not self._changed.wait(MOST_SECONDS):
                    answers.forget()
            return not self._ended

    def _next_jobs(self, answers: _Answers) -> list[_Job]:
        jobs: list[_Job] = []
        with self._changed:
            while self._waiting and len(answers.jobs) + len(jobs) < self._max_batch:
                job = self._waiting.popleft()
                if not job.left:
                    jobs.append(job)
            self._running = len(answers.jobs) + len(jobs)
        return jobs


class _Answers:
    """The thread's side: the batch, and whose row is whose."""

    def __init__(self, model: MedMoe) -> None:
        self.jobs: dict[ChatRow, _Job] = {}
        self._model = model
        self._batch = ChatBatch(model)

    def let_go(self) -> None:
        """Leave the conversations that nobody waits for."""
        now = time.monotonic()
        gone = [row for row, job in self.jobs.items() if job.left or job.deadline < now]
        if gone:
            self._batch.leave(gone)
            for row in gone:
                del self.jobs[row]

    def take_in(self, jobs: Sequence[_Job]) -> None:
        """Read the prompts of new conversations."""
        self.forget()
        if not jobs:
            return
        pictures = [job.request.images for job in jobs]
        encoded = self._model.pictures.features([image for images in pictures for image in images])
        parts = iter(() if encoded is None else encoded.split([len(i) for i in pictures if i]))
        rows: list[ChatRow] = []
        for job in jobs:
            features = next(parts) if job.request.images else None
            try:
                if features is not None and job.request.options:
                    job.give(_chosen(self._model, job.request, features))
                    continue
                row = prepare(job.request, features, self._model.tokenizer, self._model.limit)
            except MedMoeError as error:
                job.give(error)
                continue
            self.jobs[row] = job
            rows.append(row)
        self._batch.join(rows)

    def forget(self) -> None:
        """Let go of what conversations that have ended left behind."""
        self._model.prefixes.forget()

    def step(self) -> None:
        """Say one more token of every conversation."""
        if not self._batch.rows:
            return
        for row, chunk in self._batch.step():
            self.jobs[row].give(chunk)
            if chunk.finish is not None:
                del self.jobs[row]

    def fail(self, error: EngineError, others: Sequence[_Job]) -> None:
        """Tell all conversations, and others that are none yet, that there will be no answer."""
        for job in {*self.jobs.values(), *others}:
            job.give(error)
        self.jobs.clear()
        self._batch = ChatBatch(self._model)


def _chosen(engine: MedMoe, request: ChatRequest, features: Tensor) -> ChatChunk:
    """Return the likeliest of a request's options as its whole answer, its pictures encoded."""
    question, count = request.turns[0].text, len(features)
    scored = engine.scored_options(features, [0], [question], [request.options], [range(1, count)])
    ((scores, (first, *further)),) = scored
    among = ranked(request.options, scores)
    segment = engine.segment(question, among[0][0], count)
    read = len(engine.tokenizer.prefix(count)) + len(segment.ids) - segment.answer_length
    answer = Answer(*among[0], first, False, tuple(further), among)
    return ChatChunk(answer.text, "stop", answer, read, segment.answer_length)
