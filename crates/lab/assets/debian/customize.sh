#!/bin/sh
# Customize step of the Debian guest: services, then its root file system and the parts that both firmwares boot from.
# usage: customize.sh ROOT OUTPUT ASSETS
set -eu
root=$1 out=$2 assets=$3
. "$assets/recipe.sh"

release=$(basename "$root"/boot/vmlinuz-*)
release=${release#vmlinuz-}
ln -sf "vmlinuz-$release" "$root/boot/vmlinuz"
ln -sf "initrd.img-$release" "$root/boot/initrd.img"
# The usual initramfs, with the few drivers that a guest of this project needs: a general one takes an emulated CPU a minute.
printf 'MODULES=list\nCOMPRESS=lz4\nRESUME=none\n' >"$root/etc/initramfs-tools/conf.d/fermata-lab"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u -k "$release" >/dev/null 2>&1

printf 'debian\n' >"$root/etc/hostname"
printf '127.0.0.1 localhost debian\n' >"$root/etc/hosts"
printf 'LABEL=fermata-debian / ext4 noatime 0 1\n' >"$root/etc/fstab"
printf 'ptp_kvm\nvirtio_net\n' >"$root/etc/modules-load.d/fermata-lab.conf"
# The host's clock through the hypervisor: what an operator would set up for guests without a network time source.
printf 'refclock PHC /dev/ptp0 poll 2 dpoll -2\nmakestep 0.1 -1\ndriftfile /var/lib/chrony/drift\n' >"$root/etc/chrony/chrony.conf"
touch "$root/etc/cloud/cloud-init.disabled" 2>/dev/null || true
cp -R "$assets/debian/tree/." "$root/"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf /etc/systemd/system/fermata-probe.service "$root/etc/systemd/system/multi-user.target.wants/fermata-probe.service"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-firstboot.service systemd-pstore.service systemd-tpm2-setup.service systemd-tpm2-setup-early.service \
    systemd-boot-random-seed.service man-db.timer pcscd.service walinuxagent.service ssh.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
passwd --root "$root" --delete root >/dev/null

# One configuration for both firmwares, inside the images themselves.
cat >"$out/grub.cfg" <<END
search --no-floppy --label fermata-debian --set=root
linux /boot/vmlinuz root=LABEL=fermata-debian ro console=ttyS0 quiet net.ifnames=0
initrd /boot/initrd.img
boot
END
cp "$out/grub.cfg" "$root/grub-lab.cfg"
chroot "$root" grub-mkimage -O i386-pc -c /grub-lab.cfg -p /boot/grub -o /grub-core.img \
    biosdisk part_msdos ext2 linux search search_label
chroot "$root" grub-mkimage -O x86_64-efi -c /grub-lab.cfg -p /boot/grub -o /grub.efi \
    part_msdos ext2 fat linux search search_label
mv "$root/grub-core.img" "$out/core.img"
mv "$root/grub.efi" "$out/grub.efi"
cp "$root/usr/lib/grub/i386-pc/boot.img" "$out/boot.img"

rm -rf "$root/grub-lab.cfg" "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
(cd "$root/usr/lib/modules/$release/kernel/drivers" && rm -rf gpu media infiniband iio staging hid scsi net/wireless net/ethernet)
chroot "$root" depmod "$release"
rm -f "$root/etc/machine-id"
touch "$root/etc/machine-id"
make_ext4 "$root" "$out/root.ext4" 3G fermata-debian
