#!/bin/bash
# Proves the Debian package on a new Debian 12: installed, used, upgraded, removed and purged.
#
# It is built twice, and must be the same bytes; and once as an older version, to be upgraded. What
# is then tried is in on-node.sh, in a chroot that has what the package depends on, and Debian's own
# versions of what it brings.
set -euo pipefail

# shellcheck source=tools/chroot.sh
. "$(dirname "$0")/chroot.sh"
own_namespace "$@"

open_chroot node "ca-certificates,bash-completion,man-db,systemd,libudev1,python3-libvirt,\
python3-click,python3-psutil,python3-rich,python3-structlog,python3-tornado"
mkdir "$root/proof"
tools/deb.sh
DIST=$root/proof/again tools/deb.sh
DIST=$root/proof/old VERSION=0.0.1 tools/deb.sh
cmp dist/emupool_*.deb "$root"/proof/again/emupool_*.deb || die "built twice, and not the same"
cp dist/emupool_*.deb tools/attempt.sh tools/on-node.sh "$root/proof/"
inside /proof/on-node.sh
