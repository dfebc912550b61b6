//! The SQL by which two servers are compared that have each row at a place of its own: by ranges of a key.
//!
//! Values of a key travel as text, each cast back to its column's type. A range is a comparison of rows, which the
//! index of the key serves: `(a, b) > (x, y) AND (a, b) <= (v, w)`.

use super::{
    port::{ByKey, Key, KeyRange},
    postgres_rows::{Asked, pairs},
    postgres_rowsum::{ROW, SUMMED, hash, literal, quoted},
};

/// What the subscriber behind a slot has applied, as the publisher was told. Only a connected one counts.
pub(super) const CONFIRMED: &str = "
SELECT r.replay_lsn::text AS position FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
 WHERE s.slot_name = ANY($1::text[])";

fn columns(how: &ByKey, sorted: bool) -> Vec<String> {
    let bytewise = |kind: &str| how.bytewise && sorted && ["text", "character varying", "character", "name"].contains(&kind);
    let one = |(name, kind): &(String, String)| format!("{ROW}.{}{}", quoted(name), if bytewise(kind) { " COLLATE \"C\"" } else { "" });
    how.key.iter().map(one).collect()
}

/// The values behind parameter `number`, each in its type.
fn values(how: &ByKey, number: usize) -> String {
    let one = |(at, (_, kind)): (usize, &(String, String))| format!("(${number}::text[])[{}]::{kind}", at + 1);
    how.key.iter().enumerate().map(one).collect::<Vec<_>>().join(", ")
}

/// The condition, and what its parameters are.
fn within(how: &ByKey, range: &KeyRange) -> (String, Vec<Key>) {
    let key = columns(how, true).join(", ");
    let (mut conditions, mut bound) = (Vec::new(), Vec::new());
    for (sign, key_of) in [(">", &range.after), ("<=", &range.upto)] {
        if let Some(values_of) = key_of {
            bound.push(values_of.clone());
            conditions.push(format!("ROW({key}) {sign} ROW({})", values(how, bound.len())));
        }
    }
    conditions.extend(how.filter.iter().map(|filter| format!("({filter})")));
    if conditions.is_empty() {
        conditions.push("true".to_owned());
    }
    (conditions.join(" AND "), bound)
}

fn as_json(how: &ByKey) -> String {
    let texts: Vec<String> = columns(how, false).iter().map(|c| format!("{c}::text")).collect();
    format!("json_build_array({})::text AS key", texts.join(", "))
}

pub(super) fn bound(how: &ByKey, after: Option<&Key>, rows: u64) -> Asked {
    let (condition, values) = within(how, &KeyRange { after: after.cloned(), upto: None });
    let order = columns(how, true).join(", ");
    let text = format!(
        "SELECT {} FROM {} AS {ROW} WHERE {condition} ORDER BY {order} OFFSET {} LIMIT 1",
        as_json(how),
        how.table,
        rows.saturating_sub(1)
    );
    Asked { text, values }
}

pub(super) fn sum(how: &ByKey, range: &KeyRange, number: usize, seed: i64) -> Asked {
    let (condition, values) = within(how, range);
    let hash = hash(&how.columns, &literal(seed));
    let text = format!(
        "SELECT {number}::bigint AS number, {SUMMED} AS sum FROM
                (SELECT {hash} AS h FROM {} AS {ROW} WHERE {condition} OFFSET 0) AS s",
        how.table
    );
    Asked { text, values }
}

pub(super) fn rows(how: &ByKey, range: &KeyRange) -> Asked {
    let (condition, values) = within(how, range);
    let columns: Vec<String> = how.columns.iter().map(|c| format!("{ROW}.{}", quoted(&c.name))).collect();
    let text = format!(
        "SELECT {}, {ROW}.xmin::text::bigint AS born, {ROW}.xmax::text <> '0' AS touched, md5(ROW({})::text) AS digest
           FROM {} AS {ROW} WHERE {condition}",
        as_json(how),
        columns.join(", "),
        how.table
    );
    Asked { text, values }
}

pub(super) fn row(how: &ByKey, key: &Key) -> Asked {
    let digests = if how.columns.len() > 45 { String::new() } else { pairs(how.columns.iter().map(|c| c.name.as_str()), true) };
    let text = format!(
        "SELECT jsonb_build_object({})::text AS key, jsonb_build_object({digests})::text AS columns
           FROM {} AS {ROW} WHERE ROW({}) = ROW({})",
        pairs(how.key.iter().map(|(name, _)| name.as_str()), false),
        how.table,
        columns(how, false).join(", "),
        values(how, 1)
    );
    Asked { text, values: vec![key.clone()] }
}
