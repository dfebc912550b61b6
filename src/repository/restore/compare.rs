//! Into a target that holds something: which parts of its files are already what they should be. Every part is read and
//! its keyed digest compared with the chunk's name; times and sizes are not believed, since what is restored is what
//! somebody no longer trusts.
//!
//! Large files are cut into segments, so that one file keeps all processors busy.

use super::{
    data::{Basis, Work, Worker, lock},
    place::{is_fatal, kind},
    plan::Plan,
};
use crate::repository::{Result, names::Id};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, fstat, openat, seek, statat},
    io::{Errno, pread},
};
use std::{
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// What one thread takes at a time.
const BYTES: u64 = 8 * 1024 * 1024;
const FILES: usize = 256;
const ZEROS: usize = 256 * 1024;

/// A part of one file: bytes, and the places in them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    file: usize,
    bytes: Range<u64>,
    places: Range<usize>,
}

/// What was found of one segment; nothing, if there is nothing that could be used.
#[derive(Default)]
struct Seen {
    file: usize,
    basis: Basis,
    /// Other names lead to this file: it can be kept, but not written to.
    linked: bool,
    resize: bool,
    needed: Vec<u32>,
    clear: Vec<Range<u64>>,
    /// Bytes that are right.
    same: u64,
}

/// The segments of all files, in portions.
fn segments(plan: &Plan) -> Vec<Vec<Segment>> {
    let (mut portions, mut portion, mut size) = (Vec::new(), Vec::new(), 0);
    for (number, file) in plan.files.iter().enumerate().filter(|(_, file)| !file.skip) {
        let (mut start, mut first) = (0, file.places.start);
        loop {
            let mut last = first;
            while last < file.places.end && plan.places[last].at < start + BYTES {
                last += 1;
            }
            let end = if last < file.places.end { plan.places[last].at } else { file.size };
            portion.push(Segment { file: number, bytes: start..end, places: first..last });
            size += end - start;
            if size >= BYTES || portion.len() >= FILES {
                portions.push(std::mem::take(&mut portion));
                size = 0;
            }
            if last == file.places.end {
                break;
            }
            (start, first) = (end, last);
        }
    }
    portions.push(portion);
    portions
}

/// Compares all files with what is there, and says in their states what is left to do. Gives the numbers of the places
/// that are to be written, and how many bytes are right.
pub(super) fn compare(work: &mut Work, threads: usize) -> Result<(Vec<u32>, u64)> {
    let portions = segments(&work.plan);
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let shared = &*work;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let (mut worker, mut buffer, mut seen) = (Worker::default(), Vec::new(), Vec::new());
                while let Some(portion) = portions.get(next.fetch_add(1, Relaxed)) {
                    for segment in portion {
                        match shared.go_on().and_then(|()| look(shared, &mut worker, segment, &mut buffer)) {
                            Ok(one) => seen.push(one),
                            Err(why) => return shared.fail(why),
                        }
                    }
                }
                lock(&found).append(&mut seen);
            });
        }
    });
    work.go_on()?;
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by_key(|seen| seen.file);
    let (mut needed, mut same) = (Vec::new(), 0);
    for segments in found.chunk_by(|a, b| a.file == b.file) {
        same += settle(work, segments, &mut needed);
    }
    Ok((needed, same))
}

/// What all segments of a file together say. Gives how many of its bytes are right.
fn settle(work: &mut Work, segments: &[Seen], needed: &mut Vec<u32>) -> u64 {
    let file = segments[0].file;
    let (basis, linked, resize) = (segments[0].basis, segments[0].linked, segments[0].resize);
    let places = work.plan.files[file].places.clone();
    let size = work.plan.files[file].size;
    let same = segments.iter().map(|seen| seen.same).sum();
    let state = &mut work.states[file];
    let differs = resize || segments.iter().any(|seen| !seen.needed.is_empty() || !seen.clear.is_empty());
    // A file that was put in place of the first while we looked is not mixed with it.
    let turned = segments.iter().any(|seen| seen.basis != basis);
    if basis == Basis::New || turned || (linked && differs) {
        state.basis = Basis::New;
        *state.left.get_mut() = places.len() as u32;
        needed.extend(places.clone().map(|place| place as u32));
        // Its zeros are there with its size; what was found right does not count.
        let data: u64 = work.plan.places[places].iter().map(|place| u64::from(place.length)).sum();
        work.progress.done_bytes.fetch_sub(same, Relaxed);
        work.progress.add(0, size - data);
        return 0;
    }
    state.basis = if basis == Basis::There && !differs { Basis::Whole } else { basis };
    state.clear = segments.iter().flat_map(|seen| seen.clear.iter().cloned()).collect();
    *state.left.get_mut() = segments.iter().map(|seen| seen.needed.len() as u32).sum();
    work.progress.add(0, state.clear.iter().map(|range| range.end - range.start).sum());
    needed.extend(segments.iter().flat_map(|seen| &seen.needed));
    same
}

fn look(work: &Work, worker: &mut Worker, segment: &Segment, buffer: &mut Vec<u8>) -> Result<Seen> {
    let file = &work.plan.files[segment.file];
    let mut seen = Seen { file: segment.file, ..Seen::default() };
    let Some((basis, open, stat)) = basis(work, worker, segment.file) else { return Ok(seen) };
    (seen.basis, seen.linked, seen.resize) = (basis, stat.st_nlink > 1, stat.st_size.cast_unsigned() != file.size);
    match differences(work, &open, segment, buffer, &mut seen) {
        Ok(()) => work.progress.add(0, seen.same),
        Err(why) if is_fatal(why) && why != Errno::IO => return Err(work.target.wrong(&file.path, why)),
        // What cannot be read, on a bad disk say, is written anew.
        Err(_) => seen = Seen { file: segment.file, ..Seen::default() },
    }
    Ok(seen)
}

/// The file that is there, or what an interrupted restore left of it.
fn basis(work: &Work, worker: &mut Worker, number: usize) -> Option<(Basis, OwnedFd, Stat)> {
    let file = &work.plan.files[number];
    let (within, name) = work.target.near(&mut worker.near, &file.path).ok()?;
    let unfinished = work.plan.incomplete(&file.path);
    let look = |name| statat(within, name, AtFlags::SYMLINK_NOFOLLOW);
    let (basis, name, there) = match look(name) {
        Err(Errno::NOENT) => (Basis::Incomplete, unfinished.as_slice(), look(&unfinished)),
        there => (Basis::There, name, there),
    };
    // To open a device can have consequences.
    there.ok().filter(|stat| kind(stat) == FileType::RegularFile)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = openat(within, name, flags, Mode::empty()).ok()?;
    let stat = fstat(&open).ok()?;
    // Names from outside the snapshot that lead to it must not change with it.
    let known = if basis == Basis::There { u128::from(file.links) + 1 } else { 1 };
    // The kernel's number has another width on each processor.
    let names = u128::from(stat.st_nlink);
    (kind(&stat) == FileType::RegularFile && [1, known].contains(&names)).then_some((basis, open, stat))
}

/// Compares each place and each run of zeros of a segment.
fn differences(work: &Work, open: &OwnedFd, segment: &Segment, buffer: &mut Vec<u8>, seen: &mut Seen) -> rustix::io::Result<()> {
    let (mut at, mut number) = (segment.bytes.start, segment.places.start);
    while number < segment.places.end {
        let place = work.plan.places[number];
        zeros(open, at..place.at, buffer, seen)?;
        // Parts of chunks are known by what they make together. A group that goes on in another segment is not looked at.
        let (places, id) = match work.plan.group(number) {
            None => (number..number + 1, Some(&work.plan.chunks[place.chunk as usize].piece.chunk)),
            Some(group) => {
                let places = number..group.places.end.min(segment.places.end);
                let whole = places == group.places;
                (places, whole.then_some(&group.id))
            }
        };
        let length: u64 = work.plan.places[places.clone()].iter().map(|place| u64::from(place.length)).sum();
        if is_there(work, open, id, place.at, length, buffer)? {
            seen.same += length;
        } else {
            seen.needed.extend(places.clone().map(|number| number as u32));
        }
        (at, number) = (place.at + length, places.end);
    }
    zeros(open, at..segment.bytes.end, buffer, seen)
}

/// Does the file have the content of this name there? Without a name nobody knows.
fn is_there(work: &Work, open: &OwnedFd, id: Option<&Id>, at: u64, length: u64, buffer: &mut Vec<u8>) -> rustix::io::Result<bool> {
    let Some(id) = id else { return Ok(false) };
    buffer.resize(buffer.len().max(length as usize), 0);
    let content = &mut buffer[..length as usize];
    Ok(read(open, content, at)? == content.len() && work.repository.keyring.chunk_id(content) == *id)
}

/// Finds what is not zero where all should be.
fn zeros(open: &OwnedFd, range: Range<u64>, buffer: &mut Vec<u8>, seen: &mut Seen) -> rustix::io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        // Holes need not be read.
        let data = match seek(open, SeekFrom::Data(at)) {
            Ok(data) => data.min(range.end),
            Err(Errno::NXIO) => range.end,
            Err(_) => at,
        };
        seen.same += data - at;
        at = data;
        if at == range.end {
            break;
        }
        let length = (range.end - at).min(ZEROS as u64) as usize;
        buffer.resize(buffer.len().max(length), 0);
        let got = read(open, &mut buffer[..length], at)?;
        if got == 0 {
            // Beyond its end: the size will be set.
            break;
        }
        if buffer[..got].iter().all(|byte| *byte == 0) {
            seen.same += got as u64;
        } else {
            seen.clear.push(at..at + got as u64);
        }
        at += got as u64;
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends.
fn read(open: &OwnedFd, into: &mut [u8], at: u64) -> rustix::io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match pread(open, &mut into[filled..], at + filled as u64) {
            Err(Errno::INTR) => {}
            Err(why) => return Err(why),
            Ok(0) => break,
            Ok(length) => filled += length,
        }
    }
    Ok(filled)
}
