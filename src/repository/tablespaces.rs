//! Tablespaces of a restored cluster, which go to places of their own.
//!
//! In a snapshot their content lies below `pg_tblspc/NUMBER/`. PostgreSQL wants links there, and not to where the original
//! has them, which may be in use: so each goes where it is told, or to `DATA.tablespaces/NUMBER`. It is left out
//! of the data directory, restored below its place under the same path, and moved up within it; then the link is made.
//! So nothing that is restored ever goes through a link.

use super::{
    RepositoryError, Result,
    snapshot::{Snapshot, Source},
};
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// Numbers of tablespaces, and where each goes.
pub type Places = BTreeMap<u32, PathBuf>;

/// Where each tablespace of a base backup goes.
#[must_use]
pub fn places(snapshot: &Snapshot, said: &Places, data: &Path) -> Places {
    let Source::Postgres { tablespaces, .. } = &snapshot.source else { return Places::new() };
    let beside = |number: u32| PathBuf::from(format!("{}.tablespaces/{number}", data.display()));
    let numbers = tablespaces.keys().filter_map(|number| number.parse().ok());
    numbers.map(|number| (number, said.get(&number).cloned().unwrap_or_else(|| beside(number)))).collect()
}

/// Patterns for what is left out of the data directory.
#[must_use]
pub fn elsewhere(places: &Places) -> Vec<String> {
    places.keys().map(|number| pattern(*number)).collect()
}

/// The pattern for one tablespace.
#[must_use]
pub fn pattern(number: u32) -> String {
    format!("/pg_tblspc/{number}")
}

fn wrong(path: &Path, why: impl std::fmt::Display) -> RepositoryError {
    RepositoryError::File { path: path.to_owned(), why: why.to_string() }
}

/// A tablespace's own folder holds nothing but what its server made.
fn is_ours(name: &str) -> bool {
    name.starts_with("PG_") || name == "pg_tblspc"
}

fn names(place: &Path) -> Result<Vec<String>> {
    match fs::read_dir(place) {
        Ok(entries) => {
            Ok(entries.filter_map(std::result::Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(wrong(place, e)),
    }
}

/// Would restoring there damage anything? `in_place`: what a tablespace holds may be changed.
pub fn check(places: &Places, data: &Path, in_place: bool) -> Result<()> {
    for place in places.values() {
        if !place.is_absolute() || place.starts_with(data) {
            return Err(wrong(place, "a tablespace goes to an absolute path outside the data directory"));
        }
        let there = names(place)?;
        if let Some(other) = there.iter().find(|name| !is_ours(name)).or_else(|| there.first().filter(|_| !in_place)) {
            return Err(wrong(place, format!("it is not empty (there is `{other}`): put the tablespace elsewhere, or empty it")));
        }
    }
    if places.values().collect::<std::collections::BTreeSet<_>>().len() < places.len() {
        return Err(RepositoryError::Refused("two tablespaces cannot go to the same folder".to_owned()));
    }
    Ok(())
}

/// What is there from before goes where the restore will look for it, so that only what differs is written.
pub fn move_down(number: u32, place: &Path) -> Result<()> {
    let below = place.join("pg_tblspc").join(number.to_string());
    fs::create_dir_all(&below).map_err(|e| wrong(&below, e))?;
    for name in names(place)?.iter().filter(|name| name.starts_with("PG_")) {
        fs::rename(place.join(name), below.join(name)).map_err(|e| wrong(place, e))?;
    }
    Ok(())
}

/// What was restored goes to where the server expects it, and the link is made.
pub fn move_up(number: u32, place: &Path, data: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, lchown};
    let below = place.join("pg_tblspc").join(number.to_string());
    for name in names(&below)? {
        fs::rename(below.join(&name), place.join(&name)).map_err(|e| wrong(place, e))?;
    }
    fs::remove_dir_all(place.join("pg_tblspc")).map_err(|e| wrong(place, e))?;
    let folder = data.join("pg_tblspc");
    fs::create_dir_all(&folder).map_err(|e| wrong(&folder, e))?;
    let link = folder.join(number.to_string());
    match fs::symlink_metadata(&link) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&link).map_err(|e| wrong(&link, e))?,
        Ok(_) => fs::remove_file(&link).map_err(|e| wrong(&link, e))?,
        Err(_) => {}
    }
    std::os::unix::fs::symlink(place, &link).map_err(|e| wrong(&link, e))?;
    if rustix::process::geteuid().is_root() {
        let owner = fs::metadata(data.join("PG_VERSION")).map_err(|e| wrong(data, e))?;
        for path in [place, &link] {
            lchown(path, Some(owner.uid()), Some(owner.gid())).map_err(|e| wrong(path, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_restored_below_comes_up_and_is_linked() {
        let dir = tempfile::tempdir().unwrap();
        let (data, place) = (dir.path().join("data"), dir.path().join("fast"));
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        let places = Places::from([(16385, place.clone())]);
        check(&places, &data, false).unwrap();
        assert_eq!(elsewhere(&places), ["/pg_tblspc/16385"]);
        move_down(16385, &place).unwrap();
        fs::create_dir_all(place.join("pg_tblspc/16385/PG_15_1/5")).unwrap();
        move_up(16385, &place, &data).unwrap();
        assert!(data.join("pg_tblspc/16385/PG_15_1/5").is_dir() && !place.join("pg_tblspc").exists());
        // Once more, in place.
        assert!(check(&places, &data, false).is_err());
        check(&places, &data, true).unwrap();
        move_down(16385, &place).unwrap();
        assert!(place.join("pg_tblspc/16385/PG_15_1/5").is_dir());
        move_up(16385, &place, &data).unwrap();
        assert!(data.join("pg_tblspc/16385/PG_15_1/5").is_dir());
        fs::write(place.join("letter"), "").unwrap();
        assert!(check(&places, &data, true).unwrap_err().to_string().contains("letter"));
        assert!(check(&Places::from([(1, data.join("x"))]), &data, true).is_err());
    }
}
