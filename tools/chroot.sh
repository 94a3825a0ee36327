# shellcheck shell=bash
# What is needed to work in a new Debian 12: sourced by the scripts beside it.
#
# The new Debian is a chroot, made by mmdebstrap from this machine's Debian sources, with this
# machine's certificates and pip configuration, and nothing else of it. It lives on a tmpfs in a
# mount namespace of its own, and so goes with the last process in it, however the script ends. The
# pristine chroot is kept in .cache.
#
#   . tools/chroot.sh              sets $repo, and goes there
#   own_namespace "$@"             starts the script again, apart from the mounts of this machine
#   open_chroot NAME PACKAGES      sets $root: a copy of that pristine chroot, made if there is none
#   take_files HOW FOLDER          puts the repository there: HEAD, or the worktree as it is
#   inside COMMAND...              runs there, with this machine's proxies and pip settings

suite=bookworm
script=$(basename "$0" .sh)
cd "$(dirname "$0")/.." || exit
repo=$PWD

die() {
    echo "$script: $*" >&2
    exit 1
}

own_namespace() {
    [ "$(id -u)" = 0 ] || die "not root: a chroot needs root"
    command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: apt-get install mmdebstrap"
    [ "${1:-}" = --in-namespace ] ||
        exec unshare --mount --propagation private "$repo/tools/$script.sh" --in-namespace "$@"
}

# The pristine chroot, made once for these sources and packages: $base.
make_base() {
    local name=$1 packages=$2 cache=$repo/.cache/$1 sources apt_options key options=() option
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
        echo "$script: making a $suite chroot"
        rm -f "$cache"/*.tar "$cache"/*.part
        while IFS= read -r option; do
            [ -z "$option" ] || options+=("--aptopt=$option")
        done <<<"$apt_options"
        # shellcheck disable=SC2086
        mmdebstrap --quiet --mode=root --format=tar --variant=minbase "--include=$packages" \
            "${options[@]}" $suite "$base.part" $sources ||
            die "mmdebstrap failed: see its message above"
        mv "$base.part" "$base"
    fi
    exec 8>&-
}

# Ends what was left running in the chroot, which would keep it.
end_processes() {
    local link
    for link in /proc/[0-9]*/root; do
        if [ "$(readlink "$link" 2>/dev/null)" = "$root" ] && [ "$link" -ef "$root" ]; then
            kill -9 "$(basename "$(dirname "$link")")" 2>/dev/null || true
        fi
    done
}

# Where pip is told to look on this machine's disk; an index has its files beside it.
pip_dirs() {
    { python3 -m pip config list 2>/dev/null || true; env | grep '^PIP_' || true; } |
        grep -oE "(file://)?/[^ '\"\\]+" | sed 's#^file://##; s#/simple/*$##' | sort -u
}

open_chroot() {
    local config path name
    make_base "$1" "$2"
    root=$repo/.cache/$1/root
    trap end_processes EXIT
    trap 'exit 130' INT TERM
    mount -t tmpfs -o size=6g,mode=755 "emupool-$1" "$root"
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
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    for path in $(pip_dirs); do
        if [ -d "$path" ]; then
            mkdir -p "$root$path"
            mount --bind -o ro "$path" "$root$path"
        fi
    done
    settings=(HOME=/root LANG=C.UTF-8 "TERM=${TERM:-dumb}"
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
    for name in $(compgen -e | grep -E '^(CI|PIP_.*|(https?|HTTPS?|no|NO)_(proxy|PROXY))$'); do
        settings+=("$name=${!name}")
    done
}

take_files() { # take_files head|worktree FOLDER
    mkdir -p "$root$2"
    if [ "$1" = worktree ]; then
        git ls-files -z --cached --others --exclude-standard --deduplicate |
            tar -c --null --ignore-failed-read -T - | tar -C "$root$2" --one-top-level=main -x
    else
        git clone --quiet --no-hardlinks "$repo" "$root$2/main" ||
            die "cannot clone HEAD: commit first, or set FRESH=worktree"
    fi
}

inside() { chroot "$root" /usr/bin/env -i "${settings[@]}" "$@"; }
