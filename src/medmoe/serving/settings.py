"""What a server may be told, in one place; the defaults are those the documentation promises."""

from __future__ import annotations

from dataclasses import dataclass

from medmoe.errors import ConfigError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
NOTICE = "Research use only, not a medical device"
MIN_TOKEN, MAX_TOKEN = 16, 4096


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of the server.

    Attributes:
        token: Needed by all routes but health and the sign-in form; None only on loopback.
        max_body_bytes: Of a request; a picture in base64 is a third larger than its file.
        body_seconds: In which a request's body must have come.
        deadline_seconds: For a whole answer.
        drain_seconds: For the answers that are under way when the server is told to end.
        max_new_tokens: Longest answer that may be asked for.
        max_text: Characters of all texts of a conversation together.
        max_turns: Of a conversation.
        drop_system: Whether system messages are left out of what is read.
        allow_hosts: Names by which a server without a token answers, beside those of loopback.
        cors_origins: Sites whose pages may use the interface, e.g. ``https://chat.example``.
        dicomweb, dicomweb_login: Address of a DICOMweb server, and what it wants to see.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    max_body_bytes: int = 64 * 2**20
    body_seconds: float = 30.0
    deadline_seconds: float = 60.0
    drain_seconds: float = 20.0
    max_new_tokens: int = 256
    max_text: int = 16_384
    max_turns: int = 101
    drop_system: bool = False
    allow_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    dicomweb: str | None = None
    dicomweb_login: str | None = None

    @property
    def usual_new_tokens(self) -> int:
        """Longest answer where nothing is asked for."""
        return min(64, self.max_new_tokens)

    def __post_init__(self) -> None:
        """Refuse settings that would be unsafe.

        Raises:
            ConfigError: Names the flag.
        """
        if self.token is None and self.host not in LOOPBACK:
            raise ConfigError(
                f"--host {self.host} can be reached from other machines; give a token by "
                "--token-file FILE, or bind to 127.0.0.1"
            )
        length = MIN_TOKEN if self.token is None else len(self.token)
        if not MIN_TOKEN <= length <= MAX_TOKEN or not (self.token or "").isascii():
            raise ConfigError(
                f"the token has {length} characters; at least {MIN_TOKEN} of ASCII are "
                f"needed, at most {MAX_TOKEN:,}, e.g. from `openssl rand -hex 32`"
            )
