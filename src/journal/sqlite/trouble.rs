//! What is wrong with the store, in words for a person: the same for both drivers that reach it.

use super::MIGRATIONS;
use std::fmt::Display;

const FULL: &str = "its disk is full: make room there";

pub fn of_io(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::StorageFull { FULL.to_owned() } else { error.to_string() }
}

pub fn of_sqlx(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    of_code(code.and_then(|code| code.parse().ok()), error)
}

pub fn of_rusqlite(error: &rusqlite::Error) -> String {
    of_code(error.sqlite_error().map(|error| error.extended_code), error)
}

/// The primary code is in the lowest byte: 11 is SQLITE_CORRUPT, 13 SQLITE_FULL, 26 SQLITE_NOTADB. 4874 is
/// SQLITE_IOERR_SHMSIZE: not even the file through which processes share the log can be made.
fn of_code(code: Option<i32>, error: &dyn Display) -> String {
    match code.map(|code| (code & 0xff, code)) {
        Some((13, _) | (_, 4874)) => FULL.to_owned(),
        Some((11 | 26, _)) => {
            format!("journal.db is damaged or was cut off ({error}); keep it, and put a copy of the state directory in its place")
        }
        _ => error.to_string(),
    }
}

pub fn of_migration(error: &sqlx::migrate::MigrateError) -> String {
    use sqlx::migrate::MigrateError::{Execute, VersionMismatch, VersionMissing};
    let ours = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    match error {
        VersionMissing(theirs) => {
            format!("a newer Muster wrote it: its schema is version {theirs}, and this Muster knows {ours}; use the newer one")
        }
        VersionMismatch(version) => format!("its schema {version} is not the one that Muster made"),
        Execute(error) => of_sqlx(error),
        other => other.to_string(),
    }
}
