# Shared by the scripts beside it: a scratch directory on tmpfs with a volume, and measuring.
# shellcheck shell=bash disable=SC2034,SC2154
# shellcheck source=SCRIPTDIR/../mount-scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../mount-scripts/common.sh"

[ -d "${BENCH_DIR:=/dev/shm}" ] || fail "$BENCH_DIR is missing: name another directory with BENCH_DIR"
dir=$(mktemp --directory --tmpdir="$BENCH_DIR")
volume=$dir/volume
mount=$dir/mnt
mkdir "$mount" "$dir/plain"
trap 'release "$dir"; rm --recursive --force --one-file-system "$dir"' EXIT

start() { "$pyramidfs" mount "$volume" "$mount" --create; }
stop() { "$pyramidfs" umount "$mount"; }
afresh() { # an empty volume
    if mountpoint --quiet "$mount"; then stop; fi
    rm --recursive --force "$volume"
    start
}
# Everything read from now on comes from the packs.
cold() {
    stop
    start
}

# timed LIST COMMAND…: appends to the array LIST how many seconds it took.
timed() {
    local -n list=$1
    local begin=$EPOCHREALTIME
    "${@:2}" >/dev/null
    list+=("$(calc "$EPOCHREALTIME - $begin")")
}
calc() { awk "BEGIN { printf \"%.4f\", $1 }"; }
round() { awk -v value="$2" "BEGIN { printf \"%.$1f\", value }"; }
# median LIST
median() {
    local -n values=$1
    printf '%s\n' "${values[@]}" | sort --general-numeric-sort | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

# figure NAME: one number of the volume's status.
figure() { "$pyramidfs" status "$volume" --json | sed -n "s/^ *\"$1\": \([0-9]*\).*/\1/p"; }
# peak: the most memory that the daemon has had, in MiB.
peak() { awk '/^VmHWM/ { printf "%.0f", $2 / 1024 }' "/proc/$(pgrep --full --oldest -- "mount $volume ")/status"; }

# random BYTES: bytes that are unique and do not compress.
random() { head --bytes="$1" /dev/urandom; }
row() { printf '| %s | %s | %s | %s |\n' "$@"; }
