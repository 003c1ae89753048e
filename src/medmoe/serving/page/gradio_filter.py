"""What a browser may reach of Gradio, and the page it gets: a small door in front of a large house.

Gradio brings some seventy routes: uploads that keep the client's file name on disk, a file server,
a proxy, deep links, monitoring. The page needs ten; all others are answered 404 here, before Gradio
sees them. Its HTML names outside hosts (fonts, previews) and runs inline scripts: what points
outside is cut away, and each script gets the nonce that the content security policy asks for.
"""

from __future__ import annotations

import re
import secrets
from html import escape

from medmoe.serving.problems import ProblemError, raw_reply
from medmoe.serving.transport import App, Message, Receive, Scope, Send

#: Method and path of all that the page asks of Gradio.
ALLOWED = (
    ("GET", re.compile(r"/")),
    ("GET", re.compile(r"/(assets|static/(fonts|img))(/[\w-][\w.-]*)+")),
    ("GET", re.compile(r"/(gradio_api/)?theme\.css")),
    ("GET", re.compile(r"/gradio_api/(heartbeat/\w+|startup-events|queue/data)")),
    ("GET", re.compile(r"/config")),
    ("POST", re.compile(r"/gradio_api/(queue/join|cancel|reset)")),
)
#: Bytes of one call of a control: a question, some numbers and the conversation as shown.
MAX_BODY = 2**20

_OUTSIDE = re.compile(
    r'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>\s*|<link rel="(?:manifest|preconnect)"[^>]*>'
    r"\s*|<script data-gradio-mode>.*?</script>\s*|<script>\s*\(\(\) => \{\s*const root =.*?"
    r"</script>\s*",
    re.DOTALL,
)
_SCRIPT = re.compile(r"<script(?=[\s>])")
_HEAD = (
    '<link rel="icon" href="data:,">\n<link rel="stylesheet" href="./page/style.css">\n'
    '<script src="./page/script.js" defer></script>\n'
    '<script>window.__gradio_mode__ = "app";</script>'
)
_BODY = (
    '<div class="research-use" role="note">Research use only, not a medical device</div>\n'
    '<noscript><p class="noscript">This page needs JavaScript. Without it, '
    "<code>medmoe ask</code> and <code>medmoe chat</code> answer in a terminal.</p></noscript>\n"
)


def content_security_policy(nonce: str) -> str:
    """Return the policy of the page.

    Nothing from elsewhere, no frame around it, no plugin, no form to elsewhere. Gradio sets style
    attributes as it lays out, hence ``style-src 'unsafe-inline'``; scripts need the nonce or come
    from this server, and none is made of text (no ``unsafe-eval``).
    """
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'none'"
    )


def clean_page(html: str, nonce: str, title: str) -> str:
    """Return Gradio's index page without anything from outside, with our frame around it."""
    html = _OUTSIDE.sub("", html)
    html = html.replace("</head>", f"<title>{escape(title)}</title>\n{_HEAD}\n</head>", 1)
    html = html.replace("<gradio-app", _BODY + "<gradio-app", 1)
    return _SCRIPT.sub(f'<script nonce="{nonce}"', html)


class GradioFilter:
    """The ASGI middleware inside Gradio's app that lets through what the page needs."""

    def __init__(self, app: App, title: str) -> None:
        self._app, self._title = app, title

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request that the page needs to Gradio, and refuse every other."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if not any(method == verb and known.fullmatch(path) for verb, known in ALLOWED):
            await _refuse(send, 404, "not_found", "there is nothing at this address")
        elif path == "/":
            await self._index(scope, receive, send)
        elif method == "POST":
            await self._call(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _index(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the page, cleaned; a query (a deep link) is not passed on."""
        parts: list[bytes] = []
        status = 500

        async def keep(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        await self._app({**scope, "method": "GET", "query_string": b""}, receive, keep)
        nonce = secrets.token_urlsafe(16)
        page = clean_page(b"".join(parts).decode("utf-8"), nonce, self._title).encode()
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-length", str(len(page)).encode()),
            (b"cache-control", b"no-store"),
            (b"content-security-policy", content_security_policy(nonce).encode()),
            (b"referrer-policy", b"no-referrer"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else page}
        )

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a call of a control; one that Gradio cannot read is wrong use."""
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > MAX_BODY:
                return await _refuse(send, 413, "request_too_large", "the request is too large")
            if not message.get("more_body"):
                break
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, again, watch)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            if started:
                raise
            await _refuse(send, 400, "bad_request", "this is no call of a control of the page")


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    status, headers, body = raw_reply(ProblemError(status, code, message))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
