# The work that the script 'programs' does in a mount, one function for each step. Sourced by it.
# In a step a failing command does not end the function by itself: hence '&&' between them.
# shellcheck shell=bash disable=SC2154
# The source of the kernel as Debian packs it, if a mirror can be reached; otherwise /usr/share.
fetch() {
    local package
    package=$(apt-cache --names-only search '^linux-source-[0-9.]+$' | awk 'NR == 1 { print $1 }')
    if [ "$package" ] && (cd "$dir" && apt-get download "$package"); then
        dpkg-deb --extract "$dir"/*.deb "$dir/deb" && mv "$dir"/deb/usr/src/*.tar.* "$dir/archive"
    else
        tar --create --file="$dir/archive" --directory=/usr share
    fi
}
unpack() { mkdir "$mount/$1" && tar --extract --file="$ARCHIVE" --directory="$mount/$1"; }
same_trees() { diff --recursive --brief --no-dereference "$mount/one" "$mount/two"; }
repository() {
    git init --quiet "$dir/repo" && cp --archive "$root"/{src,docs,Cargo.toml} "$dir/repo" && git -C "$dir/repo" add --all &&
        git -C "$dir/repo" -c user.name=x -c user.email=x@x commit --quiet --message=all && git clone --no-local "$dir/repo" "$mount/repo"
}
project() {
    (cd "$mount" && cargo new --vcs=none --lib part && cargo new --vcs=none hello && cd hello &&
        cargo add --offline --path ../part && echo 'fn main() { println!("{}", part::add(40, 2)); }' >src/main.rs && cargo build --offline)
}
database() { for mode in delete wal; do sqlite3 "$mount/$mode.db" "PRAGMA journal_mode = $mode;
    CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT); CREATE INDEX i ON t (text);
    WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 100000) INSERT INTO t SELECT x, hex(randomblob(40)) FROM n;
    DELETE FROM t WHERE id % 3 = 0; VACUUM; UPDATE t SET text = hex(randomblob(30)) WHERE id % 5 = 0;" || return; done; }
intact() { for mode in delete wal; do [ "$(sqlite3 "$mount/$mode.db" 'PRAGMA integrity_check')" = ok ] || return; done; }
mirror() {
    cp --archive "$root/src" "$dir/plain" && ln "$dir/plain/src/lib.rs" "$dir/plain/hard" && ln --symbolic hard "$dir/plain/soft" &&
        { setfattr --name=user.note --value=kept "$dir/plain/hard" || true; } && rsync -aHX "$dir/plain/" "$mount/mirror/" && rsync -aHX "$mount/mirror/" "$dir/back/"
}
differs() { rsync -aHX --checksum --delete --dry-run --itemize-changes "$@"; }
mirrored() { [ -z "$(differs "$dir/plain/" "$mount/mirror/")" ] && [ -z "$(differs "$mount/mirror/" "$dir/back/")" ]; }
job() {
    fio --name=job --directory="$mount" --size=256M --rw=randwrite --bsrange=512-128k --ioengine=psync --randseed=7 \
        --verify=sha256 --verify_fatal=1 --verify_state_save=0 --end_fsync=1 "$@"
}
