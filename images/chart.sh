#!/bin/sh
# Packages the chart for a registry: images/chart.sh REGISTRY FOLDER. Its defaults name the images there, so
# that it installs with nothing set. HELM names the program.
set -eu
[ $# = 2 ] || { echo "Usage: images/chart.sh REGISTRY FOLDER" >&2; exit 64; }
registry=$1
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R charts/rlhf-operator "$work"
values=$work/rlhf-operator/values.yaml
sed -e "/^image:/,/^[a-z]/ s|^  registry: \"\"\$|  registry: \"$registry\"|" \
    -e "/^jobDefaults:/,/^[a-z]/ s|^  image: \"\"\$|  image: \"$registry/rlhf-trainer:$version\"|" \
    charts/rlhf-operator/values.yaml > "$values"
[ "$(grep -c -F "$registry" "$values")" = 2 ] || {
    echo "charts/rlhf-operator/values.yaml has no empty image.registry and jobDefaults.image to fill in." >&2
    exit 65
}
"${HELM:-helm}" package "$work/rlhf-operator" --version "$version" --app-version "$version" --destination "$2"
