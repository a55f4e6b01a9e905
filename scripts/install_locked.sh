#!/usr/bin/env bash
# Install requirements.lock on top of torch: scripts/install_locked.sh PYTHON
# uv takes seconds where pip takes minutes, and knows nothing of pip's configuration: pip does it where another index than PyPI is
# configured, where uv is not to be had, and where uv fails, for example because a package lies only in one of pip's further places.
set -uo pipefail
python=$1
uv_version=0.13.9
pip=("$python" -m pip --disable-pip-version-check)
what=(--quiet --no-deps -r requirements.lock)

with_uv() {
  if "${pip[@]}" config list | grep -q "\.index-url="; then
    return 1
  fi
  "${pip[@]}" install --quiet "uv==${uv_version}" && "$python" -m uv pip install --python "$python" "${what[@]}"
}

with_uv || "${pip[@]}" install "${what[@]}"
