#!/bin/sh
# Builds an image: images/build.sh operator|trainer. With docker where its daemon answers, else with buildah.
# The environment sets: IMAGE (its name and tag), BASE (the image it stands on), BUILDER (docker or buildah),
# PIP_CONF and CA_BUNDLE (files: pip's configuration and authorities of a registry of one's own; they leave
# nothing in the image), SOURCE (where the code is published), EXTRAS (of the trainer's image), PUSH (not empty:
# docker publishes it at once, with its bill of materials and provenance).
set -eu
cd "$(dirname "$0")/.."

case ${1:-} in
    operator) file=operator/Dockerfile ;;
    trainer) file=trainer_image/Dockerfile ;;
    *) echo "Usage: images/build.sh operator|trainer" >&2; exit 64 ;;
esac

answers() {
    case $1 in
        docker) docker info > /dev/null 2>&1 ;;
        buildah) buildah --version > /dev/null 2>&1 ;;
        *) echo "BUILDER is $1; it may be docker or buildah." >&2; exit 64 ;;
    esac
}

if [ -n "${BUILDER:-}" ]; then
    answers "$BUILDER" || { echo "$BUILDER does not answer: install it, or start its daemon." >&2; exit 69; }
elif answers docker; then
    BUILDER=docker
elif answers buildah; then
    BUILDER=buildah
else
    echo "Images are built by docker or buildah, and neither answers. Start docker, or: apt-get install buildah" >&2
    exit 69
fi

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git describe --always --abbrev=40 --exclude='*' --dirty 2> /dev/null || true)
moment=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 0)}

set -- --file "$file" --tag "${IMAGE:-rlhf-$1:$version}" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "SOURCE=${SOURCE:-}"
[ -z "${BASE:-}" ] || set -- "$@" --build-arg "BASE=$BASE"
[ -z "${EXTRAS:-}" ] || set -- "$@" --build-arg "EXTRAS=$EXTRAS"
[ -z "${PIP_CONF:-}" ] || set -- "$@" --secret "id=pip.conf,src=$PIP_CONF"
[ -z "${CA_BUNDLE:-}" ] || set -- "$@" --secret "id=ca.crt,src=$CA_BUNDLE"

# The same files and times give the same image.
case $BUILDER${PUSH:+ push} in
    docker) exec docker build "$@" --build-arg "SOURCE_DATE_EPOCH=$moment" . ;;
    "docker push")
        exec docker buildx build "$@" --build-arg "SOURCE_DATE_EPOCH=$moment" \
            --output type=image,push=true,rewrite-timestamp=true --sbom=true --provenance=mode=max . ;;
    "buildah push") echo "PUSH is for docker. With buildah: build, then buildah push." >&2; exit 64 ;;
    buildah) exec buildah build --isolation "${BUILDAH_ISOLATION:-chroot}" --timestamp "$moment" "$@" . ;;
esac
