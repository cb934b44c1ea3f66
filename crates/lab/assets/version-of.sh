#!/bin/sh
# version-of.sh ROOT BINARY: major.minor of a QEMU inside a tree.
chroot "$1" "$2" -version | sed -n 's/^QEMU emulator version \([0-9]*\.[0-9]*\).*/\1/p'
