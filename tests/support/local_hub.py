"""A hub on this machine, for the real client: what the Hugging Face hub answers for a few small repositories."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

COMMIT = "c" * 40  # of the one revision that there is: v1
PATH = re.compile(
    r"/(?:api/(?P<api>models|datasets)/|(?P<of>datasets/)?)(?P<name>[^/]+/[^/]+)/"
    r"(?P<verb>revision|tree|paths-info|resolve)/(?P<revision>[^/]+)(?:/(?P<rest>.*))?"
)


@contextmanager
def local_hub(kind: str, name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """The address of a hub that has one repository, with these files, of `kind` models or datasets."""

    class Hub(BaseHTTPRequestHandler):
        def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for header, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(header.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, value: Any) -> None:
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            match = PATH.fullmatch(unquote(self.path.split("?")[0]))
            if (
                not match
                or match["name"] != name
                or kind != (match["api"] or ("datasets" if match["of"] else "models"))
            ):
                return self.answer(404, X_Error_Code="RepoNotFound")
            if match["revision"] not in ("v1", COMMIT):
                return self.answer(404, X_Error_Code="RevisionNotFound")
            if match["verb"] == "revision":
                siblings = [{"rfilename": path} for path in files]
                return self.answer_json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []})
            if match["verb"] == "tree":
                below = f"{match['rest']}/" if match["rest"] else ""
                return self.answer_json([_entry(path, files) for path in files if path.startswith(below)])
            if match["verb"] == "paths-info":
                asked = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent)["paths"]
                return self.answer_json([_entry(path, files) for path in asked if path in files])
            if match["rest"] not in files:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            body = files[match["rest"]]
            return self.answer(200, body, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(body).hexdigest()}"')

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _entry(path: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}
