//! The SQL that [`super::postgres`] speaks, and what is behind each clause. Kept apart so that it can
//! be read, and tried by hand, as SQL.

/// How the server stands, in one row.
///
/// The timeline: `pg_control_checkpoint()` still names the old one right after a promotion, until the
/// next checkpoint, so a primary is asked for the name of the segment that it writes. A standby has no
/// such name: the latest of what it receives, what it must replay to be consistent, and its last
/// restart point is the one it replays.
pub const STATE: &str = "
SELECT f.in_recovery,
       CASE WHEN f.in_recovery
            THEN GREATEST(r.received_tli, (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                          (SELECT timeline_id FROM pg_control_checkpoint()))::bigint
            ELSE ('x' || lpad(left(pg_walfile_name(pg_current_wal_lsn()), 8), 16, '0'))::bit(64)::bigint END AS timeline,
       CASE WHEN f.in_recovery THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_lsn() END::text AS position,
       CASE WHEN f.in_recovery THEN pg_last_wal_receive_lsn() END::text AS received,
       CASE WHEN f.in_recovery THEN pg_is_wal_replay_paused() ELSE false END AS replay_paused,
       coalesce(f.in_recovery AND r.status = 'streaming', false) AS streaming,
       (extract(epoch FROM r.last_msg_receipt_time) * 1000000)::bigint AS last_message,
       (extract(epoch FROM CASE WHEN f.in_recovery THEN pg_last_xact_replay_timestamp() END) * 1000000)::bigint AS last_replayed,
       current_setting('default_transaction_read_only')::boolean AS read_only,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier
  FROM (SELECT pg_is_in_recovery() AS in_recovery) f LEFT JOIN pg_stat_wal_receiver r ON true";

pub const STANDBYS: &str = "
SELECT application_name AS name, state, sent_lsn::text AS sent, replay_lsn::text AS replayed
  FROM pg_stat_replication ORDER BY application_name, pid";

/// Where the content stands. In a transaction that takes its snapshot with this very statement, `busy`
/// counts the transactions that write at this moment and may already be committing: their commit record
/// may be in the log though the snapshot does not show them yet. One that sits idle is not committing.
pub const POSITION: &str = "
SELECT pg_is_in_recovery() AS in_recovery,
       CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_insert_lsn() END::text AS position,
       CASE WHEN pg_is_in_recovery() THEN 0 ELSE
         (SELECT count(*) FROM pg_snapshot_xip(pg_current_snapshot()) x
           WHERE NOT EXISTS (SELECT FROM pg_stat_activity a
                              WHERE a.state = 'idle in transaction' AND a.backend_xid IS NOT NULL
                                AND a.backend_xid = x::xid)) END AS busy,
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
       current_setting('wal_block_size')::bigint AS block,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS segment";

/// How far the log is safe on disk, which is as far as standbys may have it; and how long the log writer
/// takes at most to bring a commit that did not wait for it there (three of its rounds).
pub const FLUSHED: &str = "
SELECT pg_current_wal_flush_lsn()::text AS position, 3 * setting::bigint AS settle_ms FROM pg_settings WHERE name = 'wal_writer_delay'";

/// How far a primary is. The newest commit comes first: one that ends between the two is then in the log up to the position, and not
/// the other way round. Its time is kept only with `track_commit_timestamp`; asked without it, the function is an error, so it
/// stands in a query of its own, which is not begun then. Anybody may ask all of it.
pub const NEWEST: &str = r#"
SELECT CASE WHEN current_setting('track_commit_timestamp')::boolean
            THEN (SELECT (extract(epoch FROM x."timestamp") * 1000000)::bigint FROM pg_last_committed_xact() x) END AS commit,
       pg_current_wal_flush_lsn()::text AS position,
       ('x' || lpad(left(pg_walfile_name(pg_current_wal_lsn()), 8), 16, '0'))::bit(64)::bigint AS timeline,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now"#;

/// The same row is the same text on every server; and a sum may take its time.
pub const SAME_TEXT: &str = "
SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET extra_float_digits = 3; SET timezone = 'UTC'; SET bytea_output = 'hex';
SET lc_monetary = 'C'; SET xmlbinary = 'base64'; SET search_path = pg_catalog; SET statement_timeout = '60s';
-- Compiling each piece anew costs more than it saves.
SET jit = off;
-- A policy would hide rows from the sum: an error is better.
SET row_security = off";

/// What a comparison must know of a table `c` in a schema `n`. From 18 on a column may be NOT NULL and have nulls from before. The key is the primary key, or what identifies rows to
/// logical replicas.
const TABLE: &str = "
       (pg_relation_size(c.oid) / current_setting('block_size')::bigint)::bigint AS blocks, c.relpersistence = 'u' AS unlogged,
       (SELECT json_agg(json_build_object('name', a.attname, 'nullable', NOT a.attnotnull OR EXISTS (SELECT FROM pg_constraint no
                   WHERE no.conrelid = c.oid AND no.contype = 'n' AND NOT no.convalidated AND a.attnum = ANY (no.conkey)), 'kind',
                 format_type(coalesce(nullif(t.typbasetype, 0), a.atttypid), NULL)) ORDER BY a.attnum)
          FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND to_jsonb(a)->>'attgenerated' <> 'v')::text AS columns,
       (SELECT json_agg(a.attname ORDER BY k.at) FROM unnest(key.columns) WITH ORDINALITY AS k(number, at)
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number)::text AS key,
       (SELECT string_agg(co.collname || ' ' || co.collprovider::text || ' ' || coalesce(
                 CASE WHEN co.oid = 100 THEN (SELECT datcollate || ' ' || coalesce(pg_database_collation_actual_version(oid), '') FROM pg_database WHERE datname = current_database())
                      ELSE pg_collation_actual_version(co.oid) END, ''), ',' ORDER BY k.at)
          FROM unnest(key.columns) WITH ORDINALITY AS k(number, at)
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number JOIN pg_collation co ON co.oid = a.attcollation) AS sorted";

/// By which rules a database sorts on this machine is told since 15; before, by a collation of the same locale.
const SORTS: &str = "pg_database_collation_actual_version(oid)";
const SORTS_14: &str =
    "(SELECT pg_collation_actual_version(x.oid) FROM pg_collation x WHERE x.collprovider = 'c' AND x.collcollate = datcollate LIMIT 1)";

fn of_version(query: String, version: Option<u32>) -> String {
    if version.is_some_and(|version| version < 150_000) { query.replace(SORTS, SORTS_14) } else { query }
}

/// The key of a table `c`: one index.
const KEY: &str = "
  LEFT JOIN LATERAL (SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS columns FROM pg_index i
                      WHERE i.indrelid = c.oid AND i.indisvalid AND (i.indisprimary OR i.indisreplident)
                      ORDER BY i.indisprimary DESC LIMIT 1) AS key ON true";

/// The user's own tables; partitions count by themselves. An unlogged one is empty on a standby, and named as such.
#[must_use]
pub fn user_tables(version: Option<u32>) -> String {
    let query = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) AS name, format('%I.%I', n.nspname, c.relname) AS asked, {TABLE}
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace {KEY}
          WHERE c.relkind = 'r' AND c.relpersistence IN ('p', 'u')
            AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'muster') AND n.nspname !~ '^pg_(toast|temp)'
          ORDER BY 1"
    );
    of_version(query, version)
}

/// Tables by the names that the estate gives them; a partitioned one is its partitions. `name` is null
/// for one that is not there.
#[must_use]
pub fn named_tables(version: Option<u32>) -> String {
    let query = format!(
        "SELECT w.asked, CASE WHEN c.oid IS NOT NULL THEN format('%I.%I', n.nspname, c.relname) END AS name, {TABLE}
           FROM unnest($1::text[]) WITH ORDINALITY AS w(asked, at)
           LEFT JOIN LATERAL (SELECT to_regclass(w.asked)::oid AS leaf WHERE NOT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = to_regclass(w.asked)::oid)
                               UNION ALL SELECT relid::oid FROM pg_partition_tree(to_regclass(w.asked)) WHERE isleaf) l ON true
           LEFT JOIN pg_class c ON c.oid = l.leaf AND c.relkind = 'r' AND c.relpersistence IN ('p', 'u')
           LEFT JOIN pg_namespace n ON n.oid = c.relnamespace {KEY}
          ORDER BY w.at, 2"
    );
    of_version(query, version)
}

/// What must be the same for two looks at a table to be comparable: its file (a rewrite moves rows), and its
/// columns (one that is added with a default changes every row's text and no row's version).
pub const SHAPE: &str = "
SELECT coalesce(pg_relation_filenode(c.oid), 0)::text || ' '
       || (SELECT md5(string_agg(format('%s %s %s %s', a.attnum, a.attname, a.atttypid, a.attisdropped), ',' ORDER BY a.attnum))
             FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0) AS shape
  FROM pg_class c WHERE c.oid = to_regclass($1)::oid";

/// The rows of a range of blocks, which is read as such (a TID range scan).
#[must_use]
pub fn versions(quoted: &str, first: u32, last: u32) -> String {
    let end = match last.checked_add(1) {
        Some(end) => format!("AND muster_row.ctid < '({end},0)'::tid"),
        None => String::new(),
    };
    format!(
        "SELECT (muster_row.ctid::text::point)[0]::bigint AS block, (muster_row.ctid::text::point)[1]::bigint AS line,
                muster_row.xmin::text::bigint AS born, muster_row.xmax::text <> '0' AS touched, md5(muster_row::text) AS digest
           FROM ONLY {quoted} AS muster_row WHERE muster_row.ctid >= '({first},0)'::tid {end}"
    )
}

/// Rows at these places, as they are told: what their keys are, and a digest of each column.
#[must_use]
pub fn rows_at(quoted: &str, columns: &str, key: &str) -> String {
    format!(
        "SELECT (muster_row.ctid::text::point)[0]::bigint AS block, (muster_row.ctid::text::point)[1]::bigint AS line,
                jsonb_build_object({key})::text AS key, jsonb_build_object({columns})::text AS columns
           FROM ONLY {quoted} AS muster_row WHERE muster_row.ctid = ANY($1::tid[])"
    )
}

/// So that a query ends when the one who asked is gone. Not every system can tell.
pub const GONE: &str = "SET client_connection_check_interval = '1s'";

/// A column as SQL names it, its type, and whether text compares with it as it is.
pub const COLUMN: &str = "
SELECT format('%I.%I', n.nspname, c.relname) AS quoted, quote_ident(a.attname) AS column, format_type(a.atttypid, NULL) AS type
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.oid = to_regclass($1)::oid";

/// The identifiers are cast to the column's type, not the column to text, so that an index serves.
#[must_use]
pub fn present(quoted: &str, column: &str, kind: &str) -> String {
    format!("SELECT DISTINCT {column}::text AS id FROM {quoted} WHERE {column} = ANY(($1::text[])::{kind}[])")
}

pub const SESSIONS: &str = "
SELECT count(*)::bigint AS n FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name <> 'muster' AND datname = current_database()";

pub const ALTER_DATABASE: &str = "
SELECT format('ALTER DATABASE %I ', current_database())
       || CASE WHEN $1 THEN 'SET default_transaction_read_only = on' ELSE 'RESET default_transaction_read_only' END AS alter";

/// What `ALTER DATABASE`, a look at the sessions of others and their end ask of a role.
pub const RIGHTS: &str = "
SELECT pg_has_role(current_user, datdba, 'USAGE') AS owns,
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees,
       pg_has_role(current_user, 'pg_signal_backend', 'USAGE') AS ends
  FROM pg_database WHERE datname = current_database()";

/// What would let a session of this database write in spite of the database's default.
pub const EXCEPTIONS: &str = "
SELECT coalesce('role ' || r.rolname, 'every role') || ' in ' || coalesce('database ' || d.datname, 'every database') AS whom
  FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
 WHERE s.setrole <> 0 AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   AND EXISTS (SELECT FROM unnest(s.setconfig) c WHERE c ~* '^default_transaction_read_only=(off|false|no|0)$')";

/// A session's start is compared with the server's clock, read after the new default was seen in force.
/// Only who may: an attempt at a superuser's session would be refused, and the others not ended either.
pub const END_SESSIONS: &str = "
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND datname = current_database()
   AND backend_start <= to_timestamp($1::bigint / 1000000.0)
   AND (current_setting('is_superuser')::boolean OR NOT coalesce((SELECT rolsuper FROM pg_roles WHERE oid = usesysid), false))";

/// With those that are still coming up: one that has read its settings and is not on the list yet holds
/// a lock on the database.
pub const OLD_SESSIONS: &str = "
SELECT (SELECT count(*) FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND datname = current_database()
           AND backend_start <= to_timestamp($1::bigint / 1000000.0))
     + (SELECT count(*) FROM pg_locks l
         WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND l.pid <> pg_backend_pid()
           AND l.objid = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = l.pid)) AS n";

pub const IN_FORCE: &str = "
SELECT current_setting('default_transaction_read_only')::boolean AS read_only,
       ceil(extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now";

pub const CANARY: [&str; 2] = [
    "CREATE SCHEMA IF NOT EXISTS muster",
    "CREATE TABLE IF NOT EXISTS muster.canary (mark text PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())",
];

/// Who may act on the database; one row at most.
pub const WHEEL: &str = "CREATE TABLE IF NOT EXISTS muster.wheel (one boolean PRIMARY KEY DEFAULT true CHECK (one), holder text NOT NULL)";

/// Roles that a fence keeps from logging in.
pub const REVOKED: &str =
    "CREATE TABLE IF NOT EXISTS muster.revoked (role text PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())";

/// Who can log in, beside who asks and those named.
pub const LOGINS: &str = "
SELECT rolname::text, rolsuper::text FROM pg_roles
 WHERE rolcanlogin AND rolname <> current_user AND rolname <> ALL ($1::text[]) ORDER BY 1";

/// Sessions of clients, sessions that are only just coming up (they hold a lock on their database), and workers that
/// are no part of the server itself: a subscription's, an extension's. Muster's own sessions carry its name and are of
/// the role that asks.
pub const WRITERS: &str = "
SELECT a.pid::text, coalesce(a.backend_type, '?') || ' ' || a.pid || coalesce(' of ' || a.usename, '') || coalesce(' in ' || a.datname, '')
  FROM pg_stat_activity a
 WHERE a.pid <> pg_backend_pid()
   AND coalesce(a.backend_type, '?') NOT IN ('autovacuum launcher', 'autovacuum worker', 'logical replication launcher', 'background writer',
       'checkpointer', 'startup', 'walreceiver', 'walsender', 'walwriter', 'archiver', 'walsummarizer', 'slotsync worker', 'io worker', 'logger')
   AND NOT (a.application_name = 'muster' AND a.usename = current_user)
UNION ALL
SELECT l.pid::text, 'session ' || l.pid || ' that is coming up' FROM pg_locks l
 WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND l.pid <> pg_backend_pid()
   AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = l.pid)";

pub const END_WRITERS: &str = "
SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
 WHERE a.pid <> pg_backend_pid() AND a.backend_type IN ('client backend', 'parallel worker')
   AND NOT (a.application_name = 'muster' AND a.usename = current_user)";

/// The view reads the file as it is at this moment; what is in force is what stood there at the last reload.
pub const HBA: &str = "
SELECT 'file', current_setting('hba_file')
UNION ALL
SELECT CASE WHEN error IS NULL THEN 'rule' ELSE 'error' END,
       coalesce(error, concat_ws(' ', type, array_to_string(database, ','), array_to_string(user_name, ','), address, netmask, auth_method))
  FROM pg_hba_file_rules";
