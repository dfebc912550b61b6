//! From a snapshot back to files: into a new folder, or in place, where only what differs is written.
//!
//! Read in this order: [`plan`] (what is to be done, decided from the list alone), [`list`] (the list read), [`place`]
//! (the target, entered so that nothing leads out of it), [`compare`] (what is there already), [`data`] (packs to files,
//! in parallel), [`finish`] (links, devices, folders).
//!
//! What has its own name is what was backed up, bit for bit, checked against the keyed digest of every chunk: until it
//! is whole a file is called `NAME.muster-incomplete`. A damaged chunk costs the files that it is in, each told by name,
//! and nothing else. Whatever interrupts a restore, the same command with `--in-place` goes on where it was; after a
//! power cut it must, for only at the end it is certain that everything is on the disk.

mod compare;
mod data;
mod finish;
mod list;
mod place;
mod plan;
#[cfg(test)]
mod tests;

use super::{RepositoryError, Result, globs::Globs, open::Repository, progress::Progress, snapshot::Snapshot};
use crate::providers::clock::{Clock, SystemClock};
use data::{Task, Work, lock};
use list::Read;
use place::{FOLDER, Target, room, text};
use plan::Plan;
use rustix::{
    fd::AsFd,
    fs::{CWD, Mode, OFlags, openat, syncfs},
};
use serde::Serialize;
use std::{
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// In the folder while a restore that takes several steps is under way: no restore removes it.
pub const MARKER: &str = "muster.restoring";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// A folder that is empty or not there.
    Empty,
    /// A folder that may hold an older or newer state, or what an interrupted restore left. With `delete` what is not
    /// in the snapshot goes.
    Place { delete: bool },
}

#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// What is restored; nothing given: everything.
    pub include: Globs,
    pub into: Into,
    /// Files get their owners, if we are root.
    pub owner: bool,
    /// Nothing is written.
    pub dry_run: bool,
}

/// What is not restored, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Lost {
    pub path: String,
    pub why: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Files that are whole, with their further names.
    pub files: u64,
    pub folders: u64,
    /// Links, devices and the like.
    pub others: u64,
    /// Of all files.
    pub bytes: u64,
    /// What was written; with `dry_run`, what would be.
    pub bytes_written: u64,
    /// What was there already.
    pub bytes_in_place: u64,
    /// What was removed, since it is not in the snapshot.
    pub deleted: u64,
    /// What could not be restored. What could be had of a file is called `NAME.muster-incomplete`.
    pub damaged: Vec<Lost>,
    /// What is restored, but without some attribute or owner.
    pub without: Vec<Lost>,
    /// What was damaged or missing in the repository and had from elsewhere in it: nothing is lost by it.
    pub notes: Vec<String>,
    pub duration_ms: u64,
}

/// Restores a snapshot into a folder. Everything is on the disk when this ends well.
pub async fn restore(
    repository: Arc<Repository>,
    snapshot: &Snapshot,
    target: &Path,
    options: RestoreOptions,
    progress: Arc<Progress>,
) -> Result<Restored> {
    let clock = SystemClock::new();
    let target = open(target, &options)?;
    let index = Arc::new(repository.index().await?.whole);
    let Read { plan, fresh, detours } = list::read(&repository, index, snapshot, &options.include).await?;
    if plan.is_nothing() && !options.include.is_empty() {
        return Err(nothing_fits());
    }
    progress.total_files.store(plan.files.iter().filter(|file| !file.skip).count() as u64, Relaxed);
    progress.total_bytes.store(plan.bytes(), Relaxed);
    let Some(target) = target else {
        let bytes = plan.places.iter().map(|place| u64::from(place.length)).sum();
        return Ok(Restored { notes: detours.told(), ..report(&plan, bytes, 0) });
    };
    let delete = options.into == Into::Place { delete: true };
    let work = Work::new(repository, plan, target, progress, tokio::runtime::Handle::current(), delete);
    let done = tokio::task::spawn_blocking(move || {
        let mut work = work;
        let restored = carry_out(&mut work, &options, fresh)?;
        Ok::<_, RepositoryError>(Restored { notes: detours.and(work.detours()).told(), ..restored })
    });
    let mut restored = done.await.map_err(|e| RepositoryError::Interrupted(e.to_string()))??;
    restored.duration_ms = clock.monotonic().as_millis() as u64;
    Ok(restored)
}

/// A pattern that is misspelt must not look like a restore.
pub fn nothing_fits() -> RepositoryError {
    RepositoryError::Refused("nothing in the snapshot fits --include: `muster backup show ID --files` shows the paths in it".to_owned())
}

/// Opens the target, or makes it. `None`: it is not there, and stays so.
fn open(path: &Path, options: &RestoreOptions) -> Result<Option<Target>> {
    let wrong = |why: String| RepositoryError::File { path: path.to_owned(), why };
    if options.dry_run && !path.exists() {
        return Ok(None);
    }
    std::fs::create_dir_all(path).map_err(|why| wrong(format!("it cannot be made a folder ({why}): restore into another")))?;
    let root = openat(CWD, path, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty());
    let root = root.map_err(|why| wrong(format!("{}: restore into a folder that can be opened", text(why))))?;
    let there = finish::names(root.as_fd()).map_err(|why| wrong(text(why)))?;
    if options.into == Into::Empty
        && let Some((name, _)) = there.first()
    {
        let name = String::from_utf8_lossy(name);
        return Err(wrong(format!("it is not empty (there is `{name}`): restore into another, or give --in-place to change what differs")));
    }
    let owner = options.owner && rustix::process::geteuid().is_root();
    Ok(Some(Target { root, path: path.to_owned(), owner }))
}

/// Twice as many as processors: while one waits for a part of a pack the other decodes. Each holds one, so they are not many.
fn threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    (2 * processors).clamp(4, 12)
}

/// All that blocks.
fn carry_out(work: &mut Work, options: &RestoreOptions, fresh: bool) -> Result<Restored> {
    let mut lost = Vec::new();
    let folders = if options.dry_run { 0 } else { finish::folders(work, &mut lost)? };
    let (needed, in_place) = match options.into {
        Into::Empty => (everything(work), 0),
        Into::Place { .. } => compare::compare(work, threads())?,
    };
    let bytes: u64 = needed.iter().map(|place| u64::from(work.plan.places[*place as usize].length)).sum();
    if options.dry_run {
        return Ok(report(&work.plan, bytes, in_place));
    }
    check_room(work)?;
    write(work, needed, fresh)?;
    let others = finish::others(work, &mut lost)?;
    let links = finish::links(work, &mut lost)?;
    // What the list does not tell of may be in the part of it that is damaged.
    let deleted = if work.delete && !work.plan.partial { finish::delete(work, &options.include, &mut lost)? } else { 0 };
    finish::dress_folders(work)?;
    syncfs(&work.target.root).map_err(|why| work.target.wrong(b"", why))?;
    let restored = report(&work.plan, work.written.load(Relaxed), in_place);
    Ok(tell(work, lost, Restored { folders, others, deleted, files: links, bytes: 0, ..restored }))
}

/// Every place is to be written.
fn everything(work: &mut Work) -> Vec<u32> {
    for (file, state) in work.plan.files.iter().zip(&mut work.states) {
        *state.left.get_mut() = if file.skip { 0 } else { file.places.len() as u32 };
    }
    let data: u64 = work.plan.places.iter().map(|place| u64::from(place.length)).sum();
    // Zeros are there once a file has its size.
    work.progress.add(0, work.plan.bytes().saturating_sub(data));
    let files = work.plan.files.iter().filter(|file| !file.skip);
    files.flat_map(|file| file.places.clone()).map(|place| place as u32).collect()
}

/// Writing what will not fit would cost an hour and then end.
fn check_room(work: &Work) -> Result<()> {
    let new = work.plan.files.iter().zip(&work.states).filter(|(file, state)| state.basis == data::Basis::New && !file.skip);
    let places = new.flat_map(|(file, _)| &work.plan.places[file.places.clone()]);
    let needed: u64 = places.map(|place| u64::from(place.length)).sum();
    match room(work.target.root.as_fd()) {
        Some(room) if room < needed => {
            let why = format!(
                "{needed} bytes are to be written and {room} are free: make room, restore elsewhere, or choose less with --include"
            );
            Err(RepositoryError::File { path: work.target.path.clone(), why })
        }
        _ => Ok(()),
    }
}

/// Fetches and writes. If a prune has folded packs meanwhile, they are looked for once more.
fn write(work: &mut Work, needed: Vec<u32>, fresh: bool) -> Result<()> {
    const PORTION: usize = 64;
    let settled =
        |(number, state): (usize, &data::State)| (state.left.load(Relaxed) == 0 && !work.plan.files[number].skip).then_some(number);
    let settled: Vec<usize> = work.states.iter().enumerate().filter_map(settled).collect();
    let mut tasks: Vec<Task> = settled.chunks(PORTION).map(|files| Task::Settle(files.to_vec())).collect();
    tasks.extend(plan::jobs(&work.plan, needed).into_iter().map(Task::Pack));
    work.run(&tasks, threads())?;
    let moved = std::mem::take(&mut *lock(&work.moved));
    if moved.is_empty() {
        return Ok(());
    }
    if !fresh {
        let index = work.handle.block_on(work.repository.index())?.whole;
        work.plan.relocate(&moved, &index);
    }
    let tasks: Vec<Task> = plan::jobs(&work.plan, moved).into_iter().map(Task::Pack).collect();
    work.run(&tasks, threads())?;
    let gone = std::mem::take(&mut *lock(&work.moved));
    let chunk_of = |place: &u32| work.plan.places[*place as usize].chunk;
    let mut worker = data::Worker::default();
    for places in gone.chunk_by(|a, b| chunk_of(a) == chunk_of(b)) {
        let chunk = &work.plan.chunks[chunk_of(&places[0]) as usize];
        let pack = &work.plan.packs[chunk.pack as usize];
        let why =
            format!("{}, which holds chunk {}, is missing from the repository", pack.key(super::names::PACKS), chunk.piece.chunk.short());
        let lost = (!work.elsewhere(&mut worker, &chunk.piece.chunk, pack)?).then_some(why);
        places.iter().try_for_each(|place| work.put(&mut worker, *place, lost.as_deref()))?;
    }
    Ok(())
}

fn report(plan: &Plan, bytes_written: u64, bytes_in_place: u64) -> Restored {
    let files = plan.files.iter().filter(|file| !file.skip).count() + plan.links.len();
    Restored {
        files: files as u64,
        folders: plan.folders.len() as u64,
        others: plan.others.len() as u64,
        bytes: plan.bytes(),
        bytes_written,
        bytes_in_place,
        damaged: plan.lost.clone(),
        ..Restored::default()
    }
}

/// Counts the files that are whole, and names what is lost.
fn tell(work: &Work, lost: Vec<Lost>, mut restored: Restored) -> Restored {
    for (file, state) in work.plan.files.iter().zip(&work.states) {
        // No count is trusted to say that a file is whole: nothing may be left of it.
        let unfinished = (state.left.load(Relaxed) > 0).then_some("it was not finished");
        if let Some(why) = state.lost.get().map(String::as_str).or(unfinished) {
            restored.damaged.push(Lost { path: super::entry::shown(&file.path), why: why.to_owned() });
        } else {
            restored.files += 1;
            restored.bytes += file.size;
        }
    }
    restored.damaged.extend(lost);
    restored.damaged.sort();
    restored.without = std::mem::take(&mut *lock(&work.without));
    restored
}
