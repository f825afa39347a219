"""A hub on this machine that answers the real client as the Hugging Face hub would, for one small repository."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote

REVISION, COMMIT = "v1", "c" * 40  # the only revision, and its commit
PATH = re.compile(
    r"/(?:api/(?P<api>models|datasets)/|(?P<of>datasets/)?)(?P<name>[^/]+/[^/]+)/"
    r"(?P<verb>revision|tree|paths-info|resolve)/(?P<revision>[^/]+)(?:/(?P<rest>.*))?"
)


@dataclass(frozen=True, slots=True)
class Repository:
    """What the hub has. `kind` is models or datasets."""

    kind: str
    name: str
    files: Mapping[str, bytes]

    def entry(self, path: str) -> dict[str, Any]:
        """The file as the hub's API lists it."""
        body = self.files[path]
        return {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}


@contextmanager
def local_hub(kind: str, name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Yield the address of a hub with a single repository; `kind` is models or datasets."""

    class Handler(_Handler):
        repository = Repository(kind, name, files)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    repository: ClassVar[Repository]

    def do_GET(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        match = PATH.fullmatch(unquote(self.path.split("?")[0]))
        if not match or not self._is_ours(match):
            self._answer(404, X_Error_Code="RepoNotFound")
        elif match["revision"] not in (REVISION, COMMIT):
            self._answer(404, X_Error_Code="RevisionNotFound")
        elif match["verb"] == "resolve":
            self._answer_file(match["rest"])
        else:
            self._answer_json(self._metadata(match["verb"], match["rest"], sent))

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def _is_ours(self, match: re.Match[str]) -> bool:
        kind = match["api"] or ("datasets" if match["of"] else "models")
        return (kind, match["name"]) == (self.repository.kind, self.repository.name)

    def _metadata(self, verb: str, rest: str | None, sent: str) -> Any:
        """The answer of the API: the revision, the files below a folder, or the files that the client names."""
        repository = self.repository
        if verb == "revision":
            siblings = [{"rfilename": path} for path in repository.files]
            return {"id": repository.name, "sha": COMMIT, "siblings": siblings, "tags": []}
        if verb == "tree":
            return [repository.entry(path) for path in repository.files if path.startswith(f"{rest}/" if rest else "")]
        requested = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent)["paths"]
        return [repository.entry(path) for path in requested if path in repository.files]

    def _answer_file(self, path: str) -> None:
        body = self.repository.files.get(path)
        if body is None:
            self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        else:
            self._answer(200, body, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(body).hexdigest()}"')

    def _answer_json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for header, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
