//! The ledger of acknowledged writes: a file of JSON lines outside the failure domain.
//!
//! It is what the data loss is counted against, so it must outlive whatever it measures: it lies in the
//! state directory, is appended to, and reaches the file at least each second. A process that died in the
//! middle of a line leaves the lines before it readable, and the next one goes on after them.

use crate::model::event::LedgerDigest;
use crate::plan::measure::LedgerEntry;
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error(
        "the ledger {path} cannot be written: {cause}; acknowledged writes can no longer be counted, so free the disk or choose another state directory"
    )]
    Write { path: PathBuf, cause: std::io::Error },
    #[error("the ledger {path} cannot be read: {cause}")]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("the ledger {path} is damaged in line {line}: {cause}")]
    Damaged { path: PathBuf, line: usize, cause: serde_json::Error },
}

/// A ledger that is being written.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Ledger {
    /// Opens or creates it, to append.
    ///
    /// # Errors
    /// When the file cannot be opened or written.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let fail = |cause| LedgerError::Write { path: path.to_owned(), cause };
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(fail)?;
        let torn = ends_torn(&mut file).map_err(fail)?;
        let mut out = BufWriter::new(file);
        if torn {
            out.write_all(b"\n").map_err(fail)?;
        }
        Ok(Self { path: path.to_owned(), out })
    }

    /// # Errors
    /// When the disk does not take it: from then on the count is not to be trusted.
    pub fn append(&mut self, entry: &LedgerEntry) -> Result<(), LedgerError> {
        let written = serde_json::to_writer(&mut self.out, entry).map_err(std::io::Error::from).and_then(|()| self.out.write_all(b"\n"));
        written.map_err(|cause| LedgerError::Write { path: self.path.clone(), cause })
    }

    /// # Errors
    /// When the disk does not take it.
    pub fn flush(&mut self) -> Result<(), LedgerError> {
        self.out.flush().map_err(|cause| LedgerError::Write { path: self.path.clone(), cause })
    }

    /// Makes it durable and sums it up.
    ///
    /// # Errors
    /// When the disk does not take it, or the file cannot be read back.
    pub fn finish(mut self) -> Result<LedgerDigest, LedgerError> {
        self.flush()?;
        self.out.get_ref().sync_data().map_err(|cause| LedgerError::Write { path: self.path.clone(), cause })?;
        digest(&self.path)
    }
}

fn ends_torn(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// What a ledger holds: its entries, and the hash of the file as it is.
///
/// # Errors
/// When it cannot be read, or a line other than a torn one is no entry.
pub fn digest(path: &Path) -> Result<LedgerDigest, LedgerError> {
    let mut hash = Sha256::new();
    let mut entries = 0;
    each_line(path, |line, entry| {
        hash.update(line);
        entries += u64::from(entry.is_some());
    })?;
    Ok(LedgerDigest { file: path.display().to_string(), sha256: hex::encode(hash.finalize()), entries })
}

/// Every entry of a ledger.
///
/// # Errors
/// When it cannot be read, or a line other than a torn one is no entry.
pub fn read(path: &Path) -> Result<Vec<LedgerEntry>, LedgerError> {
    let mut entries = Vec::new();
    each_line(path, |_, entry| entries.extend(entry))?;
    Ok(entries)
}

/// A line that a dying process left torn is no entry: its write was never counted. Anything else that is
/// no entry is damage, and is named.
fn each_line(path: &Path, mut take: impl FnMut(&[u8], Option<LedgerEntry>)) -> Result<(), LedgerError> {
    let fail = |cause| LedgerError::Read { path: path.to_owned(), cause };
    let mut lines = BufReader::new(File::open(path).map_err(fail)?);
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(fail)? == 0 {
            return Ok(());
        }
        number += 1;
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        match serde_json::from_slice(text) {
            Ok(entry) => take(&line, Some(entry)),
            Err(e) if e.is_eof() => take(&line, None),
            Err(cause) => return Err(LedgerError::Damaged { path: path.to_owned(), line: number, cause }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> LedgerEntry {
        LedgerEntry { id: id.to_owned(), sent: jiff::Timestamp::UNIX_EPOCH, acked: jiff::Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn what_is_written_reads_back_also_after_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.jsonl");
        let mut first = Ledger::open(&path).unwrap();
        first.append(&entry("a")).unwrap();
        first.flush().unwrap();
        drop(first);
        std::fs::write(&path, [std::fs::read(&path).unwrap(), br#"{"id":"torn","se"#.to_vec()].concat()).unwrap();
        let mut second = Ledger::open(&path).unwrap();
        second.append(&entry("b")).unwrap();
        let digest = second.finish().unwrap();
        assert_eq!(read(&path).unwrap(), [entry("a"), entry("b")]);
        assert_eq!(digest.entries, 2);
        assert_eq!(digest.sha256, hex::encode(Sha256::digest(std::fs::read(&path).unwrap())));
    }

    #[test]
    fn damage_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.jsonl");
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.append(&entry("a")).unwrap();
        ledger.finish().unwrap();
        std::fs::write(&path, [std::fs::read(&path).unwrap(), b"nonsense\n".to_vec()].concat()).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("damaged in line 2"));
        assert!(matches!(read(&dir.path().join("none")), Err(LedgerError::Read { .. })));
        assert!(matches!(Ledger::open(dir.path()), Err(LedgerError::Write { .. })));
    }
}
