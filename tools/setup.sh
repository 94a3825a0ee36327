#!/bin/bash
# Makes .venv with the project in it, after installing what Debian has to supply.
#
#   tools/setup.sh runtime    what `make demo` needs
#   tools/setup.sh dev        that, the linters, and libvirtd, QEMU and Prometheus for the tests
#   tools/setup.sh page       that, and the browser of `make test-page`: 100 MB to download
#
# What is needed is asked for by what it does (a header, a command), not by package name, so that
# any machine that has it will do; packages are named only to install them. A run that finds
# everything in place changes nothing and takes some hundredths of a second.
set -euo pipefail

level=${1:-dev}
browser=
case $level in
runtime | dev) ;;
page) level=dev browser=yes ;;
*)
    echo "usage: tools/setup.sh [runtime|dev|page]" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
venv=.venv
PATH=${PATH//"$PWD/$venv/bin:"/}:/usr/local/sbin:/usr/sbin:/sbin
# An environment that is active cannot make itself; libvirtd is in sbin, which users often lack.

die() {
    echo "setup: $*" >&2
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

has_qemu_driver() {
    compgen -G '/usr/lib*/libvirt/connection-driver/libvirt_driver_qemu.so' >/dev/null ||
        compgen -G '/usr/lib*/*/libvirt/connection-driver/libvirt_driver_qemu.so' >/dev/null
}

has_browser() { [ -z "$browser" ] || has chromium-headless-shell || has chromium; }

has_prometheus() {
    local program
    for program in prometheus promtool; do
        has "$program" || [ -x "$venv/bin/$program" ] || return 1
    done
}

# The packages whose job nothing on this machine does, in a line.
missing() {
    if has python3; then
        python3 - <<'EOF'
import importlib.util, pathlib, sysconfig
if not importlib.util.find_spec("ensurepip") or not importlib.util.find_spec("venv"):
    print(end="python3-venv ")
if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
    print(end="python3-dev ")
EOF
    else
        printf 'python3 python3-venv python3-dev '
    fi
    # libvirt-python has no wheels: it is compiled against the libvirt of the machine.
    has gcc || printf 'gcc libc6-dev '
    has pkg-config || printf 'pkg-config '
    { has pkg-config && pkg-config --exists libvirt; } || printf 'libvirt-dev '
    if [ "$level" = dev ]; then
        has libvirtd || printf 'libvirt-daemon '
        has_qemu_driver || printf 'libvirt-daemon-driver-qemu '
        has virsh || printf 'libvirt-clients '
        has qemu-system-x86_64 || printf 'qemu-system-x86 '
        has systemd-analyze || printf 'systemd ' # it judges the unit; it need not run here
        has_browser || printf 'chromium-headless-shell '
    fi
}

# What the environment was made from and for, and that it still starts: the same text, nothing
# to do. An upgrade of Python shows in its last line.
fingerprint() {
    sed '/^\[tool\.ruff\]/,$d' pyproject.toml | sha256sum # what pip reads; tools need no set-up
    sha256sum tools/setup.sh
    grep '^__version__' agent/__init__.py
    echo "$PWD $(command -v python3)"
    "$venv/bin/python" -c 'import sys; print(sys.version)' 2>/dev/null || true
}

stamped() { # stamped LEVEL
    [ -f "$venv/.stamp-$1" ] && [ "$(<"$venv/.stamp-$1")" = "$want" ]
}

# Whether the stamps say that nothing is to be done. They speak for the environment only: the
# commands of the tests may have been removed since.
is_done() {
    want=$(fingerprint)
    case $level in
    runtime) stamped runtime || stamped dev ;;
    dev)
        stamped dev && has libvirtd && has virsh && has qemu-system-x86_64 && has_qemu_driver &&
            has_prometheus && has systemd-analyze && has_browser
        ;;
    esac
}

check_python() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$(python3 -V 2>&1) is too old: put a python3 of 3.11 or later first in PATH, then repeat"
}

install_packages() {
    local need
    ! has python3 || check_python
    need=$(missing)
    [ -n "$need" ] || return 0
    has apt-get ||
        die "not Debian: install what its packages ${need% } hold, then repeat"
    [ "$(id -u)" = 0 ] ||
        die "not root: have root run 'apt-get install --no-install-recommends ${need% }', then repeat"
    echo "setup: installing ${need% }"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o DPkg::Lock::Timeout=300 update ||
        die "apt-get update failed: see its message above"
    # shellcheck disable=SC2086  # a list of words
    apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
        install --no-install-recommends $need >/dev/null ||
        die "apt-get could not install ${need% }: see its message above"
    need=$(missing)
    [ -z "$need" ] || die "still missing after the installation: what ${need% } hold"
}

download() { apt-get -qq -o APT::Sandbox::User=root download prometheus; }

# Takes the two programs of its package that the tests run. Installed, the package would start a
# monitoring server wherever an init runs, and bring eleven more for that server's pages.
take_prometheus() {
    local place=$venv/.prometheus
    ! has_prometheus || return 0
    has apt-get || die "not Debian: put prometheus and promtool in PATH, then repeat"
    echo "setup: taking prometheus and promtool out of the package prometheus"
    rm -rf "$place"
    mkdir "$place"
    (
        cd "$place" || exit
        download 2>/dev/null || { apt-get -qq -o DPkg::Lock::Timeout=300 update && download; } &&
            dpkg-deb --fsys-tarfile prometheus_*.deb |
            tar -x ./usr/bin/prometheus ./usr/bin/promtool
    ) || die "apt-get could not download prometheus: see its message above"
    mv "$place"/usr/bin/* "$venv/bin/"
    rm -rf "$place"
}

install_project() {
    local made extra=
    check_python
    # An environment cannot be moved to another place or Python: it is made anew.
    made="$PWD $(command -v python3) $(python3 -c 'import sys; print(sys.version)')"
    if [ ! -x "$venv/bin/pip" ] || [ "$(cat "$venv/.made" 2>/dev/null)" != "$made" ]; then
        rm -rf "$venv"
        python3 -m venv "$venv" || die "python3 -m venv failed: see its message above"
        echo "$made" >"$venv/.made"
    fi
    rm -f "$venv"/.stamp-*
    [ "$level" = runtime ] || extra='[dev]'
    echo "setup: installing emupool$extra into $venv"
    "$venv/bin/pip" --quiet --quiet --disable-pip-version-check install --editable ".$extra" ||
        die "pip could not install the project: see its message above, then repeat"
    fingerprint >"$venv/.stamp-$level"
}

is_done && exit 0
if has flock; then # one at a time: somebody else may be at it in another terminal
    exec 9<tools/setup.sh
    flock 9
    is_done && exit 0
fi
install_packages
install_project
[ "$level" = runtime ] || take_prometheus
