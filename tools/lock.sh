#!/bin/bash
# Renews debian/requirements.txt, what the package brings: the newest releases that pyproject.toml
# allows, as wheels for Debian 12 on each architecture, by their hashes. Build, and prove, after it.
set -euo pipefail

cd "$(dirname "$0")/.."
python=.venv/bin/python
wheels=$(mktemp -d)
trap 'rm -r "$wheels"' EXIT

mapfile -t wanted < <("$python" -c '
import tomllib
for wish in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    if not wish.startswith("libvirt-python"):  # Debian has it
        print(wish)')
for machine in x86_64 aarch64; do
    platforms=(--platform any)
    for libc in 17 28 34; do # manylinux_2_N: the C library it needs; Debian 12 has 2.36
        platforms+=(--platform "manylinux_2_${libc}_$machine")
    done
    "$python" -m pip --quiet --disable-pip-version-check download --dest "$wheels" \
        --only-binary :all: --python-version 3.11 --implementation cp --abi cp311 --abi abi3 \
        --abi none "${platforms[@]}" "${wanted[@]}"
done

{
    echo "# What the package brings beside libvirt's binding. Made by tools/lock.sh."
    (cd "$wheels" && sha256sum -- *.whl) | awk '{
        split($2, part, "-")
        wish = part[1] "==" part[2]
        if (wish != last) printf "%s%s", between, wish
        printf " \\\n    --hash=sha256:%s", $1
        last = wish; between = "\n"
    } END { print "" }'
} >debian/requirements.txt
