#!/usr/bin/env bash
# Make a virtual environment, or say in one line what is missing: scripts/venv.sh PYTHON DIRECTORY
set -euo pipefail
python=$1
directory=$2

if ! command -v "$python" >/dev/null; then
  echo "kmserve needs Python 3.11 or newer and found no '$python': install it, or name one with 'make PYTHON=/path/to/python3.12 …'" >&2
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "kmserve needs Python 3.11 or newer, and '$python' is $("$python" -V 2>&1): name another with 'make PYTHON=python3.12 …'" >&2
  exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  echo "'$python' comes without its venv module. On Debian and Ubuntu: sudo apt-get install -y python3-venv (or python${version}-venv)" >&2
  exit 1
fi
"$python" -m venv "$directory"
