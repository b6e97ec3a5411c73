#!/bin/sh
# Makes an image to build Quorate in, of the toolchain, compiler and libraries of this very system:
# for machines that cannot pull one.
#
#   deploy/base-image.sh [NAME]          # default: quorate-build-base
#   RUST_BASE=quorate-build-base docker-compose up --build --detach
#
# Needs a Debian-like system with rustc, cargo, cc, the static C library and tar. The image takes about
# 2 GB; it holds programs and certificates, nothing of the user's own directory.
set -eu

name="${1:-quorate-build-base}"
say() { echo "base-image: $*" >&2; }

for tool in rustc cargo cc strip tar docker; do
    command -v "$tool" >/dev/null || { say "needs $tool"; exit 1; }
done
sysroot="$(rustc --print sysroot)"
machine="$(cc -dumpmachine)"
[ -e "/usr/lib/$machine/libc.a" ] || { say "needs the static C library (Debian: libc6-dev)"; exit 1; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT INT TERM
list="$work/files"
: > "$list"
add() { # Adds what there is of the given paths.
    for path in "$@"; do
        if [ -e "/$path" ] || [ -L "/$path" ]; then echo "$path" >> "$list"; fi
    done
}

# The file hierarchy as Debian has it: some of these are links into usr.
add bin sbin lib lib32 lib64 libx32
add usr/bin usr/sbin usr/lib64 usr/lib/gcc usr/libexec/gcc usr/include usr/share/zoneinfo
add etc/alternatives etc/ld.so.conf etc/ld.so.conf.d etc/ld.so.cache etc/nsswitch.conf etc/debian_version
# Of the libraries what is needed to link: other programs' plugins are left out.
(cd / && find "usr/lib/$machine" -maxdepth 1 \( -type f -o -type l \)) >> "$list"
add "usr/lib/$machine/perl-base"

# The certificates this system trusts, in the place where programs look for them.
mkdir -p "$work/root/etc/ssl/certs" "$work/root/tmp" "$work/root/root"
chmod 1777 "$work/root/tmp"
for bundle in "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt; do
    if [ -n "$bundle" ] && [ -r "$bundle" ]; then
        cat "$bundle" > "$work/root/etc/ssl/certs/ca-certificates.crt"
        break
    fi
done
echo 'root:x:0:0:root:/root:/bin/sh' > "$work/root/etc/passwd"
echo 'root:x:0:' > "$work/root/etc/group"

say "packing $sysroot and the compiler into the image $name"
tar --create --file=- \
    --transform="s,^${sysroot#/},usr/local/rust,S" \
    --directory=/ --files-from="$list" "${sysroot#/}/bin" "${sysroot#/}/lib" \
    --directory="$work/root" etc tmp root |
    docker import \
        --change 'ENV PATH=/usr/local/rust/bin:/usr/bin:/bin:/usr/sbin:/sbin' \
        --change 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' \
        --change 'CMD ["/bin/sh"]' \
        - "$name" >/dev/null
say "done: RUST_BASE=$name"
