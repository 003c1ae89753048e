"""An OpenAI-compatible endpoint, asked as a model is: vLLM, a hosted model, or `medmoe serve`.

Every question is a request of its own, with its picture inside as PNG. One that gets no answer
after some tries counts as failed. No redirect is followed: pictures and key go nowhere else.
"""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from PIL import Image

from medmoe.errors import ConfigError, first_line
from medmoe.inference.answer import Answer
from medmoe.inference.engine import LONG_ANSWER
from medmoe.inference.other_model import Further, Turns, conversation

#: Seconds before each further try, where the endpoint names none; at most so many where it does.
_WAITS, _LONGEST_WAIT = (1.0, 5.0, 25.0), 60.0
_SECONDS, _MOST_BYTES = 600.0, 2**24
#: Statuses below 500 that another try may mend.
_AGAIN = (408, 409, 425, 429)


@dataclass(frozen=True, slots=True)
class Reply(Answer):
    """An answer whose confidence nobody knows.

    Attributes:
        failed: Why there is none.
        tokens: Read and written, as the endpoint counts them; 0 where it does not.
    """

    failed: str | None = None
    tokens: tuple[int, int] = (0, 0)


class Endpoint:
    """One model of an endpoint.

    Args:
        url: Where its ``/chat/completions`` stands, e.g. ``http://localhost:8000/v1``.
        key: Sent as the bearer token, None for none.
        batch_size: Requests under way at once.
    """

    def __init__(self, url: str, name: str, key: str | None, batch_size: int) -> None:
        self.max_new_tokens = LONG_ANSWER
        self._url, self._name = f"{url.rstrip('/')}/chat/completions", name
        self._headers = {"Content-Type": "application/json"}
        self._headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._batch_size = batch_size
        self._opener = build_opener(NoRedirect)

    def answers(
        self,
        pictures: Sequence[Image.Image | None],
        talks: Sequence[Turns],
        further: Sequence[Further] = (),
    ) -> list[Reply]:
        """Go on with conversations, about a picture each or none; if all fail: `ConfigError`.

        Args:
            further: Of each conversation its further pictures.
        """
        pool = ThreadPoolExecutor(self._batch_size)
        try:
            more = further or [()] * len(talks)
            replies = list(pool.map(self._reply, pictures, talks, more))
        finally:
            pool.shutdown(cancel_futures=True)
        if all(reply.failed for reply in replies):
            raise ConfigError(
                f"{self._url} answered none of {len(replies)} questions ({replies[-1].failed}); "
                "mend that and run the command again, which goes on from here"
            )
        return replies

    def _reply(self, picture: Image.Image | None, talk: Turns, further: Further) -> Reply:
        shown = []
        for place, one in ((0, picture), *further) if picture is not None else ():
            one.save(png := io.BytesIO(), "PNG")
            url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
            shown.append((place, {"type": "image_url", "image_url": {"url": url}}))
        messages = conversation(talk, shown)
        body = {"model": self._name, "messages": messages, "max_tokens": self.max_new_tokens}
        content = json.dumps(body | {"temperature": 0}).encode()
        for wait in (*_WAITS, None):
            asked_for = None
            try:
                request = Request(self._url, content, self._headers)
                with self._opener.open(request, timeout=_SECONDS) as reply:
                    return _read(reply.read(_MOST_BYTES))
            except HTTPError as error:
                said = " ".join(error.read(2**16).decode(errors="replace").split())
                failed, asked_for = f"HTTP {error.code}: {said}", error.headers.get("Retry-After")
                if error.code < 500 and error.code not in _AGAIN:
                    break
            except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
                failed = first_line(error) or type(error).__name__
            if wait is not None:
                told = float(asked_for) if asked_for and asked_for.isdecimal() else wait
                time.sleep(min(told, _LONGEST_WAIT))
        return Reply("", math.nan, None, failed=failed[:200])


class NoRedirect(HTTPRedirectHandler):
    """Keeps an opener of urllib at the address that it was given."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none: the reply is then an error that names its status."""


def _read(data: bytes) -> Reply:
    """Return the answer in a reply's body; what is no chat completion raises what it may."""
    content = json.loads(data)
    choice, used = content["choices"][0], content.get("usage") or {}
    text, finish = choice["message"]["content"] or "", choice.get("finish_reason")
    failed = finish if finish == "content_filter" else None
    tokens = int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0)
    cut, text = finish == "length", "".join(text).strip()
    return Reply(text, math.nan, None, cut, failed=failed, tokens=tokens)
