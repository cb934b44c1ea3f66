#!/bin/sh
# Customize step of the virtual host's image: kernels, VMMs, small guest, then the disk image itself.
# usage: customize.sh ROOT OUTPUT ASSETS BACKPORTS
set -eu
root=$1 out=$2 assets=$3 backports=$4
. "$assets/recipe.sh"
debs=$root/lab-debs

stable=$(kernel_of)
newer=$(kernel_of "$backports")
[ -n "$stable" ] && [ -n "$newer" ] && [ "$stable" != "$newer" ] || {
    echo "the package source offers no two kernels (stable '$stable', backports '$newer')" >&2
    exit 1
}
kernel_debs "$debs/kernel" "$stable"
kernel_debs "$debs/kernel" "$newer"
download "$debs/vmm" "qemu-system-x86/$backports" "qemu-system-common/$backports" "qemu-system-data/$backports" \
    "seabios/$backports" ipxe-qemu

for deb in "$debs"/kernel/*.deb; do dpkg-deb -x "$deb" "$root"; done
mkdir "$root/lab-vmm"
for deb in "$debs"/vmm/*.deb; do dpkg-deb -x "$deb" "$root/lab-vmm"; done

# Both QEMUs with all they need, for the outside. The older one runs the virtual hosts: before 8.1 an emulated CPU may run code that
# another one has just rewritten, and a kernel that patches itself dies of it ("Oops: int3"). Both are there for tests without a host.
stage_vmm "$root" /usr /usr/bin/qemu-system-x86_64 "$out/outer"
stage_vmm "$root" /lab-vmm/usr /lab-vmm/usr/bin/qemu-system-x86_64 "$out/outer-newer"
cp -L "$root/usr/share/OVMF/OVMF_CODE_4M.fd" "$root/usr/share/OVMF/OVMF_VARS_4M.fd" "$out/outer/share/"

# Debian's QEMU looks for data and modules at fixed places only, where the other version's lie. So the newer one gets /opt instead
# of /usr, written into its binary; only the head may change, as the linker lets strings share their ends.
vmm=$root/usr/lib/fermata-lab/vmm
newer_vmm=$("$assets/version-of.sh" "$root" /lab-vmm/usr/bin/qemu-system-x86_64)
stable_vmm=$("$assets/version-of.sh" "$root" /usr/bin/qemu-system-x86_64)
mkdir -p "$vmm/$stable_vmm/bin"
ln -s /usr/bin/qemu-system-x86_64 "$vmm/$stable_vmm/bin/qemu-system-x86_64"
mkdir -p "$vmm/$newer_vmm/bin"
LC_ALL=C sed 's,/usr/share/qemu,/opt/share/qemu,g; s,/usr/share/seabios,/opt/share/seabios,g
    s,/usr/lib/x86_64-linux-gnu/qemu,/opt/lib/x86_64-linux-gnu/qemu,g' \
    "$root/lab-vmm/usr/bin/qemu-system-x86_64" >"$vmm/$newer_vmm/bin/qemu-system-x86_64"
chmod 755 "$vmm/$newer_vmm/bin/qemu-system-x86_64"
mkdir -p "$root/opt/share" "$root/opt/lib/x86_64-linux-gnu"
mv "$root/lab-vmm/usr/share/qemu" "$root/lab-vmm/usr/share/seabios" "$root/opt/share/"
mv "$root/lab-vmm/usr/lib/x86_64-linux-gnu/qemu" "$root/opt/lib/x86_64-linux-gnu/"
rm -rf "$root/lab-vmm" "$debs"
echo "$stable_vmm $newer_vmm" >"$out/vmms"

: >"$out/kernels"
for release in "$stable" "$newer"; do
    modules=$root/usr/lib/modules/$release
    [ -e "$root/boot/vmlinuz-$release" ] || mv "$modules/vmlinuz" "$root/boot/vmlinuz-$release"
    (cd "$modules/kernel/drivers" && rm -rf gpu media infiniband iio staging hid input usb scsi/aacraid ata net/wireless \
        net/ethernet firewire comedi isdn mmc)
    find "$modules" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 -P 2 xz -d -T 1
    chroot "$root" depmod "$release"

    tree=$out/initramfs-$release
    mkdir -p "$tree/bin" "$tree/dev" "$tree/proc" "$tree/root"
    cp "$root/usr/bin/busybox" "$tree/bin/"
    install -m 755 "$assets/host/initramfs-init" "$tree/init"
    stage_modules "$root" "$release" "$tree" virtio_pci virtio_blk virtio_net ext4
    pack_cpio "$tree" "$root/boot/initrd.img-$release"
    rm -rf "$tree"
    cp "$root/boot/vmlinuz-$release" "$root/boot/initrd.img-$release" "$out/"
    echo "$release" >>"$out/kernels"
done

# The small guest: same stable kernel, busybox, the guest agent with its libraries; the probe is added outside.
guest=$out/guest-small
mkdir -p "$guest/bin" "$guest/dev" "$guest/proc" "$guest/sys" "$guest/run" "$guest/tmp" "$guest/var" "$guest/etc"
ln -s ../run "$guest/var/run"
cp "$root/usr/bin/busybox" "$root/usr/sbin/qemu-ga" "$guest/bin/"
chroot "$root" ldd /usr/sbin/qemu-ga | sed -n 's,.* \(/lib[^ ]*\) (.*,\1,p; s,^\t\(/lib[^ ]*\) (.*,\1,p' | sort -u |
    while read -r library; do
        mkdir -p "$guest$(dirname "$library")"
        cp -L "$root$library" "$guest$library"
    done
stage_modules "$root" "$stable" "$guest" virtio_pci virtio_blk virtio_net virtio_rng ptp_kvm ptp_vmclock
install -m 755 "$assets/guest/init" "$guest/init"
mkdir -p "$guest/sbin"
install -m 755 "$assets/guest/shutdown" "$guest/sbin/shutdown"
# The guest agent calls it after it set the time.
ln -s /bin/busybox "$guest/sbin/hwclock"
pack_cpio "$guest" "$out/guest-small.initrd"
rm -rf "$guest"

# A host that boots fast and keeps quiet.
mkdir -p "$root/etc/systemd/system-generators"
ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-ssh-generator"
ln -sf /dev/null "$root/etc/systemd/system/systemd-firstboot.service"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    getty@tty1.service systemd-timesyncd.service systemd-networkd.service systemd-networkd-wait-online.service \
    systemd-update-utmp.service systemd-hwdb-update.service ldconfig.service systemd-machine-id-commit.service \
    systemd-pstore.service ssh.socket systemd-random-seed.service systemd-tpm2-setup.service systemd-tpm2-setup-early.service \
    systemd-network-generator.service systemd-boot-random-seed.service modprobe@drm.service rpc-gssd.service \
    systemd-udev-settle.service keyboard-setup.service console-setup.service serial-getty@ttyS0.service \
    nftables.service ndctl-monitor.service systemd-rfkill.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
cp -R "$assets/host/tree/." "$root/"
mkdir -p "$root/var/lib/fermata-lab/images" "$root/root/.ssh"
chmod 700 "$root/root/.ssh"
for unit in fermata-lab-network.service fermata-lab-kvm.service fermata-lab-ready.service fermata-lab-sink.service; do
    ln -sf "/etc/systemd/system/$unit" "$root/etc/systemd/system/multi-user.target.wants/$unit"
done
# VMs come first after a change of the kernel, and are of use with the network only.
mkdir -p "$root/etc/systemd/system/fermata-first.target.wants" "$root/etc/fermata/first.d"
ln -sf /usr/lib/fermata-lab/network "$root/etc/fermata/first.d/network"
ln -sf ../fermata-lab-network.service "$root/etc/systemd/system/fermata-first.target.wants/"
passwd --root "$root" --delete root >/dev/null
rm -rf "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale" "$root"/var/lib/apt/lists/* \
    "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/etc/ssh/ssh_host_* "$root/etc/resolv.conf"
rm -f "$root/etc/machine-id"
touch "$root/etc/machine-id"

make_ext4 "$root" "$out/host.ext4" 6G fermata-host
