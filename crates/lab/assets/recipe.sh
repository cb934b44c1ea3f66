# Functions shared by the recipes: kernels, modules and small initramfs trees from Debian packages.
# Sourced by the recipes; apt of the outside works on the new tree through MMDEBSTRAP_APT_CONFIG.

export APT_CONFIG=${MMDEBSTRAP_APT_CONFIG:?run by mmdebstrap}

# download DIRECTORY PACKAGE[/SUITE]...: Debian packages without installing them.
download() {
    dir=$1
    shift
    mkdir -p "$dir"
    chmod 777 "$dir"
    (cd "$dir" && apt-get -q -q -o APT::Sandbox::User=root download "$@")
}

# kernel_of [SUITE]: release (uname -r) of the cloud kernel, of a suite that is not the default.
kernel_of() {
    apt-cache ${1:+-o "APT::Default-Release=$1"} depends linux-image-cloud-amd64 |
        sed -n 's/^ *Depends: linux-image-\([0-9].*\)$/\1/p' | head -n 1
}

# kernel_debs DIRECTORY RELEASE: the kernel's packages; newer ones are split.
kernel_debs() {
    set -- "$1" "$2" "linux-image-$2"
    for part in base binary modules; do
        if [ -n "$(apt-cache show "linux-$part-$2" 2>/dev/null)" ]; then
            set -- "$@" "linux-$part-$2"
        fi
    done
    dir=$1
    shift 2
    download "$dir" "$@"
}

# module_closure ROOT RELEASE NAME...: module files in load order, without those built in or absent.
module_closure() {
    root=$1 release=$2
    shift 2
    for name in "$@"; do
        chroot "$root" modprobe -S "$release" --show-depends "$name" 2>/dev/null || true
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

# stage_modules ROOT RELEASE TREE NAME...: copies modules into TREE/modules and lists them in load order.
stage_modules() {
    root=$1 release=$2 tree=$3
    shift 3
    mkdir -p "$tree/modules"
    : >"$tree/modules/order"
    module_closure "$root" "$release" "$@" | while read -r file; do
        cp "$root$file" "$tree/modules/"
        basename "$file" >>"$tree/modules/order"
    done
}

# pack_cpio TREE FILE: an uncompressed initramfs; nothing is faster to unpack.
pack_cpio() {
    (cd "$1" && find . | LC_ALL=C sort | cpio --quiet --reproducible -R 0:0 -H newc -o) >"$2"
}

# make_ext4 ROOT FILE SIZE LABEL: a disk image of a tree, without what is mounted inside it (proc, sys, dev).
make_ext4() {
    truncate -s "$3" "$2"
    mkdir -p "$2.view"
    unshare --mount sh -ec 'mount --bind "$1" "$2.view"
        mkfs.ext4 -q -F -L "$3" -O ^metadata_csum -E lazy_itable_init=1,root_owner=0:0 -m 0 -d "$2.view" "$2"' \
        sh "$1" "$2" "$4"
    rmdir "$2.view"
}

# forget_delivered_events QEMU: mends its emulation of SVM, as docs/adr/0010 says: what is left in the VMCB of an event that was
# delivered (`and $0x7fffffff,%edx`, then the address of EVENTINJ) is nothing, not its type. Another build is left as it is.
forget_delivered_events() {
    perl -0777 -i -pe '
        my $delivered = qr/\x81\xe2\xff\xff\xff\x7f(.{0,8}?\x48\x8d\xb0\xa8\x00\x00\x00)/s;
        my $places = () = /$delivered/g;
        if ($places == 1) { s/$delivered/\x81\xe2\x00\x00\x00\x00$1/ }
        else { print STDERR "this QEMU delivers events in another way ($places places); left as it is\n" }
    ' "$1"
}

# stage_vmm ROOT PREFIX BINARY FOLDER: a QEMU of ROOT that runs anywhere by its own loader, with its libraries, data and modules.
stage_vmm() {
    mkdir -p "$4/lib" "$4/share"
    # What it does not find among its own modules it would take from a QEMU installed on this machine, and refuse as foreign.
    sed 's,/usr/lib/x86_64-linux-gnu/qemu,/usr/lib/x86_64-linux-gnu/none,g' "$1$3" >"$4/qemu-system-x86_64"
    forget_delivered_events "$4/qemu-system-x86_64"
    chmod 755 "$4/qemu-system-x86_64"
    chroot "$1" ldd "$3" | sed -n 's,.* => \(/[^ ]*\) .*,\1,p; s,^\t\(/lib[^ ]*\) .*,\1,p' | sort -u |
        while read -r library; do cp -L "$1$library" "$4/lib/"; done
    cp -rL "$1$2/share/qemu" "$1$2/share/seabios" "$4/share/"
    cp -r "$1$2/lib/x86_64-linux-gnu/qemu" "$4/modules"
}
