# Shared by the scripts beside it, which source it.
# shellcheck shell=bash disable=SC2034
set -euo pipefail
shopt -s inherit_errexit
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
pyramidfs=${PYRAMIDFS:-${CARGO_TARGET_DIR:-$root/target}/release/pyramidfs}

# Ends the script with one line that says what to do.
fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# need COMMAND PACKAGE: installs the package when the command is missing, if that can be done.
need() {
    local as_root=()
    if command -v "$1" >/dev/null; then return; fi
    [ "$(id --user)" = 0 ] || as_root=(sudo --non-interactive)
    echo "installing $2 (for $1)"
    if ! "${as_root[@]}" apt-get install --yes --no-install-recommends "$2" >/dev/null 2>&1; then
        "${as_root[@]}" apt-get update >/dev/null 2>&1 || true
        "${as_root[@]}" apt-get install --yes --no-install-recommends "$2" >/dev/null 2>&1 || true
    fi
    command -v "$1" >/dev/null || fail "$1 is missing: install the package $2, then run this again"
}

# What building takes.
need_rust() {
    command -v cargo >/dev/null || fail "Rust is missing: install it as https://rustup.rs says, then run this again"
    need cc gcc
}

# What mounting takes: the device, and for those who are not root the helper.
need_fuse() {
    [ -e /dev/fuse ] || { [ "$(id --user)" = 0 ] && modprobe fuse 2>/dev/null; } || true
    [ -e /dev/fuse ] || fail "/dev/fuse is missing: 'modprobe fuse' loads it; a container is started with --device /dev/fuse --cap-add SYS_ADMIN"
    if [ "$(id --user)" != 0 ]; then
        need fusermount3 fuse3
        { [ -r /dev/fuse ] && [ -w /dev/fuse ]; } || fail "/dev/fuse is closed to $(id --user --name): 'sudo chmod 666 /dev/fuse' opens it"
    fi
}

# release DIRECTORY: takes off every mount below it, also a busy or a dead one.
release() {
    local mount
    grep --only-matching --fixed-strings " $1/" /proc/self/mountinfo >/dev/null || return 0
    awk -v below="$1/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | sort --reverse |
        while read -r mount; do umount --lazy "$mount" 2>/dev/null || fusermount3 -u -z "$mount"; done
}
