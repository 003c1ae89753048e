"""Who may ask: a token in the header, or the cookie that signing in with it gives a browser.

Comparisons take the same time whatever is sent. Sessions are random, in memory, and end; the token
itself never stands in a cookie. Without a token (loopback only) requests must name a loopback host
and come from no other site, so that a web page elsewhere cannot use the browser to ask.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from html import escape
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from medmoe.serving.problems import ProblemError
from medmoe.serving.settings import LOOPBACK, NOTICE, ServerSettings

COOKIE = "medmoe_session"
#: What anybody may reach: health, and the form that a token is typed into.
OPEN = frozenset({"/health/live", "/health/ready", "/login"})
#: What pages of a site that the operator names may use: not the page's own routes, nor DICOMweb.
_SHARED = ("/v1/chat/", "/v1/responses", "/v1/models", "/v1/files")
SESSION_SECONDS = 12 * 3600.0
MAX_SESSIONS = 1000
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:22rem;margin:12vh auto;padding:0 1rem}"
    "input,button{font:inherit;width:100%;box-sizing:border-box;padding:.5rem;margin:.3rem 0}"
    "p.note{font-size:.9rem}@media(prefers-color-scheme:dark){body{background:#111;color:#eee}}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
LOGIN_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


class Access:
    """Decides whether a request may pass."""

    def __init__(self, settings: ServerSettings) -> None:
        self._token, self._origins = settings.token, settings.cors_origins
        self._hosts = LOOPBACK.union(settings.allow_hosts)
        self._sessions: OrderedDict[str, float] = OrderedDict()

    def check(self, path: str, headers: Headers) -> None:
        """Let a request pass.

        Raises:
            ProblemError: 401 without token or session, 403 from another site.
        """
        self._check_site(path, headers)
        if self._token is None or path in OPEN:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        bearer = scheme.lower() == "bearer" and self._is_token(given.strip())
        # Looked up by a hash, so that the time it takes tells nothing about the session itself.
        ends = self._sessions.get(_digest(_session(headers)), 0.0)
        if not (bearer or ends > time.monotonic()):
            raise ProblemError(401, "unauthorized", "a token is needed: Authorization: Bearer …")

    def sign_in(self, given: str) -> str | None:
        """Return a new session for the token, None for anything else."""
        if self._token is None or not self._is_token(given):
            return None
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = time.monotonic() + SESSION_SECONDS
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def sign_out(self, headers: Headers) -> None:
        """End the session of a request."""
        self._sessions.pop(_digest(_session(headers)), None)

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(_digest(given), _digest(self._token))

    def _check_site(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._token is None and _name(host) not in self._hosts:
            raise ProblemError(
                403, "wrong_host", "this server answers on loopback only; --allow-host adds a name"
            )
        origin = headers.get("origin")
        if origin in self._origins and path.startswith(_SHARED):
            return
        if origin and origin.partition("://")[2] != host:  # also to read
            raise ProblemError(403, "cross_site", "requests of another site are refused")


def login_page(failed: bool) -> str:
    """Return the form that a token is typed into."""
    said = "<p role=alert>That is not the token.</p>" if failed else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>medmoe: sign in</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style><h1>medmoe</h1>{said}"
        '<form method="post" action="/login"><label for="token">Token</label>'
        '<input id="token" name="token" type="password" autocomplete="current-password" required '
        'autofocus><button type="submit">Sign in</button></form>'
        f'<p class="note">{escape(NOTICE)}.</p></html>'
    )


def _name(host: str) -> str:
    """Return the host of a Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def came_by_tls(scheme: str, headers: Headers) -> bool:
    """Return whether a browser came by https, also where a proxy in front of us took it off."""
    proxy, _, _ = headers.get("x-forwarded-proto", "").partition(",")
    browser, _, _ = headers.get("origin", "").partition("://")
    return "https" in (scheme, proxy.strip().lower(), browser)


def _session(headers: Headers) -> str:
    # By hand: the standard library's parser takes quadratic time for some, and we need one.
    for pair in headers.get("cookie", "").split(";"):
        name, _, value = pair.partition("=")
        if name.strip() == COOKIE:
            return value.strip()
    return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
