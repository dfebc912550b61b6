//! Whose a chain is, on one machine: each process that writes keeps one lock file locked for as long as it
//! lives, and a chain names the lock file of its owner. The lock is the kernel's and ends with the process,
//! however that ends, so that another one takes over at once.
//!
//! One file a process, not one a run: ten thousand open runs need one descriptor, and beginning a run makes
//! no file. A file gets its final name only once it is locked, so whoever finds it unlocked knows its owner
//! to be gone. Names come from the store's random numbers and are never used again.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

const EXTENSION: &str = "lock";

/// The lock file of this process, locked while it lives.
pub struct Token {
    pub name: String,
    path: PathBuf,
    _file: File,
}

impl Token {
    /// Makes and locks the file of that name, and removes those of processes that are gone.
    pub fn new(folder: &Path, name: String) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let making = folder.join(format!("{name}.new"));
        let path = file_of(folder, &name);
        let file = OpenOptions::new().create_new(true).write(true).open(&making)?;
        file.try_lock().map_err(io::Error::from)?;
        std::fs::rename(&making, &path)?;
        sweep(folder);
        Ok(Self { name, path, _file: file })
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        // A file that stays behind is unlocked, and the next process removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn file_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.{EXTENSION}"))
}

/// Does the process live whose token has that name? In doubt it does.
pub fn lives(folder: &Path, name: &str) -> io::Result<bool> {
    match File::open(file_of(folder, name)) {
        // Shared: those who only look are not taken for the owner by each other.
        Ok(file) => match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the files of processes that are gone. What cannot be removed does no harm.
fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let ours = stem.len() == 32 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
        if ours && path.extension().is_some_and(|end| end == EXTENSION) && lives(folder, stem).is_ok_and(|lives| !lives) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_as_long_as_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = ("a".repeat(32), "b".repeat(32), "c".repeat(32));
        let token = Token::new(dir.path(), a.clone()).unwrap();
        assert!(lives(dir.path(), &a).unwrap());
        assert!(!lives(dir.path(), &b).unwrap(), "nobody has that name");
        // What a killed process leaves: a file that nobody locks.
        std::fs::write(file_of(dir.path(), &b), "").unwrap();
        assert!(!lives(dir.path(), &b).unwrap());
        let other = Token::new(dir.path(), c.clone()).unwrap();
        assert!(!file_of(dir.path(), &b).exists(), "it was swept");
        assert!(lives(dir.path(), &a).unwrap() && lives(dir.path(), &c).unwrap(), "the living were not");
        drop(token);
        assert!(!lives(dir.path(), &a).unwrap());
        drop(other);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
