"""The operator's DICOMweb server: no other address is asked, no redirect or proxy followed."""

from __future__ import annotations

import base64
import time
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from medmoe.data.intake.limits import Limits
from medmoe.errors import ConfigError
from medmoe.inference.endpoint import NoRedirect
from medmoe.serving.problems import ProblemError

#: In which the server has to go on saying something.
_SILENT_SECONDS = 20.0


class DicomWeb:
    """A server by its address, and by ``user:password``, or ``Bearer`` and a token, if any."""

    def __init__(self, url: str, login: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or set("@?#") & set(url):
            raise ConfigError(
                "--dicomweb must be a plain address, e.g. http://localhost:8042/dicom-web; give "
                "user and password by --dicomweb-login FILE"
            )
        if login and not login.startswith("Bearer "):
            login = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._url, self._headers = url.rstrip("/"), {"Authorization": login} if login else {}
        self._opener = build_opener(NoRedirect, ProxyHandler({}))

    def ask(
        self, path: str, accept: str, ends: float, objects: bytes | None = None, kind: str = ""
    ) -> bytes:
        """Return what stands at a path, or give the server objects of a kind to keep there.

        Args:
            ends: Until when, on the clock of `time.monotonic`.

        Raises:
            ProblemError: It does not come, or the server does not say that it kept every object.
            ImageError: It is too large.
        """
        headers = self._headers | {"Accept": accept} | ({"Content-Type": kind} if kind else {})
        request, found = Request(self._url + path, objects, headers), bytearray()
        try:
            left = max(0.001, min(_SILENT_SECONDS, ends - time.monotonic()))
            with self._opener.open(request, timeout=left) as reply:
                if objects and reply.status != 200:  # 202: it kept some of them only
                    raise HTTPError("", reply.status, "", reply.headers, None)
                while piece := reply.read1(2**20):
                    found += piece
                    Limits().check_file(len(found))
                    if time.monotonic() > ends:
                        raise TimeoutError
        except HTTPError as error:
            error.close()
            if error.code == 404 and not objects:
                raise failed("has nothing of these UIDs", 404) from None
            what = f"answers {error.code}" + ": it did not keep the report" * bool(objects)
            raise failed(f"{what}; look at --dicomweb, --dicomweb-login and its log") from None
        except (OSError, HTTPException):
            raise failed("cannot be reached, or not in time; try again") from None
        return bytes(found)


def failed(what: str, status: int = 502) -> ProblemError:
    """Return the problem of a server that fails, and how."""
    code = "dicom_not_found" if status == 404 else "dicomweb_failed"
    return ProblemError(status, code, f"the DICOMweb server {what}")
