#!/bin/sh
# Makes the Python environment of run.py and of tests/golden/record.py in target/peers-venv, from PyPI.
# It needs python3 with the venv module, nothing else; running it again brings the environment up to date.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
venv="$root/target/peers-venv"
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$root/benches/peers/requirements.txt"
echo "ready: $venv/bin/python"
