#!/bin/sh
# Runs in the build stage of an image. `install.sh requirements EXTRA…` makes /opt/venv, an environment with
# the pinned requirements of these extras and without pip; `install.sh project` puts the project into /opt/rlhf,
# where that environment finds it. So a change of the code is a layer of its own, of less than a megabyte.
set -eu

here=$(dirname "$0")
tools=/tmp/tools
export DS_BUILD_OPS=0 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 PIP_DISABLE_PIP_VERSION_CHECK=1

# A registry of one's own and its authority come as secrets: they leave nothing in the image.
if [ -e /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi

# Of vLLM's pins there are none where its image does not have it.
constrained() {
    for pins in "$here"/../constraints*.txt; do set -- "$@" --constraint "$pins"; done
    "$tools/bin/python" -m pip "$@"
}

pip_install() {
    constrained --python /opt/venv/bin/python install --quiet --no-compile "$@"
}

# Compiled here, as nothing can be written where it runs; by hashes, so that a file's time is of no account.
# torch has files for newer Pythons, which do not compile and are not imported: no reason to fail.
compiled() {
    /opt/venv/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash "$1" || true
}

requirements() {
    python3 -m venv "$tools"
    python3 -m venv --without-pip /opt/venv
    "$tools/bin/python" "$here/requirements.py" "$here/../pyproject.toml" "$@" > /tmp/requirements
    if grep -q '^deepspeed' /tmp/requirements; then
        # DeepSpeed's build looks at the torch that is there, so it cannot be built in isolation from it.
        pip_install torch numpy ninja py-cpuinfo psutil setuptools wheel
        pip_install --no-build-isolation deepspeed
    fi
    pip_install --requirement /tmp/requirements
    compiled /opt/venv
    echo /opt/rlhf > "$(echo /opt/venv/lib/python3*/site-packages)/rlhf.pth"
}

project() {
    constrained install --quiet hatchling editables
    "$tools/bin/python" -m pip install --quiet --no-compile --no-deps --no-build-isolation \
        --target /opt/rlhf "$here/.."
    rm -rf /opt/rlhf/bin
    compiled /opt/rlhf
}

"$@"
