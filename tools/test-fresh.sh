#!/bin/bash
# Proves the set-up: `make demo` and `make test` on a new Debian 12 that has python3, make and git.
# It gets a clone of HEAD; with FRESH=worktree, the files as they are now.
set -euo pipefail

# shellcheck source=tools/chroot.sh
. "$(dirname "$0")/chroot.sh"
own_namespace "$@"
open_chroot fresh ca-certificates,git,make,python3
fresh=${FRESH:-head}
take_files "$fresh" /work
[ ! -d ../shared ] || cp -r ../shared "$root/work/"

inside FRESH="$fresh" /bin/bash <<'EOF'
cd /work/main
script=test-fresh
. tools/attempt.sh
says_in_one_line() {
    local said
    said=$(setpriv --reuid=65534 --regid=65534 --clear-groups tools/setup.sh dev 2>&1) && return 1
    echo "$said"
    [ "$(wc -l <<<"$said")" = 1 ] && [[ $said == *"apt-get install"* ]]
}
changes_nothing() {
    local said before=$EPOCHREALTIME
    said=$(make setup setup-runtime 2>&1) && [ -z "$said" ] &&
        ((${EPOCHREALTIME/./} - ${before/./} < 1000000))
}
is_clean() {
    [ "$FRESH" = worktree ] || { git status --short && [ -z "$(git status --short)" ]; }
}
attempt "an ordinary user is told what to install" says_in_one_line
attempt "make demo" make demo
attempt "make test" make test
attempt "repeating the set-up is fast and changes nothing" changes_nothing
attempt "the work tree is clean" is_clean
verdict
EOF
