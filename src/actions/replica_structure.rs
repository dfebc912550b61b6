//! What two servers have beside rows, compared: schema, sequences, extensions, roles, settings. Pure: two inventories
//! in, differences out, each with a judgement of whether it makes the replica no good.
//!
//! A physical standby has the primary's catalogs, so that a difference there is damage; its machine and its settings are
//! its own. A logical replica shares only what is published; the rest is named, so that whoever promotes it knows.

use super::replica_report::{Difference, ReplicaKind};
use crate::providers::port::Inventory;
use std::collections::{BTreeMap, BTreeSet};

/// Which may differ and mean nothing: where a server is, and who it is.
const ITS_OWN: &[&str] = &[
    "port",
    "listen_addresses",
    "cluster_name",
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "primary_conninfo",
    "primary_slot_name",
    "restore_command",
    "archive_command",
    "archive_cleanup_command",
    "unix_socket_directories",
    "external_pid_file",
    "log_directory",
    "log_filename",
    "in_hot_standby",
    "transaction_read_only",
    "recovery_target_timeline",
    "promote_trigger_file",
    "synchronous_standby_names",
    "ssl_cert_file",
    "ssl_key_file",
    "stats_temp_directory",
    "application_name",
    "client_encoding",
    "wal_retrieve_retry_interval",
    "recovery_min_apply_delay",
    "event_source",
    "shared_memory_size",
    "shared_memory_size_in_huge_pages",
];

/// A standby that has less of these stops replaying when it learns of the primary's.
const NOT_LOWER: &[&str] =
    &["max_connections", "max_wal_senders", "max_worker_processes", "max_prepared_transactions", "max_locks_per_transaction"];

/// What a difference of these means after a failover.
const MEANING: &[(&str, &str)] = &[
    ("data_checksums", "damage is noticed on one of them only"),
    ("wal_level", "after a promotion the other kind of replica cannot follow, or not be archived as before"),
    ("hot_standby_feedback", "queries on it are cancelled, or hold back vacuum on the primary, other than before"),
    ("TimeZone", "sessions see times in another zone after a failover"),
    ("lc_messages", "messages are in another language after a failover"),
    ("server_version", "they run different releases"),
    ("shared_preload_libraries", "what these libraries do is missing after a failover"),
    ("fsync", "a power cut would destroy one of them"),
    ("full_page_writes", "a power cut may tear pages of one of them"),
    ("wal_log_hints", "pg_rewind may not work after a failover"),
    ("archive_mode", "after a failover the log is not archived as before"),
    ("track_commit_timestamp", "times of commits are not kept after a failover"),
    ("synchronous_commit", "a commit promises less, or takes longer, after a failover"),
    ("shared_buffers", "it is slower or faster after a failover"),
    ("max_slot_wal_keep_size", "slots are given up at another point after a failover"),
];

pub(crate) fn compare(primary: &Inventory, replica: &Inventory, how: ReplicaKind, published: &BTreeSet<String>) -> Vec<Difference> {
    let mut all = match how {
        ReplicaKind::Physical => things(primary, replica, |_| true),
        ReplicaKind::Logical => things(primary, replica, |what| is_published(what, published)),
    };
    all.extend(invalid(primary, replica));
    all.extend(sequences(primary, replica, how));
    all.extend(extensions(primary, replica));
    all.extend(collations(primary, replica));
    all.extend(settings(primary, replica, how));
    if how == ReplicaKind::Logical {
        all.extend(unpublished(primary, published));
    }
    all
}

fn differ(what: &str, primary: Option<&String>, replica: Option<&String>, bad: bool, why: &str) -> Difference {
    Difference { what: what.into(), primary: primary.cloned(), replica: replica.cloned(), bad, why: why.into() }
}

fn names<'a, V>(one: &'a BTreeMap<String, V>, other: &'a BTreeMap<String, V>) -> BTreeSet<&'a String> {
    one.keys().chain(other.keys()).collect()
}

fn things(primary: &Inventory, replica: &Inventory, matters: impl Fn(&str) -> bool) -> Vec<Difference> {
    let (ours, theirs) = (&primary.things, &replica.things);
    let one = |what: &String| {
        let (here, there) = (ours.get(what), theirs.get(what));
        let why = match (here, there) {
            (Some(_), None) => "the replica has it not",
            (None, Some(_)) => "only the replica has it",
            _ => "they are not the same",
        };
        (here != there).then(|| differ(what, here, there, matters(what) && here.is_some(), why))
    };
    names(ours, theirs).into_iter().filter_map(one).collect()
}

/// Tables and columns that are published must be there; all else is the subscriber's business.
fn is_published(what: &str, published: &BTreeSet<String>) -> bool {
    match what.split_once(' ') {
        Some(("table", name)) => published.contains(name),
        Some(("column", name)) => published.iter().any(|table| name.strip_prefix(table.as_str()).is_some_and(|rest| rest.starts_with('.'))),
        _ => false,
    }
}

/// An index that is not valid is used by nobody, on either.
fn invalid(primary: &Inventory, replica: &Inventory) -> Vec<Difference> {
    let bad = |(what, text): (&String, &String)| {
        let same = replica.things.get(what) == Some(text);
        (what.starts_with("index ") && text.ends_with("INVALID") && same)
            .then(|| differ(what, Some(text), Some(text), false, "the index is not valid, on both; REINDEX it"))
    };
    primary.things.iter().filter_map(bad).collect()
}

fn sequences(primary: &Inventory, replica: &Inventory, how: ReplicaKind) -> Vec<Difference> {
    let one = |(name, (here, down)): (&String, &(Option<i64>, bool))| {
        let there = replica.sequences.get(name)?.0;
        let behind = match (*here, there) {
            (Some(here), Some(there)) => {
                if *down {
                    there > here
                } else {
                    there < here
                }
            }
            (Some(_), None) => true,
            (None, _) => false,
        };
        let text = |value: Option<i64>| Some(value.map_or("never used".to_owned(), |v| v.to_string()));
        // A standby is ahead by what the primary has logged in advance.
        let (bad, why) = match how {
            ReplicaKind::Physical => (true, "it is behind the primary, whose log it has replayed"),
            ReplicaKind::Logical => {
                (false, "sequences are not replicated: after a promotion it hands out numbers that are taken; set it with setval first")
            }
        };
        behind.then(|| Difference {
            what: format!("sequence {name} value"),
            primary: text(*here),
            replica: text(there),
            bad,
            why: why.into(),
        })
    };
    primary.sequences.iter().filter_map(one).collect()
}

fn extensions(primary: &Inventory, replica: &Inventory) -> Vec<Difference> {
    let mut all = Vec::new();
    for name in names(&primary.extensions, &replica.extensions) {
        let (here, there) = (primary.extensions.get(name), replica.extensions.get(name));
        if here != there {
            all.push(differ(&format!("extension {name}"), here, there, here.is_some(), "another version, or not there"));
        }
        let Some(version) = there else { continue };
        let able = replica.available.get(name);
        if !replica.available.is_empty() && !able.is_some_and(|versions| versions.contains(version)) {
            // Without any version its library is missing as well, most likely.
            let why = "it is in use, and the replica's machine has not the files of this version";
            all.push(differ(&format!("extension {name} files"), here, able.and_then(|v| v.last()), able.is_none(), why));
        }
    }
    all
}

fn collations(primary: &Inventory, replica: &Inventory) -> Vec<Difference> {
    let one = |(name, (made, here)): (&String, &(String, String))| {
        let same = primary.collations.get(name).is_some_and(|(_, on_primary)| on_primary == here);
        let why = if same {
            "indexes on text were made with other rules than both machines sort by: REINDEX, then ALTER … REFRESH VERSION"
        } else {
            "its machine sorts text by other rules than the indexes were made with: they find nothing, or the wrong rows"
        };
        differ(&format!("{name} version"), Some(made), Some(here), !same, why)
    };
    replica.collations.iter().map(one).collect()
}

fn settings(primary: &Inventory, replica: &Inventory, how: ReplicaKind) -> Vec<Difference> {
    let mut all = Vec::new();
    for name in names(&primary.settings, &replica.settings).into_iter().filter(|name| !ITS_OWN.contains(&name.as_str())) {
        let (here, there) = (primary.settings.get(name), replica.settings.get(name));
        // What one of them has at its default is told by neither.
        let (Some(ours), Some(theirs)) = (here, there) else { continue };
        if ours == theirs {
            continue;
        }
        let number = |text: &String| text.parse::<i64>().ok();
        let lower = NOT_LOWER.contains(&name.as_str()) && number(theirs) < number(ours);
        let meaning = MEANING.iter().find(|(known, _)| known == name).map_or("it is set otherwise", |(_, meaning)| meaning);
        let (bad, why) = match (how, lower) {
            (ReplicaKind::Physical, true) => (true, "lower than the primary's: a standby stops replaying, or does not start"),
            _ => (false, meaning),
        };
        all.push(differ(&format!("setting {name}"), here, there, bad, why));
    }
    all
}

fn unpublished(primary: &Inventory, published: &BTreeSet<String>) -> Vec<Difference> {
    let tables = primary.things.keys().filter_map(|what| what.strip_prefix("table "));
    let not = tables.filter(|name| !published.contains(*name));
    not.map(|name| {
        differ(&format!("table {name} publication"), None, None, false, "it is in no publication that the replica subscribes to")
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(things: &[(&str, &str)], settings: &[(&str, &str)]) -> Inventory {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Inventory { things: map(things), settings: map(settings), ..Inventory::default() }
    }
    fn bad(all: &[Difference]) -> Vec<&str> {
        all.iter().filter(|d| d.bad).map(|d| d.what.as_str()).collect()
    }

    #[test]
    fn a_standby_must_have_all_that_its_primary_has_and_a_subscriber_what_is_published() {
        let primary = inventory(
            &[("table public.a", "there"), ("column public.a.id", "integer"), ("role clerk", "login"), ("index public.i", "x, INVALID")],
            &[],
        );
        let replica = inventory(&[("column public.a.id", "bigint"), ("index public.i", "x, INVALID"), ("table public.b", "there")], &[]);
        let physical = compare(&primary, &replica, ReplicaKind::Physical, &BTreeSet::new());
        assert_eq!(bad(&physical), ["column public.a.id", "role clerk", "table public.a"]);
        assert!(physical.iter().any(|d| d.what == "index public.i" && !d.bad) && physical.iter().any(|d| d.what == "table public.b"));
        let logical = compare(&primary, &replica, ReplicaKind::Logical, &BTreeSet::from(["public.a".to_owned()]));
        assert_eq!(bad(&logical), ["column public.a.id", "table public.a"]);
        let none = compare(&primary, &replica, ReplicaKind::Logical, &BTreeSet::new());
        assert!(bad(&none).is_empty() && none.iter().any(|d| d.what == "table public.a publication"), "{none:?}");
    }

    #[test]
    fn a_setting_is_bad_where_it_stops_replay_and_named_where_it_matters() {
        let primary = inventory(&[], &[("max_connections", "100"), ("TimeZone", "UTC"), ("port", "1"), ("max_wal_senders", "5")]);
        let replica = inventory(&[], &[("max_connections", "99"), ("TimeZone", "CET"), ("port", "2"), ("max_wal_senders", "10")]);
        let all = compare(&primary, &replica, ReplicaKind::Physical, &BTreeSet::new());
        assert_eq!(bad(&all), ["setting max_connections"]);
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(bad(&compare(&primary, &replica, ReplicaKind::Logical, &BTreeSet::new())).is_empty());
    }

    #[test]
    fn a_sequence_may_be_ahead_and_not_behind() {
        let with = |value, down| Inventory { sequences: BTreeMap::from([("s".to_owned(), (value, down))]), ..Inventory::default() };
        let count = |here, there, down| sequences(&with(here, down), &with(there, down), ReplicaKind::Physical).len();
        assert_eq!([count(Some(5), Some(33), false), count(Some(5), Some(4), false), count(Some(5), None, false)], [0, 1, 1]);
        assert_eq!([count(Some(-5), Some(-33), true), count(Some(-5), Some(-4), true), count(None, Some(1), false)], [0, 1, 0]);
    }

    #[test]
    fn an_extension_needs_its_files() {
        let mut one = Inventory { extensions: BTreeMap::from([("amcheck".to_owned(), "1.3".to_owned())]), ..Inventory::default() };
        one.available = BTreeMap::from([("plpgsql".to_owned(), vec!["1.0".to_owned()])]);
        let found = extensions(&one, &one);
        assert_eq!(bad(&found), ["extension amcheck files"]);
        one.available.insert("amcheck".into(), vec!["1.2".into()]);
        assert!(bad(&extensions(&one, &one)).is_empty());
    }
}
