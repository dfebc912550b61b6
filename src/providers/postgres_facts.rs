//! What a PostgreSQL server tells of replication, and what it has beside rows. Each part is a query of its own that
//! gives JSON: one that the user may not put is absent from the answer and spoils no other.

use super::{
    port::{Inventory, Lsn, Published, Replication, Sender, Slot, Subscription},
    postgres::{decode, lsn},
};
use serde::de::DeserializeOwned;
use sqlx::{PgConnection, Row};
use std::collections::BTreeMap;

/// Of either side. Times are those of whoever is named.
const SELF: &str = "
SELECT json_strip_nulls(json_build_object(
  'version', current_setting('server_version_num')::int,
  'cluster_name', nullif(current_setting('cluster_name'), ''),
  'follows', nullif(current_setting('primary_conninfo', true), '') IS NOT NULL,
  'restores', nullif(current_setting('restore_command', true), '') IS NOT NULL,
  'slot', nullif(current_setting('primary_slot_name', true), ''),
  'retry_interval_ms', (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_retrieve_retry_interval'),
  'apply_delay_ms', (SELECT setting::bigint FROM pg_settings WHERE name = 'recovery_min_apply_delay'),
  'segment_bytes', (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
  'waits_for', (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup' LIMIT 1),
  'limits', (SELECT json_object_agg(name, setting::bigint) FROM pg_settings
              WHERE name IN ('max_connections', 'max_wal_senders', 'max_worker_processes', 'max_prepared_transactions', 'max_locks_per_transaction')),
  'receiver', (SELECT json_build_object('status', status, 'slot', nullif(slot_name, ''), 'host', sender_host, 'port', sender_port,
                      'timeline', received_tli, 'last_sent', to_char(last_msg_send_time AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'))
                 FROM pg_stat_wal_receiver LIMIT 1)))::text AS told";

const PAUSE: &str = "SELECT to_json(pg_get_wal_replay_pause_state())::text AS told WHERE pg_is_in_recovery()";

const SLOTS: &str = "
SELECT coalesce(json_agg(json_strip_nulls(json_build_object('name', slot_name, 'kind', slot_type, 'active', active,
         'active_pid', active_pid, 'wal_status', wal_status, 'restart', restart_lsn, 'confirmed', confirmed_flush_lsn))), '[]')::text AS told
  FROM pg_replication_slots";

/// Whoever may not see the others sees their rows with nothing in them.
const SENDERS: &str = "
SELECT CASE WHEN count(*) FILTER (WHERE state IS NULL) = 0 THEN
       coalesce(json_agg(json_strip_nulls(json_build_object('pid', pid, 'name', application_name, 'state', state, 'sent', sent_lsn,
         'replayed', replay_lsn))), '[]')::text END AS told
  FROM pg_stat_replication";

/// The number of a segment counts from the beginning of the log, on whatever timeline.
const OLDEST: &str = "
SELECT min(('x' || substr(name, 9, 8))::bit(32)::bigint * (4294967296 / s.bytes) + ('x' || substr(name, 17, 8))::bit(32)::bigint)::text AS told
  FROM pg_ls_waldir(), (SELECT setting::bigint AS bytes FROM pg_settings WHERE name = 'wal_segment_size') s
 WHERE name ~ '^[0-9A-F]{24}$'";

/// Its timeline's file of history; the first timeline has none.
const HISTORY: &str = "
SELECT pg_read_file('pg_wal/' || left(pg_walfile_name(pg_current_wal_lsn()), 8) || '.history', 0, 1000000, true) AS told
 WHERE NOT pg_is_in_recovery()";

const SUBSCRIPTIONS: &str = "
SELECT coalesce(json_agg(json_strip_nulls(json_build_object('name', s.subname, 'enabled', s.subenabled, 'slot', s.subslotname,
         'publications', s.subpublications,
         'working', EXISTS (SELECT FROM pg_stat_subscription w WHERE w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL),
         'last_message', (SELECT to_char(max(w.last_msg_receipt_time) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
                            FROM pg_stat_subscription w WHERE w.subid = s.oid AND w.relid IS NULL),
         'tables', coalesce((SELECT json_object_agg(format('%I.%I', n.nspname, c.relname), r.srsubstate)
                      FROM pg_subscription_rel r JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                     WHERE r.srsubid = s.oid), '{}')))), '[]')::text AS told
  FROM pg_subscription s WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Counted since 15.
const ERRORS: &str = "SELECT json_object_agg(subname, apply_error_count + sync_error_count)::text AS told FROM pg_stat_subscription_stats";

/// Columns and filters can be chosen since 15.
const PUBLISHED: &str = "
SELECT coalesce(json_agg(json_strip_nulls(json_build_object('publication', pubname, 'table', format('%I.%I', schemaname, tablename),
         'columns', to_jsonb(p)->'attnames', 'filter', to_jsonb(p)->'rowfilter'))), '[]')::text AS told
  FROM pg_publication_tables p";

/// Tables of the user: the names are those of a person.
const OWN: &str = "n.nspname NOT IN ('pg_catalog', 'information_schema', 'muster') AND n.nspname !~ '^pg_(toast|temp)'";

/// Each thing that makes up a schema, in one text each.
fn things() -> String {
    format!(
        "SELECT json_object_agg(kind || ' ' || name, text)::text AS told FROM (
 SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' ELSE 'table' END AS kind,
        format('%I.%I', n.nspname, c.relname) AS name,
        concat_ws(', ', CASE c.relpersistence WHEN 'u' THEN 'unlogged' END, CASE WHEN c.relrowsecurity THEN 'row security' END,
                  CASE WHEN c.relkind IN ('v', 'm') THEN md5(pg_get_viewdef(c.oid)) END, pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid), 'there') AS text
   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND {OWN}
 UNION ALL
 SELECT 'column', format('%I.%I.%I', n.nspname, c.relname, a.attname),
        concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END, 'default ' || pg_get_expr(d.adbin, d.adrelid),
                  CASE a.attidentity WHEN 'a' THEN 'identity always' WHEN 'd' THEN 'identity' END, CASE WHEN a.attgenerated <> '' THEN 'generated' END,
                  CASE WHEN a.attcollation NOT IN (0, 100) THEN (SELECT 'collate ' || collname FROM pg_collation WHERE oid = a.attcollation) END)
   FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
   LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND {OWN}
 UNION ALL
 SELECT 'index', format('%I.%I', n.nspname, c.relname),
        concat_ws(', ', pg_get_indexdef(i.indexrelid), CASE WHEN NOT i.indisvalid THEN 'INVALID' END, CASE WHEN NOT i.indisready THEN 'not ready' END)
   FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {OWN}
 UNION ALL
 SELECT 'constraint', format('%I.%I.%I', n.nspname, c.relname, o.conname), concat_ws(', ', pg_get_constraintdef(o.oid), CASE WHEN NOT o.convalidated THEN 'not validated' END)
   FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {OWN}
 UNION ALL
 SELECT 'trigger', format('%I.%I.%I', n.nspname, c.relname, t.tgname), pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text
   FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT t.tgisinternal AND {OWN}
 UNION ALL
 SELECT 'function', format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)), md5(concat_ws(' ', p.prosrc, p.probin, p.prorettype::regtype::text))
   FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {OWN} AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
 UNION ALL
 SELECT 'role', format('%I', r.rolname), concat_ws(', ', CASE WHEN rolsuper THEN 'superuser' END, CASE WHEN rolcanlogin THEN 'login' END, CASE WHEN rolcreatedb THEN 'createdb' END,
        CASE WHEN rolcreaterole THEN 'createrole' END, CASE WHEN rolreplication THEN 'replication' END, CASE WHEN rolbypassrls THEN 'bypassrls' END, CASE WHEN NOT rolinherit THEN 'noinherit' END,
        'connections ' || nullif(rolconnlimit, -1), 'valid until ' || rolvaliduntil, array_to_string(rolconfig, ' '),
        'in ' || (SELECT string_agg(g.rolname, ' ' ORDER BY g.rolname) FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid))
   FROM pg_roles r WHERE r.rolname !~ '^pg_'
) all_things"
    )
}

const SEQUENCES: &str = "
SELECT json_object_agg(format('%I.%I', schemaname, sequencename), json_build_array(last_value, increment_by < 0))::text AS told FROM pg_sequences";

/// Those that somebody has chosen, and those that matter whoever chose them; none in which there may be a password.
const SETTINGS: &str = "
SELECT json_object_agg(name, setting)::text AS told FROM pg_settings
 WHERE name !~ '(conninfo|command|passphrase)' AND (source NOT IN ('default', 'client', 'session', 'override', 'database', 'user', 'database user')
    OR name IN ('max_connections', 'max_wal_senders', 'max_worker_processes', 'max_prepared_transactions', 'max_locks_per_transaction',
                'data_checksums', 'wal_level', 'hot_standby_feedback', 'hot_standby', 'server_version', 'block_size', 'server_encoding',
                'wal_log_hints', 'track_commit_timestamp', 'shared_preload_libraries', 'fsync', 'full_page_writes', 'synchronous_commit',
                'integer_datetimes', 'password_encryption', 'autovacuum', 'max_slot_wal_keep_size', 'archive_mode'))";

/// Of these every session of ours has its own, so that only the file tells what others get.
const FROM_FILE: &str = "
SELECT json_object_agg(CASE lower(name) WHEN 'timezone' THEN 'TimeZone' ELSE 'DateStyle' END, setting)::text AS told FROM pg_file_settings
 WHERE applied AND lower(name) IN ('timezone', 'datestyle')";

const EXTENSIONS: &str = "SELECT json_object_agg(extname, extversion)::text AS told FROM pg_extension";
const AVAILABLE: &str = "
SELECT json_object_agg(name, versions)::text AS told FROM (SELECT name, json_agg(version) AS versions FROM pg_available_extension_versions GROUP BY 1) a";

/// An index is sorted by the rules that it was made with; a machine that sorts otherwise finds nothing in it. What a database was made
/// with is known since 15.
const COLLATIONS: [&str; 2] = [
    "
SELECT json_object_agg(name, json_build_array(made, here))::text AS told FROM (
  SELECT format('database %I', datname) AS name, to_jsonb(d)->>'datcollversion' AS made, pg_database_collation_actual_version(oid) AS here
    FROM pg_database d WHERE datname = current_database()) c
 WHERE made IS DISTINCT FROM here AND made IS NOT NULL",
    "
SELECT json_object_agg(name, json_build_array(made, here))::text AS told FROM (
  SELECT format('collation %I', collname) AS name, collversion AS made, pg_collation_actual_version(oid) AS here
    FROM pg_collation WHERE collversion IS NOT NULL) c
 WHERE made IS DISTINCT FROM here AND made IS NOT NULL",
];

const PLAIN_TABLES: &str = "
SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY 1), '[]')::text AS told FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND ";

const AT: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text AS at";

/// One part; nothing when the user may not ask for it, or this version has no such thing.
async fn part<T: DeserializeOwned>(c: &mut PgConnection, query: &str) -> Result<Option<T>, sqlx::Error> {
    let text = match text(c, query).await {
        Ok(text) => text,
        // Refused, unknown function or column, no such file, or not while in recovery.
        Err(sqlx::Error::Database(e)) if e.code().is_some_and(|c| c.starts_with("42") || c == "58P01" || c == "55000") => None,
        Err(e) => return Err(e),
    };
    text.map(|text| serde_json::from_str(&text).map_err(|e| decode("told", e))).transpose()
}

async fn text(c: &mut PgConnection, query: &str) -> Result<Option<String>, sqlx::Error> {
    let row = sqlx::query(sqlx::AssertSqlSafe(query.to_owned())).fetch_optional(c).await?;
    Ok(row.map(|row| row.try_get::<Option<String>, _>("told")).transpose()?.flatten())
}

pub(super) async fn replication(c: &mut PgConnection) -> Result<Replication, sqlx::Error> {
    // Times and names as text must not hang on the user's own settings.
    sqlx::raw_sql("SET search_path = pg_catalog; SET datestyle = 'ISO, YMD'").execute(&mut *c).await?;
    let known: Option<Replication> = part(c, SELF).await?;
    let mut told = known.unwrap_or_else(|| Replication { refused: true, ..Replication::default() });
    told.pause = part(c, PAUSE).await?;
    told.slots = part::<Vec<Slot>>(c, SLOTS).await?;
    told.senders = part::<Vec<Sender>>(c, SENDERS).await?;
    told.oldest_segment = part::<u64>(c, OLDEST).await?;
    told.history = match text(c, HISTORY).await {
        Ok(text) => Some(text.as_deref().map_or_else(Vec::new, history)),
        Err(sqlx::Error::Database(_)) => None,
        Err(e) => return Err(e),
    };
    told.subscriptions = part::<Vec<Subscription>>(c, SUBSCRIPTIONS).await?.unwrap_or_default();
    if !told.subscriptions.is_empty() {
        let errors: BTreeMap<String, u64> = part(c, ERRORS).await?.unwrap_or_default();
        told.subscriptions.iter_mut().for_each(|s| s.errors = errors.get(&s.name).copied());
    }
    told.published = part::<Vec<Published>>(c, PUBLISHED).await?.unwrap_or_default();
    Ok(told)
}

/// Lines of `PARENT<tab>POSITION<tab>REASON`.
fn history(text: &str) -> Vec<(u32, Lsn)> {
    let line = |line: &str| {
        let mut parts = line.split_whitespace();
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    text.lines().filter(|l| !l.trim_start().starts_with('#')).filter_map(line).collect()
}

pub(super) async fn inventory(c: &mut PgConnection) -> Result<Inventory, sqlx::Error> {
    sqlx::raw_sql("SET search_path = pg_catalog; SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'").execute(&mut *c).await?;
    let keyless = format!(
        "{PLAIN_TABLES} {OWN} AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND (i.indisprimary OR i.indisreplident))"
    );
    let unlogged = format!("{PLAIN_TABLES} {OWN} AND c.relpersistence = 'u'");
    let mut all = Inventory {
        at: Lsn::default(),
        things: part(c, &things()).await?.unwrap_or_default(),
        sequences: part(c, SEQUENCES).await?.unwrap_or_default(),
        settings: part(c, SETTINGS).await?.unwrap_or_default(),
        extensions: part(c, EXTENSIONS).await?.unwrap_or_default(),
        available: part(c, AVAILABLE).await?.unwrap_or_default(),
        collations: part(c, COLLATIONS[0]).await?.unwrap_or_default(),
        unlogged: part(c, &unlogged).await?.unwrap_or_default(),
        keyless: part(c, &keyless).await?.unwrap_or_default(),
    };
    all.collations.extend(part::<BTreeMap<String, (String, String)>>(c, COLLATIONS[1]).await?.unwrap_or_default());
    all.settings.remove("TimeZone");
    all.settings.remove("DateStyle");
    all.settings.extend(part::<BTreeMap<String, String>>(c, FROM_FILE).await?.unwrap_or_default());
    // Read last: whatever was seen above had been written by then.
    let row = sqlx::query(AT).fetch_one(c).await?;
    all.at = lsn(&row, "at")?.unwrap_or_default();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_history_says_where_each_timeline_branched_off() {
        let text = "# comment\n1\t0/3000148\tno recovery target specified\n\n2\t1/A0\tbefore 2000-01-01\n";
        assert_eq!(history(text), [(1, Lsn(0x300_0148)), (2, Lsn(0x1_0000_00A0))]);
    }
}
