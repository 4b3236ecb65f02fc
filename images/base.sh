#!/bin/sh
# Makes a Debian base image with Python where no registry can be reached: as root, with debootstrap and buildah.
# Usage: images/base.sh [NAME]. DEBIAN_SUITE and DEBIAN_MIRROR say which Debian, and from where.
set -eu

name=${1:-localhost/debian-python:bookworm}
suite=${DEBIAN_SUITE:-bookworm}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

for program in debootstrap buildah; do
    command -v $program > /dev/null || {
        echo "images/base.sh needs $program. Try: apt-get install debootstrap buildah" >&2
        exit 69
    }
done
[ "$(id -u)" = 0 ] || { echo "images/base.sh: debootstrap needs root. Try: sudo $0 $*" >&2; exit 77; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$root" "$mirror" >&2

# As in Debian's slim images: no documentation, translations, package lists, or traces of the installation.
find "$root/usr/share/doc" -depth -type f ! -name copyright -delete
rm -rf "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/* \
    "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/* \
    "$root"/var/log/* "$root"/etc/resolv.conf "$root"/etc/hostname "$root"/etc/machine-id
find "$root" -xdev -name __pycache__ -type d -prune -exec rm -rf {} +
chmod 755 "$root"

container=$(buildah from scratch)
trap 'rm -rf "$root"; buildah rm "$container" > /dev/null' EXIT
cp -a "$root/." "$(buildah mount "$container")/"
buildah umount "$container" > /dev/null
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
buildah commit --quiet "$container" "$name" > /dev/null
echo "$name"
