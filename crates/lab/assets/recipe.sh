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

# mend_svm QEMU: changes four instructions that its emulation of SVM meets, as docs/adr/0010 says. One that is not there, or more than once, is left as it is.
mend_svm() {
    perl -0777 -i -pe '
        sub once {
            my ($what, $pattern, $places) = (@_, 0);
            $places++ while /$pattern/g;
            print STDERR "this QEMU $what in another way ($places places); left as it is\n" if $places != 1;
            return $places == 1;
        }

        # What is left in EVENTINJ of an event that was delivered (`and $0x7fffffff,%edx`, then the address) is nothing, not its type.
        my $delivered = qr/\x81\xe2\xff\xff\xff\x7f(.{0,8}?\x48\x8d\xb0\xa8\x00\x00\x00)/s;
        s/$delivered/\x81\xe2\x00\x00\x00\x00$1/ if once("delivers events", $delivered);

        # VMRUN delivers an injected interrupt itself, and stores its vector as the pending exception all the same
        # (`mov %esi,exception_index`, before exception_is_int and exception_next_eip): whatever then makes the CPU leave its loop
        # delivers it again, with interrupts off. Not stored (`nopw 0(%rax,%rax,1)`).
        my $injected = qr/\x89[\x80-\xbf].{4}(\xc7[\x80-\xbf].{4}\x00{4}\x48\xc7[\x80-\xbf].{4}\xff{4}\xf6\x05.{4}\x02\x0f\x85.{4}\xba\x01\x00{3})/s;
        s/$injected/\x66\x0f\x1f\x44\x00\x00$1/ if once("injects interrupts", $injected);

        # VMRUN marks a virtual interrupt beside threads that mark others (`orl $0x100,interrupt_request`, not atomic): theirs can be
        # lost, and the host stands until the next. By an atomic `lock orb $1` of the second byte, and a NOP of two.
        my $marked = qr/\x81([\x88-\x8b\x8d-\x8f])(.{3}\xff)\x00\x01\x00\x00/s;
        s/$marked/"\xf0\x80$1" . pack("l<", unpack("l<", $2) + 1) . "\x01\x66\x90"/e
            if once("marks virtual interrupts", $marked);

        # Whichever CPU loads the state of its FPU clears a flag of the first CPU (`andl $0xffffff7f,hflags2`, not atomic), and so brings back
        # what that has just cleared there, such as that it runs a guest. By an atomic `lock andb $0x7f` of the first byte, and a NOP of two.
        my $cleared = qr/(?<!\xf0)\x81([\xa0-\xa3\xa5-\xa7])(..\x00\x00)\x7f\xff\xff\xff/s;
        s/$cleared/\xf0\x80$1$2\x7f\x66\x90/ if once("clears a flag of the first CPU", $cleared);
    ' "$1"
}

# stage_vmm ROOT PREFIX BINARY FOLDER: a QEMU of ROOT that runs anywhere by its own loader, with its libraries, data and modules.
stage_vmm() {
    mkdir -p "$4/lib" "$4/share"
    # What it does not find among its own modules it would take from a QEMU installed on this machine, and refuse as foreign.
    sed 's,/usr/lib/x86_64-linux-gnu/qemu,/usr/lib/x86_64-linux-gnu/none,g' "$1$3" >"$4/qemu-system-x86_64"
    mend_svm "$4/qemu-system-x86_64"
    chmod 755 "$4/qemu-system-x86_64"
    chroot "$1" ldd "$3" | sed -n 's,.* => \(/[^ ]*\) .*,\1,p; s,^\t\(/lib[^ ]*\) .*,\1,p' | sort -u |
        while read -r library; do cp -L "$1$library" "$4/lib/"; done
    cp -rL "$1$2/share/qemu" "$1$2/share/seabios" "$4/share/"
    cp -r "$1$2/lib/x86_64-linux-gnu/qemu" "$4/modules"
}
