#!/bin/bash
# install.sh VERSION|source FOLDER: puts the program ioasis into FOLDER.
set -euo pipefail
version=$1 folder=$2
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$folder"
if [ "$version" = source ]; then
    (cd "$here" && cargo build --release --locked -p ioasis)
    target=${CARGO_TARGET_DIR:-$here/target}
    install -m 755 "$target/release/ioasis" "$folder/ioasis"
else
    base=${IOASIS_RELEASES:-https://github.com/ioasis/ioasis/releases/download}/v$version
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    for name in "ioasis-$version-x86_64" SHA256SUMS; do
        curl --fail --silent --show-error --location --retry 3 -o "$work/$name" "$base/$name"
    done
    (cd "$work" && sha256sum --check --ignore-missing --strict SHA256SUMS)
    install -m 755 "$work/ioasis-$version-x86_64" "$folder/ioasis"
fi
"$folder/ioasis" --version
