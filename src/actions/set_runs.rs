//! Lines sorted on disk: as many as memory may hold are sorted and written as a run, and the runs are read as one. For what
//! comes in another order than it is needed in, however much it is, and for what is to be read again by another process.

use super::set_walk::{Broken, Order};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    cmp::Ordering,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

/// So many lines are sorted in memory at a time; twice as many with every so many runs, so that there are never very many.
const RUN: usize = 10_000;
const DOUBLES: usize = 64;
/// Says that all runs are there.
const WHOLE: &str = "whole";

/// What a line holds.
pub(crate) trait Line: Serialize + DeserializeOwned + Send + 'static {
    fn key(&self) -> &str;
    /// Which of two with the same key comes first.
    fn within(&self, _other: &Self) -> Ordering {
        Ordering::Equal
    }
}

fn sorts<T: Line>(order: Order, a: &T, b: &T) -> Ordering {
    order.cmp(a.key(), b.key()).then_with(|| a.within(b))
}

fn disk(path: &Path, error: &std::io::Error) -> Broken {
    Broken::Disk(format!("{}: {error}", path.display()))
}

/// Runs that are being written. It blocks: not for a thread that others wait for.
pub(crate) struct Runs<T> {
    folder: PathBuf,
    order: Order,
    run: Vec<T>,
    number: usize,
}

impl<T: Line> Runs<T> {
    /// Did somebody finish them?
    pub fn are_whole(folder: &Path) -> bool {
        folder.join(WHOLE).exists()
    }

    pub fn begin(folder: &Path, order: Order) -> Result<Self, Broken> {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).map_err(|e| disk(folder, &e))?;
        Ok(Self { folder: folder.to_owned(), order, run: Vec::new(), number: 0 })
    }

    pub fn push(&mut self, line: T) -> Result<(), Broken> {
        self.run.push(line);
        if self.run.len() >= RUN << (self.number / DOUBLES) { self.write() } else { Ok(()) }
    }

    pub fn finish(mut self) -> Result<(), Broken> {
        self.write()?;
        std::fs::write(self.folder.join(WHOLE), b"").map_err(|e| disk(&self.folder, &e))
    }

    fn write(&mut self) -> Result<(), Broken> {
        let order = self.order;
        self.run.sort_by(|a, b| sorts(order, a, b));
        let path = self.folder.join(format!("{:06}.run", self.number));
        let written = File::create(&path).and_then(|file| {
            let mut file = BufWriter::new(file);
            for line in self.run.drain(..) {
                serde_json::to_writer(&mut file, &line)?;
                file.write_all(b"\n")?;
            }
            file.flush()
        });
        self.number += 1;
        written.map_err(|e| disk(&path, &e))
    }
}

/// Sorted runs, read as one.
pub(crate) struct Merge<T> {
    runs: Vec<(T, BufReader<File>)>,
    order: Order,
    path: PathBuf,
}

impl<T: Line> Merge<T> {
    /// From behind a key on.
    pub fn open(path: &Path, order: Order, behind: Option<&str>) -> Result<Self, Broken> {
        let mut merge = Self { runs: Vec::new(), order, path: path.to_owned() };
        merge.first(behind).map_err(|e| disk(path, &e))?;
        Ok(merge)
    }

    fn first(&mut self, behind: Option<&str>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let file = entry?.path();
            if file.extension().is_none_or(|e| e != "run") {
                continue;
            }
            let mut lines = BufReader::with_capacity(16 * 1024, File::open(file)?);
            while let Some(found) = line::<T>(&mut lines)? {
                if behind.is_none_or(|behind| self.order.cmp(behind, found.key()) == Ordering::Less) {
                    self.runs.push((found, lines));
                    break;
                }
            }
        }
        Ok(())
    }

    pub fn next(&mut self) -> Result<Option<T>, Broken> {
        let sorts = |a: &usize, b: &usize| sorts(self.order, &self.runs[*a].0, &self.runs[*b].0);
        let Some(first) = (0..self.runs.len()).min_by(sorts) else { return Ok(None) };
        let read = line(&mut self.runs[first].1).map_err(|e| disk(&self.path, &e))?;
        Ok(Some(match read {
            Some(next) => std::mem::replace(&mut self.runs[first].0, next),
            None => self.runs.swap_remove(first).0,
        }))
    }
}

fn line<T: Line>(lines: &mut BufReader<File>) -> std::io::Result<Option<T>> {
    let mut text = String::new();
    if lines.read_line(&mut text)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&text)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::port::ObjectVersion;

    fn version(key: &str) -> ObjectVersion {
        ObjectVersion { key: key.into(), size: 1, etag: None, version: None, modified: None, marker: false, latest: true }
    }

    #[test]
    fn runs_are_read_as_one_from_any_key_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut runs = Runs::begin(dir.path(), Order::Bytes).unwrap();
        for keys in [["c", "a", "e"], ["d", "b", "f"]] {
            keys.iter().for_each(|key| runs.push(version(key)).unwrap());
            runs.write().unwrap();
        }
        assert!(!Runs::<ObjectVersion>::are_whole(dir.path()));
        runs.finish().unwrap();
        assert!(Runs::<ObjectVersion>::are_whole(dir.path()));
        for (behind, want) in [(None, "abcdef"), (Some("b"), "cdef"), (Some("bb"), "cdef"), (Some("f"), "")] {
            let mut merge = Merge::<ObjectVersion>::open(dir.path(), Order::Bytes, behind).unwrap();
            let mut found = String::new();
            while let Some(next) = merge.next().unwrap() {
                found.push_str(&next.key);
            }
            assert_eq!(found, want);
        }
    }

    /// More than one run holds, so that runs are merged for real; and in the order of folders.
    #[test]
    fn what_does_not_fit_into_one_run_comes_in_order_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        for order in [Order::Bytes, Order::Folders] {
            let mut keys: Vec<String> =
                (0..2 * RUN + 7).map(|n| format!("{}/{:05}", ["a", "a!", "a.b"][n % 3], n * 7919 % 20_011)).collect();
            let mut runs = Runs::begin(dir.path(), order).unwrap();
            keys.iter().for_each(|key| runs.push(version(key)).unwrap());
            runs.finish().unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "three runs, and that they are whole");
            keys.sort_by(|a, b| order.cmp(a, b));
            let mut merge = Merge::<ObjectVersion>::open(dir.path(), order, Some(&keys[99])).unwrap();
            for key in &keys[100..] {
                assert_eq!(merge.next().unwrap().unwrap().key, *key);
            }
            assert!(merge.next().unwrap().is_none());
        }
    }
}
