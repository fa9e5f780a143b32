"""Runs one command within a time limit and reads its output line by line."""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import threading


class Failed(Exception):
    """A command ended with an error. The message holds the command and the end of its stderr."""


class OutOfTime(Exception):
    """A command was stopped at its time limit."""


def run(command: list, *, timeout: float, environment: dict | None = None, on_line=None) -> str:
    """Returns what the command wrote to stdout.

    `on_line` is called with each line as it comes, so that a command which is stopped has still
    reported what it had finished. The time limit, in seconds, covers the command and every process
    that it started: PyTorch's compiler starts several. Raises `Failed` or `OutOfTime`.
    """
    if timeout <= 0:
        raise OutOfTime
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            end_group(process)

        timer = threading.Timer(timeout, stop)
        timer.start()
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if on_line:
                    on_line(line)
            code = process.wait()
        finally:
            timer.cancel()
            end_group(process)
            process.wait()
            process.stdout.close()
        if expired.is_set():
            raise OutOfTime
        if code != 0:
            errors.seek(0)
            shown = shlex.join(map(str, command))
            # `classify` writes a picture's error among its answers.
            answered = [line for line in lines if '"error"' in line][:1]
            why = "".join([errors.read(), *answered]).strip()[-600:]
            raise Failed(f"`{shown[:200]}` ended with {code}: {why}")
    return "".join(lines)


def end_group(process: subprocess.Popen) -> None:
    """Kills the process and those that it started; does nothing where none is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
