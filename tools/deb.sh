#!/bin/bash
# Builds dist/emupool_VERSION_ARCH.deb from the worktree as it is, in a new Debian 12.
#
# It has the version of agent/__init__.py and the date of HEAD: the same files and the same Debian
# make the same bytes. A package that lintian, shellcheck or mandoc faults is none.
#
#   DIST=FOLDER     puts it there
#   VERSION=1.2.3   gives it another version, for the proof of an upgrade
set -euo pipefail

# shellcheck source=tools/chroot.sh
. "$(dirname "$0")/chroot.sh"
own_namespace "$@"

value() { sed -n "s/^$1 *[=:] *\"\\{0,1\\}\\([^\"]*\\).*/\\1/p" "$2"; }

needed=$(sed -n '/^Build-Depends:/,/^$/s/^ \([a-z0-9-]*\).*/\1/p' debian/control | sort -u)
open_chroot deb "$(paste -sd, <<<"$needed"),dpkg-dev,lintian,mandoc,shellcheck"
take_files worktree /build
build=$root/build/main

version=${VERSION:-$(value __version__ agent/__init__.py)}
sed -i "s/^__version__ = .*/__version__ = \"$version\"/" "$build/agent/__init__.py"
epoch=$(git log -1 --format=%ct)
cat >"$build/debian/changelog" <<EOF
emupool ($(sed -E 's/\.?(dev|a|b|rc)/~\1/' <<<"$version")) $suite; urgency=medium

  * What changed, as an operator meets it: CHANGELOG.md.

 -- $(value Maintainer debian/control)  $(date -Ru -d "@$epoch")
EOF

inside "SOURCE_DATE_EPOCH=$epoch" /bin/bash -euo pipefail >"$root/log" 2>&1 <<'EOF' ||
cd /build/main
dpkg-buildpackage --no-sign --build=binary --no-check-builddeps
shellcheck debian/postinst debian/prerm debian/postrm tools/*.sh
dpkg-deb --control ../emupool_*.deb ../control
for file in postinst prerm postrm; do sh -n "../control/$file"; done
mandoc -Tlint -Wwarning debian/man/*
lintian --allow-root --fail-on error,warning --tag-display-limit 0 ../emupool_*.changes
EOF
    { cat "$root/log" >&2; die "the build failed: see above"; }

dist=${DIST:-$repo/dist}
mkdir -p "$dist"
rm -f "$dist"/emupool_*.deb
cp "$root"/build/emupool_*.deb "$dist/"
ls "$dist"/emupool_*.deb
