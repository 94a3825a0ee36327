#!/bin/sh
# Makes a lab of a new Debian, whose root directory is given: mmdebstrap calls it.
set -eu
root=$1
suite=$2

# The kernel of the backports beside the release's own.
chroot "$root" apt-get --quiet=2 --yes --no-install-recommends --target-release "$suite-backports" \
    install linux-image-cloud-amd64 >/dev/null

# All that these machines need before their root file system is there.
echo MODULES=list >"$root/etc/initramfs-tools/conf.d/lab"
printf '%s\n' virtio_pci virtio_blk ext4 >"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u -k all >/dev/null

echo lab >"$root/etc/hostname"
echo 127.0.0.1 localhost lab >"$root/etc/hosts"
chroot "$root" passwd --quiet --delete root
rm -f "$root/etc/libvirt/qemu/networks/autostart/default.xml" # there is no network

# What a compute node does by the clock would only take time from the scenarios.
chroot "$root" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer logrotate.timer \
    libvirt-guests.service systemd-random-seed.service systemd-pstore.service getty@tty1.service
chroot "$root" systemctl --quiet enable lab.service lab-cpus.service serial-getty@ttyS0.service
