#!/bin/sh
# Writes the hash-pinned requirements of the container image from pyproject.toml: what the program needs
# (requirements.txt) and what builds its wheel (requirements-build.txt). Neither names a registry: pip takes the one
# that it is configured for, and refuses whatever does not match a hash. Needs uv and Python >= 3.11. Run it after
# changing dependencies; with `--upgrade` it takes newer versions, without it pins that still fit stay.
set -eu
cd "$(dirname "$0")/.."

pin() { # pin OUTPUT TABLE KEY [uv's options]: the requirement list at [TABLE] KEY of pyproject.toml
    output=$1 table=$2 key=$3
    shift 3
    python3 -c '
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)[sys.argv[1]][sys.argv[2]]))
' "$table" "$key" | uv pip compile - --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
        --no-header --no-emit-index-url --output-file "$output" "$@" >/dev/null
}

pin deploy/requirements.txt project dependencies "$@"
pin deploy/requirements-build.txt build-system requires "$@"
