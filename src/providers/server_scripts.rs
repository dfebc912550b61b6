//! What is run on a database server's machine, as fixed text for `sh`: whatever differs comes as `$1`, `$2`… and is
//! never part of the text. Linux, with GNU or busybox tools.

/// `$1` the data directory, `$2` the programs' or nothing, then what the script itself wants. It works from within the
/// data directory, so that who looks sees it.
pub const PRELUDE: &str = r#"
set -u
data=$1; bin=$2; shift 2
cd "$data" 2>/dev/null || { echo "there is no data directory $data that $(id -un) can enter" >&2; exit 96; }
data=$(pwd -P)
if [ -z "$bin" ]; then
  version=; read -r version 2>/dev/null < PG_VERSION
  for place in "/usr/lib/postgresql/$version/bin" "/usr/pgsql-$version/bin"; do
    if [ -x "$place/pg_ctl" ]; then bin=$place; break; fi
  done
  if [ -z "$bin" ]; then place=$(command -v pg_ctl) && bin=$(dirname "$place"); fi
fi
if [ ! -x "$bin/pg_ctl" ]; then echo "pg_ctl is not to be found; say where, as bin" >&2; exit 97; fi
"#;

/// A process whose working directory is the data directory belongs to its server: a backend whose postmaster was
/// killed, too. `-ef` compares the directories themselves. An outage may be waiting for it, so next to nothing is started
/// for it but `pg_controldata`, whose lines stand as they are.
pub const LOOK: &str = r#"
cd /
for process in /proc/[0-9]*; do
  if [ "$process/cwd" -ef "$data" ] && [ "${process#/proc/}" != "$$" ]; then
    name=; read -r name 2>/dev/null < "$process/comm" || continue
    echo "process ${process#/proc/} $name"
  fi
done
master=; memory=
{ read -r master; read -r _; read -r _; read -r _; read -r _; read -r _; read -r memory; } 2>/dev/null < "$data/postmaster.pid"
if [ -n "$master" ] && [ "/proc/$master/cwd" -ef "$data" ]; then echo "postmaster"; fi
memory=${memory##* }
if [ -n "$memory" ]; then
  while read -r _ id _ _ _ _ attached _; do
    if [ "$id" = "$memory" ]; then echo "attached $attached"; fi
  done 2>/dev/null < /proc/sysvipc/shm
fi
if [ -e "$data/standby.signal" ]; then echo "standby"; fi
if [ -e "$data/patroni.dynamic.json" ]; then echo "patroni"; fi
if [ -w "${data%/*}/" ]; then echo "beside"; fi
LC_ALL=C exec "$bin/pg_controldata" -D "$data"
"#;

pub const READ: &str = r#"
if [ -e "$1" ]; then echo yes; cat "$1"; else echo no; fi
"#;

/// The content comes by standard input.
pub const WRITE: &str = r#"
umask 077
cat > "$1.muster-new" || exit 1
if [ -e "$1" ]; then chmod --reference="$1" "$1.muster-new"; fi
sync "$1.muster-new" 2>/dev/null || sync
mv -f "$1.muster-new" "$1" && { sync . 2>/dev/null || sync; }
"#;

/// The lines come by standard input. In one go, since an outage may be waiting for it.
pub const MAKE_STANDBY: &str = r#"
umask 077
auto=postgresql.auto.conf
{ sed '/^[[:space:]]*primary_\(conninfo\|slot_name\)[[:space:]=]/d' "$auto" 2>/dev/null; cat; } > "$auto.muster-new" || exit 1
if [ -e "$auto" ]; then chmod --reference="$auto" "$auto.muster-new"; fi
if ! cmp -s "$auto" "$auto.muster-new"; then mv -f "$auto.muster-new" "$auto" || exit 1; else rm -f "$auto.muster-new"; fi
: > standby.signal || exit 1
sync "$auto" standby.signal . 2>/dev/null || sync
"#;

pub const REMOVE: &str = r#"
rm -f "$1" && { sync . 2>/dev/null || sync; }
"#;

/// A server that was killed leaves its pid file, and the next will not start while any process bears that number, were it
/// one that has ended and that nobody has taken notice of. It is taken away only where nothing works in the directory.
pub const CLEAR: &str = r#"
cd /
for process in /proc/[0-9]*; do
  if [ "$process/cwd" -ef "$data" ] && [ "${process#/proc/}" != "$$" ]; then exit 0; fi
done
rm -f "$data/postmaster.pid"
"#;

pub const START: &str = r#"
exec "$bin/pg_ctl" -D "$data" -l "$data/muster-start.log" -w -t 60 start
"#;

/// `$1`: fast, immediate. It is not waited for.
pub const STOP: &str = r#"
exec "$bin/pg_ctl" -D "$data" -m "$1" -W stop
"#;

/// The postmaster first, which would start others.
pub const KILL: &str = r#"
cd /
read -r master 2>/dev/null < "$data/postmaster.pid" || master=
if [ -n "$master" ] && [ "/proc/$master/cwd" -ef "$data" ]; then kill -KILL "$master" 2>/dev/null; fi
for process in /proc/[0-9]*; do
  if [ "$process/cwd" -ef "$data" ] && [ "${process#/proc/}" != "$$" ]; then kill -KILL "${process#/proc/}" 2>/dev/null; fi
done
exit 0
"#;

/// Beside the directory: `pg_rewind` removes what the source does not have.
pub const KEEP: &str = r#"
own="$data.muster-own"
umask 077
if [ -e "$own/complete" ]; then exit 0; fi
rm -rf "$own" && mkdir "$own" || exit 1
for file in postgresql.conf pg_hba.conf pg_ident.conf; do
  if [ -e "$file" ]; then cp -p "$file" "$own/" || exit 1; fi
done
# What stood before a fence was closed counts.
if [ -e pg_hba.conf.muster-open ]; then cp -p pg_hba.conf.muster-open "$own/pg_hba.conf" || exit 1; fi
: > "$own/complete"
"#;

pub const RESTORE: &str = r#"
own="$data.muster-own"
if [ ! -e "$own/complete" ]; then exit 0; fi
for file in postgresql.conf pg_hba.conf pg_ident.conf; do
  if [ -e "$own/$file" ]; then cp -p "$own/$file" "$data/$file" || exit 1; fi
done
rm -f "$data/pg_hba.conf.muster-open"
sync; rm -rf "$own"
"#;

/// `$1` the source without its password, which is the first line of standard input.
pub const REWIND: &str = r#"
IFS= read -r PGPASSWORD; export PGPASSWORD
rm -f postmaster.pid
LC_ALL=C exec "$bin/pg_rewind" -D "$data" --source-server="$1"
"#;

/// Where the tablespaces of a copy go. Three arguments for each: where the source has it, where it goes, and where else if something is
/// there already (or nothing). What a copy had begun to fill that was cut off is on record beside the directory, for as long as
/// the unfinished directory is there, and counts as free.
const PLACES: &str = r#"
new="$data.muster-new"; begun="$data.muster-places"
ours() { [ -d "$new" ] && [ -e "$begun" ] && grep -Fxq -e "$1" "$begun"; }
free() { ours "$1" || [ ! -e "$1" ] || { [ -d "$1" ] && [ -z "$(ls -A "$1" 2>&1)" ]; }; }
place_of() { if free "$2"; then echo "$2"; elif [ -n "$3" ] && free "$3"; then echo "$3"; fi; }
mapped() { printf '%s' "$1" | sed 's/=/\\=/g'; }
full() { echo "the tablespace that the primary has in $1 cannot go to $2: something is there already"; }
"#;

/// Names those that cannot go anywhere; nothing is changed.
#[must_use]
pub fn no_room() -> String {
    [
        PLACES,
        r#"
while [ $# -ge 3 ]; do
  if [ -z "$(place_of "$1" "$2" "$3")" ]; then full "$1" "$2"; fi
  shift 3
done
"#,
    ]
    .concat()
}

/// `$1` host, `$2` port, `$3` user, `$4` the name that the old directory is kept under, then the tablespaces. The old directory is
/// moved away only when the new one is whole; its tablespaces stay where they are, and are its own. `pg_basebackup` works from
/// within the old one, as all that is begun here: where this shell was killed, the next attempt sees it and waits. It leaves
/// behind what it had filled of tablespaces when it is cut off: what is on record as such is emptied first. The record is gone
/// before the new directory takes its place, so that nobody ever takes what serves for such a rest.
#[must_use]
pub fn copy() -> String {
    [
        PLACES,
        r#"
IFS= read -r PGPASSWORD; export PGPASSWORD
host=$1; port=$2; user=$3; old="$data.$4"; shift 4
if [ -e "$old" ]; then echo "$old is there already" >&2; exit 1; fi
places=
for tablespace in $(seq $(($# / 3))); do
  place=$(place_of "$1" "$2" "$3")
  if [ -z "$place" ]; then full "$1" "$2" >&2; exit 4; fi
  places="$places$place
"
  from=$1; shift 3
  set -- "$@" -T "$(mapped "$from")=$(mapped "$place")"
done
if [ -d "$new" ] && [ -e "$begun" ]; then
  while IFS= read -r place; do rm -rf "$place" 2>/dev/null; done < "$begun"
fi
rm -rf "$begun" "$new" && mkdir -m 700 "$new" || exit 1
if [ -n "$places" ]; then printf '%s' "$places" > "$begun" && { sync "$begun" 2>/dev/null || sync; } || exit 1; fi
LC_ALL=C "$bin/pg_basebackup" -D "$new" -h "$host" -p "$port" -U "$user" -w -X stream -c fast "$@" >&2 || exit 1
rm -f "$begun" && sync && cd / && mv "$data" "$old" && mv "$new" "$data" || exit 1
sync; echo "$old"
"#,
    ]
    .concat()
}

/// `$1` timeline, `$2` from where. It fails where the log ends, as it always does; log that is missing or damaged before
/// its end is another matter, and ends with 3. Then later segments are there: such as were written, whose first page bears
/// their own address, and not such as are kept to be used again. (What `pg_waldump` names where it fails is the last record
/// that is good. Of one that goes on in the next segment a crash may have left the beginning, so that segment alone says
/// nothing.) A history that parts within a segment was in that segment. The first and the last segment are named, since
/// `pg_waldump` otherwise learns their length from whichever it comes upon: one that is all zeros, made for later, ends it.
pub const DUMP: &str = r#"
size=$(LC_ALL=C "$bin/pg_controldata" -D "$data" | sed -n 's/^Bytes per WAL segment: *//p')
if [ -z "$size" ]; then echo "pg_controldata does not say how long a segment of the log is" >&2; exit 1; fi
segment() { printf '%08X%08X%08X' "$1" "$((0x${2%/*}))" "$((0x${2#*/} / size))"; }
first=$(segment "$1" "$2"); range=
if [ -e "$data/pg_wal/$first" ]; then
  for last in "$data/pg_wal/${first%????????????????}"????????????????; do range="$first ${last##*/}"; done
fi
{ errors=$(TZ=UTC LC_ALL=C "$bin/pg_waldump" -p "$data/pg_wal" -t "$1" -s "$2" $range 2>&1 >&3); code=$?; } 3>&1
written_after() {
  for later in "$data/pg_wal/${1%????????????????}"????????????????; do
    if [ ! -e "$later" ]; then continue; fi
    name=${later##*/}; place=${name#????????}
    own=$(printf ' %08x %08x' "$((0x${place#????????} * size))" "$((0x${place%????????}))")
    if [ "$name" \> "$1" ] && [ "$(od -An -tx4 -j8 -N8 "$later")" = "$own" ]; then echo "$name"; fi
  done
}
case $errors in
  *"could not find file "*)
    missing=${errors#*\"}; missing=${missing%%\"*}; later=$(written_after "$missing")
    if [ -n "$later" ]; then echo "$missing is missing, and later segments are there" >&2; exit 3; fi
    if [ "$missing" = "$(segment "$1" "$2")" ] && [ "$((0x${2#*/} % size))" -gt 40 ]; then
      echo "$missing is missing, in which the two histories part" >&2; exit 3
    fi
    exit 0 ;;
  *"error in WAL record at "*|*"could not find a valid record after "*)
    at=${errors##*"error in WAL record at "}; at=${at##*"could not find a valid record after "}; at=${at%%:*}; at=${at%%[!0-9A-F/]*}
    later=$(written_after "$(segment "$1" "$at")" | sed 1d)
    if [ -n "$later" ]; then echo "the log cannot be read beyond $at, and later segments are there" >&2; exit 3; fi
    exit 0 ;;
esac
if [ $code -ne 0 ]; then echo "$errors" >&2; fi
exit $code
"#;

/// `$1` up to where, `$2` a superuser, `$3` seconds. As a standby of nobody it replays what there is and writes
/// nothing; it listens in a directory that only its owner can enter. What the control file says of the primary is the
/// least that a standby must allow.
pub const ISOLATE: &str = r#"
rm -rf "$data.muster-isolated" && mkdir -m 700 "$data.muster-isolated" || exit 1
dir=$(mktemp -d /tmp/muster-XXXXXXXX) || exit 1
echo "$dir" > "$data.muster-isolated/socket"
: > "$dir/postgresql.conf"; : > "$dir/ident.conf"; echo "local all all trust" > "$dir/hba.conf"
[ -e standby.signal ] || : > standby.signal
options="-c config_file=$dir/postgresql.conf -c hba_file=$dir/hba.conf -c ident_file=$dir/ident.conf -c listen_addresses="
options="$options -c unix_socket_directories=$dir -c port=5432 -c primary_conninfo= -c restore_command= -c archive_cleanup_command="
options="$options -c recovery_end_command= -c archive_mode=off -c default_transaction_read_only=on -c shared_preload_libraries="
options="$options -c logging_collector=off -c hot_standby=on -c ssl=off -c shared_buffers=32MB -c huge_pages=off -c cluster_name=muster"
options="$options -c external_pid_file= -c recovery_target= -c recovery_target_lsn= -c recovery_target_time= -c recovery_target_xid= -c recovery_target_name="
for name in max_connections max_worker_processes max_wal_senders max_prepared_xacts max_locks_per_xact; do
  value=$(LC_ALL=C "$bin/pg_controldata" -D "$data" | sed -n "s/^$name setting: *//p")
  case $name in max_prepared_xacts) name=max_prepared_transactions;; max_locks_per_xact) name=max_locks_per_transaction;; esac
  if [ -n "$value" ]; then options="$options -c $name=$value"; fi
done
rm -f postmaster.pid
"$bin/pg_ctl" -D "$data" -l "$dir/log" -o "$options" -w -t "$3" start >/dev/null || { tail -n 5 "$dir/log" >&2; exit 1; }
tries=0
until [ "$("$bin/psql" -h "$dir" -U "$2" -d postgres -AtXqc "select pg_last_wal_replay_lsn() >= '$1'::pg_lsn" 2>"$dir/error")" = t ]; do
  tries=$((tries + 1))
  if [ $tries -gt $(($3 * 10)) ]; then echo "it did not replay up to $1" >&2; cat "$dir/error" >&2; exit 1; fi
  sleep 0.1
done
"#;

/// Ends that server, if it runs, and takes away what was made for it.
pub const ISOLATED_NO_MORE: &str = r#"
LC_ALL=C "$bin/pg_ctl" -D "$data" -m fast -w -t 60 stop >&2
dir=$(cat "$data.muster-isolated/socket" 2>/dev/null)
case $dir in /tmp/muster-????????) rm -rf "$dir";; esac
rm -rf "$data.muster-isolated"
"#;

/// `$1` database, `$2` superuser; the statements come by standard input.
pub const ASK: &str = r#"
dir=$(cat "$data.muster-isolated/socket") || exit 1
exec "$bin/psql" -h "$dir" -U "$2" -d "$1" -AtXq -v ON_ERROR_STOP=1 -f -
"#;

/// A pooler's file stands anywhere; `$1`.
pub const READ_FILE: &str = r#"cat "$1""#;
pub const WRITE_FILE: &str = r#"
cat > "$1.muster-new" || exit 1
chmod --reference="$1" "$1.muster-new"
mv -f "$1.muster-new" "$1"
"#;
