#!/bin/bash
# The life of the package on a host, for test-deb.sh, which runs it in a chroot: it installs and
# removes packages, and makes users.
set -uo pipefail

cd /proof || exit
script=test-deb
# shellcheck source=tools/attempt.sh
. ./attempt.sh
export DEBIAN_FRONTEND=noninteractive
old=(./old/emupool_*.deb)
new=(./emupool_*.deb)
version=$(dpkg-deb --field "${new[0]}" Version)
state=/run/emupool/state.json

apt() { PATH=$PATH apt-get -qq -y -o Dpkg::Use-Pty=0 "${options[@]}" "$@"; }
options=()

# Whatever is on the host, but what packages change whichever they are.
everything() {
    find / -xdev \( -path /proof -o -path /tmp -o -path /var/log -o -path /var/cache -o \
        -path /var/lib/apt -o -path /run/systemd \) -prune -o ! -path '/var/lib/dpkg/*-old' \
        ! -path '/etc/*-' ! -name triggers -printf '%M %u %g %p %l\n' | sort
    cat /etc/passwd /etc/group /etc/shadow /etc/gshadow
}
is_pristine() { everything | diff pristine -; }

installs() {
    local told
    told=$(apt install "$1") && touch stamp && echo "$told" &&
        [[ $told == *"pins nothing yet"* ]] &&
        [ "$(emupool --version)" = "emupool, version $2" ] && dpkg --verify emupool
}
has_its_user() {
    getent passwd emupool && id -nG emupool && [ "$(id -nG emupool)" = "emupool libvirt" ]
}
answers() {
    emupool check-config /etc/emupool/config.toml &&
        grep -qx 'dry_run = true' /etc/emupool/config.toml &&
        emupool topology >/dev/null
}
plans_from_files() {
    local cpu
    cpu=$(sed 's/[-,].*//' /sys/devices/system/cpu/online)
    mkdir -p domains
    cat >domains/guest.xml <<EOF
<domain type='kvm' id='1'>
  <name>guest</name><uuid>6a1f3c52-0b3e-4f0e-9d5e-0c1d2e3f4a5b</uuid>
  <metadata><e:guest xmlns:e='urn:emupool:libvirt:1' policy='isolate'/></metadata>
  <memory>1024</memory><vcpu>1</vcpu><cputune><vcpupin vcpu='0' cpuset='$cpu'/></cputune>
</domain>
EOF
    emupool plan --domains domains && emupool plan --domains domains --json >plan.json &&
        /usr/lib/emupool/bin/python3 -c 'import json; print(json.load(open("plan.json"))["guests"])'
}
demonstrates() { # as the daemon's user, who may write nothing
    setpriv --reuid=emupool --regid=emupool --init-groups emupool demo --pace 0 >demo.txt &&
        tail -1 demo.txt
}
says_that_nobody_answers() {
    local status=0
    emupool status || status=$?
    [ "$status" = 3 ]
}
takes_only_libvirt_from_the_host() {
    /usr/lib/emupool/bin/python3 - <<'EOF'
import importlib, pkgutil, sys
import agent, pyudev
for module in pkgutil.walk_packages(agent.__path__, "agent."):
    if module.name != "agent.__main__":
        importlib.import_module(module.name)
files = {n: m.__file__ for n, m in sys.modules.items() if getattr(m, "__file__", None)}
print(sorted({n.split(".")[0] for n, f in files.items() if "/site-packages/" in f}))
assert not [n for n, f in files.items() if "/dist-packages/" in f]
pyudev.Context()  # finds the libudev that the package depends on
host = {n for n, f in files.items() if f.startswith("/usr/lib/emupool/libvirt/")}
assert host == {"libvirt", "libvirtmod"}, host
assert all(p.startswith(("/usr/lib/python3", "/usr/lib/emupool/")) for p in sys.path if p), sys.path
assert not [p for p in sys.path if p.endswith("dist-packages")], sys.path
EOF
}
needs_no_byte_code() { # since it was installed, and that by root, who may write it
    local written
    written=$(find /usr/lib/emupool /usr/lib/python3 -newer stamp)
    [ -z "$written" ] || { echo "$written"; return 1; }
}
has_its_pages() {
    mandb -q && whatis emupool emupool.toml &&
        MANWIDTH=80 man 8 emupool | grep -q 'emupool check-config' &&
        MANWIDTH=80 man 5 emupool.toml | grep -q 'emulator_overcommit_ratio = 8.0'
}
completes() {
    bash -c '. /usr/share/bash-completion/bash_completion && _completion_loader emupool
        complete -p emupool' &&
        COMP_WORDS='emupool check' COMP_CWORD=1 _EMUPOOL_COMPLETE=bash_complete emupool |
        grep -x 'plain,check-config' && bash -n /usr/share/bash-completion/completions/emupool
}

upgrades() {
    sed -i 's/^#emulator_overcommit_ratio = .*/emulator_overcommit_ratio = 4/' \
        /etc/emupool/config.toml
    cp /etc/emupool/config.toml mine.toml
    install -D -o emupool -m 600 /dev/null $state
    apt install "${new[0]}" && [ "$(emupool --version)" = "emupool, version $version" ] &&
        cmp mine.toml /etc/emupool/config.toml && [ -f $state ] &&
        emupool check-config /etc/emupool/config.toml
}
removes() {
    local told
    told=$(apt remove emupool) && echo "$told" && [[ $told == *"emupool release"* ]] &&
        [ -f $state ] && cmp mine.toml /etc/emupool/config.toml &&
        [ ! -e /usr/lib/emupool ] && [ ! -e /usr/bin/emupool ]
}
purges() { apt purge emupool && is_pristine; }

# systemd is not running here. So that the scripts believe it is, its mark is set, and systemctl is
# one that writes down what it is asked for. What it can answer from files, the real one does.
as_if_systemd_ran() {
    mkdir -p /run/systemd/system stub
    cat >stub/systemctl <<'EOF'
#!/bin/sh
echo "$@" >>/proof/asked
case "$*" in
--root=*) exec /usr/bin/systemctl "$@" ;;
*is-enabled*) exec /usr/bin/systemctl --root=/ is-enabled emupool.service ;;
esac
EOF
    chmod +x stub/systemctl
    options=(-o "DPkg::Path=/proof/stub:$PATH")
}
asked() { # what of the daemon's life was asked for since the last time
    local what
    what=$(grep -oE '\b(start|stop|restart|reload)\b emupool.service' asked | uniq)
    cat asked
    : >asked
    [ "$what" = "$1" ]
}
starts_it() { apt install "${old[0]}" >/dev/null && asked 'start emupool.service'; }
restarts_it() { apt install "${new[0]}" >/dev/null && asked 'restart emupool.service'; }
is_enabled() { [ -L /etc/systemd/system/multi-user.target.wants/emupool.service ]; }
stops_it() { apt remove emupool >/dev/null && asked 'stop emupool.service'; }
leaves_a_group_that_others_are_in() {
    useradd -r -G libvirt nova && apt purge emupool >/dev/null && getent group libvirt &&
        [ "$(getent group libvirt | cut -d: -f4)" = nova ] && userdel nova && groupdel libvirt &&
        is_pristine
}
takes_its_hook_along() {
    local link=/etc/libvirt/hooks/qemu.d/emupool
    apt install "${new[0]}" >/dev/null
    mkdir -p "${link%/*}" && ln -s /usr/share/emupool/hooks/qemu $link
    apt purge emupool >/dev/null && [ ! -L $link ] && getent group libvirt &&
        rm -r /etc/libvirt && groupdel libvirt && is_pristine
}

everything >pristine
attempt "it installs" installs "${old[0]}" 0.0.1
attempt "it has its user" has_its_user
attempt "check-config and topology answer" answers
attempt "plan answers from files" plans_from_files
attempt "demo shows the pipeline" demonstrates
attempt "status says that nobody answers" says_that_nobody_answers
attempt "of the host it takes libvirt's binding and nothing else" takes_only_libvirt_from_the_host
attempt "it came with its byte code: nobody wrote any since" needs_no_byte_code
attempt "its manual pages are there" has_its_pages
attempt "bash completes its commands" completes
attempt "an upgrade keeps configuration and state" upgrades
attempt "a removal keeps them too, and says what becomes of pins" removes
attempt "a purge leaves nothing" purges
as_if_systemd_ran
attempt "where systemd runs, it is started" starts_it
attempt "it is enabled" is_enabled
attempt "an upgrade restarts it, and does not stop it" restarts_it
attempt "a removal stops it" stops_it
attempt "a purge leaves a group that others are in" leaves_a_group_that_others_are_in
attempt "a purge takes the hook out, and leaves libvirt's group to libvirt" takes_its_hook_along
verdict
