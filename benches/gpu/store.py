"""Keeps measurements in a JSON file, so that a second start goes on where the first was cut off.

A measurement is found again by its key: a flat dictionary of what was measured on which card by
which program with which parameters. Every change is written at once, to a file beside it that then
takes its place, so that a run that is killed leaves a whole file.
"""

import datetime
import json
import os
from pathlib import Path


class Store:
    def __init__(self, path: Path | None):
        """Reads what the file holds, if it exists. Without a path nothing is read or written."""
        self.path = path
        self.entries = []
        if path is not None and path.exists():
            try:
                self.entries = json.loads(path.read_text())["measurements"]
            except (ValueError, KeyError, TypeError) as error:
                raise SystemExit(
                    f"{path} is not a file of this script ({error!r}): move it away, "
                    "or name another with --json"
                ) from error

    def get(self, key: dict):
        """Returns the value that was measured under this key, or None."""
        return next((entry["value"] for entry in self.entries if entry["key"] == key), None)

    def put(self, key: dict, value: dict, command: str) -> None:
        """Keeps a value under its key, with the command that made it and the time."""
        self.entries = [entry for entry in self.entries if entry["key"] != key]
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.entries.append({"key": key, "value": value, "command": command, "at": now})
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps({"measurements": self.entries}, indent=1))
        os.replace(beside, self.path)
