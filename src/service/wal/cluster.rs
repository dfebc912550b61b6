//! Whose log it is: what stands beside a segment in the server's own directory. `archive_command` and `restore_command`
//! run there and are given a path in `pg_wal/`, so `global/pg_control` is two folders up.

use super::super::ServiceError;
use crate::repository::wal_name::check_system;
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// The data directory in whose `pg_wal/` this file lies, or would lie.
fn data_directory(file: &Path) -> PathBuf {
    let folder = file.parent().unwrap_or(Path::new(""));
    match folder.parent() {
        // `pg_wal/NAME`, as the server says it: it runs in its data directory.
        Some(data) if data.as_os_str().is_empty() => PathBuf::from("."),
        Some(data) => data.to_owned(),
        None => PathBuf::from(".."),
    }
}

/// The system identifier in a data directory's `pg_control`: its first eight bytes.
pub fn system_in(data: &Path) -> std::io::Result<u64> {
    let mut first = [0; 8];
    std::fs::File::open(data.join("global/pg_control"))?.read_exact(&mut first)?;
    Ok(u64::from_le_bytes(first))
}

/// The cluster that a file of the log belongs to: what was said, or what stands beside it.
pub(super) fn system_of(file: &Path, said: Option<&str>) -> Result<String, ServiceError> {
    if let Some(said) = said {
        return check_system(said).map(|()| said.to_owned()).map_err(ServiceError::Usage);
    }
    let data = data_directory(file);
    system_in(&data).map(|system| system.to_string()).map_err(|why| {
        ServiceError::Usage(format!(
            "whose log is {}? {} cannot be read ({why}): run it in the server's data directory, as PostgreSQL does, or say --system NUMBER",
            file.display(),
            data.join("global/pg_control").display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_is_two_folders_up() {
        for (file, data) in [("pg_wal/x", "."), ("/srv/data/pg_wal/x", "/srv/data"), ("data/pg_wal/x", "data"), ("./pg_wal/x", ".")] {
            assert_eq!(data_directory(Path::new(file)), Path::new(data), "{file}");
        }
    }

    #[test]
    fn a_cluster_is_known_by_its_control_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("global")).unwrap();
        std::fs::create_dir_all(dir.path().join("pg_wal")).unwrap();
        let file = dir.path().join("pg_wal/000000010000000000000001");
        let refused = system_of(&file, None).unwrap_err().to_string();
        assert!(refused.contains("global/pg_control") && refused.contains("--system"), "{refused}");
        std::fs::write(dir.path().join("global/pg_control"), [7_445_172_393_480_321_234u64.to_le_bytes(), [1; 8]].concat()).unwrap();
        assert_eq!(system_of(&file, None).unwrap(), "7445172393480321234");
        assert_eq!(system_of(&file, Some("12")).unwrap(), "12");
        assert!(system_of(&file, Some("-12")).is_err());
    }
}
