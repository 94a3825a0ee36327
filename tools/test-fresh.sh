#!/bin/bash
# Proves the set-up: `make demo` and `make test` on a new Debian 12 that has python3, make and git.
#
# The new Debian is a chroot, made by mmdebstrap from this machine's Debian sources, with this
# machine's certificates and pip configuration, and nothing else of it. It gets a clone of HEAD;
# with FRESH=worktree, the files as they are now. It lives on a tmpfs (some 3 GB) in a mount
# namespace of its own, and so goes with the last process in it, however this script ends. The
# pristine chroot is kept in .cache.
set -euo pipefail

cd "$(dirname "$0")/.."
repo=$PWD
suite=bookworm
packages=ca-certificates,git,make,python3
cache=$repo/.cache/fresh

die() {
    echo "test-fresh: $*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || die "not root: a chroot needs root"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: apt-get install mmdebstrap"
[ "${1:-}" = --in-namespace ] ||
    exec unshare --mount --propagation private "$repo/tools/test-fresh.sh" --in-namespace

# --- the pristine chroot, made once for these sources ---

# shellcheck disable=SC2046  # file names without blanks, here and below
sources=$(grep -lE "^(Suites:|deb ).*\b$suite\b" \
    $(compgen -G '/etc/apt/sources.list*' -G '/etc/apt/sources.list.d/*.list' || true) \
    $(compgen -G '/etc/apt/sources.list.d/*.sources' || true) 2>/dev/null || true)
# The clock of a mirror may be odd, or the way to it.
apt_options=$(apt-config dump | grep -E '^Acquire::(Check-|[a-z]+::Proxy)' || true)
# shellcheck disable=SC2086
key=$(cat $sources - <<<"$suite $packages $apt_options" | sha256sum | cut -c1-16)
base=$cache/$suite-$key.tar
mkdir -p "$cache/root"
exec 8>"$cache/lock"
flock 8
if [ ! -f "$base" ]; then
    echo "test-fresh: making a $suite chroot"
    rm -f "$cache"/*.tar "$cache"/*.part
    options=()
    while IFS= read -r option; do
        [ -z "$option" ] || options+=("--aptopt=$option")
    done <<<"$apt_options"
    # shellcheck disable=SC2086
    mmdebstrap --quiet --mode=root --format=tar --variant=minbase --include=$packages \
        "${options[@]}" $suite "$base.part" $sources || die "mmdebstrap failed: see its message above"
    mv "$base.part" "$base"
fi
exec 8>&-

# --- the chroot of this run ---

root=$cache/root
end_processes() {
    local link
    for link in /proc/[0-9]*/root; do
        if [ "$(readlink "$link" 2>/dev/null)" = "$root" ] && [ "$link" -ef "$root" ]; then
            kill -9 "$(basename "$(dirname "$link")")" 2>/dev/null || true
        fi
    done
}
trap end_processes EXIT
trap 'exit 130' INT TERM

mount -t tmpfs -o size=6g,mode=755 emupool-fresh "$root"
tar -C "$root" -xf "$base"
cp /etc/resolv.conf /etc/hosts "$root/etc/"
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
for config in ~/.config/pip/pip.conf ~/.pip/pip.conf; do
    [ ! -f "$config" ] || install -D "$config" "$root/root/.config/pip/pip.conf"
done
if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
    cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates >/dev/null 2>&1
fi

mkdir -p "$root/work"
if [ "${FRESH:-head}" = worktree ]; then
    git ls-files -z --cached --others --exclude-standard --deduplicate |
        tar -c --null --ignore-failed-read -T - | tar -C "$root/work" --one-top-level=main -x
else
    git clone --quiet --no-hardlinks "$repo" "$root/work/main" ||
        die "cannot clone HEAD: commit first, or set FRESH=worktree"
fi
[ ! -d ../shared ] || cp -r ../shared "$root/work/"

mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"

# Where pip is told to look on this machine's disk; an index has its files beside it.
pip_dirs() {
    { python3 -m pip config list 2>/dev/null || true; env | grep '^PIP_' || true; } |
        grep -oE "(file://)?/[^ '\"\\]+" | sed 's#^file://##; s#/simple/*$##' | sort -u
}
for path in $(pip_dirs); do
    if [ -d "$path" ]; then
        mkdir -p "$root$path"
        mount --bind -o ro "$path" "$root$path"
    fi
done

settings=(HOME=/root LANG=C.UTF-8 "TERM=${TERM:-dumb}" "FRESH=${FRESH:-head}"
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
for name in $(compgen -e | grep -E '^(CI|PIP_.*|(https?|HTTPS?|no|NO)_(proxy|PROXY))$'); do
    settings+=("$name=${!name}")
done

# --- what must work there ---

chroot "$root" /usr/bin/env -i "${settings[@]}" /bin/bash <<'EOF'
cd /work/main
failed=
attempt() { # attempt WHAT COMMAND...
    local what=$1 start=$SECONDS status=0
    shift
    echo "test-fresh: $what"
    "$@" </dev/null || status=$?
    echo "test-fresh: $what: exit $status after $((SECONDS - start)) s"
    [ "$status" = 0 ] || failed+=" ($what)"
}
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
[ -z "$failed" ] || { echo "test-fresh: failed:$failed"; exit 1; }
echo "test-fresh: all passed"
EOF
