"""Stages that need torch, as copies of a process that has imported it.

Importing torch, transformers and DeepSpeed takes 3 to 4 s on two cores, and a run of three iterations has ten stages
that need them. The flow's DVC process keeps one process that has imported them all; the command of such a stage hands
over its arguments, environment and standard streams to it, waits for the copy that does the work, and ends with the
copy's exit code. Without that process, as under a bare `dvc repro`, the command does everything itself: the same work.

The copy ends when its command does, and when the process that it is a copy of does.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import secrets
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from components.stage import collect_rarely, die_after, die_with_parent, quiet_environment

STAGES = ("components.score", "components.finetune", "components.evaluate")
SOCKET = "ITERIT_PRELOADED"  # the environment variable that names the process's socket
ABSTRACT = "\0"  # Linux: a name that is no file, and is gone when the process is
HELLO = b"+"


def start() -> None:
    """Start importing, and let the stages that this process starts from now on find it."""
    if sys.platform != "linux":
        return
    name = f"iterit-{secrets.token_hex(16)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(ABSTRACT + name)
        listener.listen()
        command = [sys.executable, "-m", "components.preloaded", str(listener.fileno()), str(os.getpid())]
        subprocess.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL)
    os.environ[SOCKET] = name


def run(module: str, main: Callable[[], None]) -> None:
    """Run `main` of a stage's module: in a copy of the preloaded process where there is one, otherwise here."""
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(ABSTRACT + os.environ[SOCKET])
            there = _is_same_user(server) and server.recv(1) == HELLO
        except (KeyError, OSError):
            there = False
        if there:
            die_with_parent()
            socket.send_fds(server, [HELLO], [0, 1, 2])
            with server.makefile("rw") as stream:
                stream.write(json.dumps({"module": module, "arguments": sys.argv, "environment": dict(os.environ)}))
                stream.write("\n")
                stream.flush()
                code = stream.readline()
            if not code:
                print("error: the process that the stage was a copy of has ended; run again", file=sys.stderr)
            sys.exit(int(code or 1))
    main()


def _is_same_user(peer: socket.socket) -> bool:
    """The name is open to everybody on this machine; streams and environment are not."""
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(user == os.getuid())


def main() -> None:
    die_with_parent()
    if os.getppid() != int(sys.argv[2]):
        return  # it went before we asked
    collect_rarely()
    quiet_environment()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("RANK", None)  # of a launcher that started the flow: this process is no worker of its
    code = _code()
    import torch

    if torch.cuda.is_available():
        return  # CUDA does not survive a fork
    from components.launch import prepare_deepspeed

    prepare_deepspeed()
    for module in (*STAGES, "components.trainer", "transformers.modeling_utils", "transformers.generation.utils"):
        importlib.import_module(module)
    gc.freeze()  # what the copies share stays shared
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        while True:
            command, _ = listener.accept()
            # code that has been edited since is what DVC records: the command runs it itself then
            with command, suppress(ConnectionError):  # a command that has gone
                if _is_same_user(command) and code == _code():
                    _serve(command)


def _code() -> dict[Path, tuple[int, int]]:
    """When each of our source files was written, and its size."""
    stats = {file: file.stat() for file in Path(__file__).parent.rglob("*.py")}
    return {file: (status.st_mtime_ns, status.st_size) for file, status in stats.items()}


def _serve(command: socket.socket) -> None:
    """Do the work of one stage's command in a copy of this process, and tell it the exit code."""
    command.sendall(HELLO)
    _, streams, _, _ = socket.recv_fds(command, 1, 3)
    try:
        with command.makefile("rw") as stream:
            line = stream.readline()
            if not line.endswith("\n"):
                return  # the command has gone
            copy = multiprocessing.get_context("fork").Process(target=_work, args=(command, streams, json.loads(line)))
            try:
                copy.start()
            except OSError as error:
                os.write(streams[2], f"error: no process could be made for the stage: {error}\n".encode())
                stream.write("1\n")
                return
            copy.join()
            code = copy.exitcode or 0
            stream.write(f"{code if code >= 0 else 128 - code}\n")  # as a shell counts signals
    finally:
        for descriptor in streams:
            os.close(descriptor)


def _work(command: socket.socket, streams: list[int], request: dict[str, Any]) -> None:
    assert request["module"] in STAGES, request["module"]
    for place, descriptor in enumerate(streams):
        os.dup2(descriptor, place)
    threading.Thread(target=die_after, args=(command.fileno(),), daemon=True, name="die-with-command").start()
    os.environ.clear()
    os.environ.update(request["environment"])
    del os.environ[SOCKET]  # the processes that a stage starts itself are its own
    sys.argv = request["arguments"]
    importlib.import_module(request["module"]).main()


if __name__ == "__main__":
    main()
