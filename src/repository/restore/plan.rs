//! What a restore has to do, decided from the snapshot's list alone: nothing here touches the world.
//!
//! The list is not believed. It may come from whoever could write to the repository, so a path must lead into the target
//! and nowhere else, and what contradicts something else in the list is named and left out. Places that no chunk
//! covers are zeros, so runs of zeros need not be kept here.
//!
//! Memory: about 150 bytes and its path for a file, 24 bytes for each place where a chunk or a part of one goes, 100 for
//! each chunk, and 48 for each group of parts.

use super::Lost;
use crate::repository::{
    entry::{Entry, Extent, Instant, Meta, Node, Patched, shown},
    globs::Globs,
    index::{ById, Index},
    names::Id,
    pack::Piece,
};
use std::{collections::BTreeMap, mem, ops::Range, sync::Arc};

/// What a file is called until it is whole.
pub const INCOMPLETE: &[u8] = b".muster-incomplete";
/// Of objects, which have none.
const OBJECT_MODE: u32 = 0o644;

#[derive(Default)]
pub(super) struct Plan {
    /// All four in the order of their paths.
    pub folders: Vec<Folder>,
    pub files: Vec<File>,
    pub links: Vec<Link>,
    pub others: Vec<Entry>,
    pub chunks: Vec<Chunk>,
    /// Of each file together, and by offset.
    pub places: Vec<Place>,
    /// In the order of their places.
    pub groups: Vec<Group>,
    pub packs: Vec<Id>,
    pub lost: Vec<Lost>,
    /// Some path ends as those of incomplete files do.
    suffixed: bool,
    /// Parts of the list could not be read: what is in the target may be in the snapshot for all we know.
    pub partial: bool,
}

pub(super) struct Folder {
    /// Ends with "/"; that of the target itself is empty.
    pub path: Vec<u8>,
    /// `None`: it is there only because something is in it.
    pub meta: Option<Meta>,
}

pub(super) struct File {
    pub path: Vec<u8>,
    pub meta: Meta,
    /// From a bucket: it has no owner and no attributes.
    pub object: bool,
    pub size: u64,
    pub places: Range<usize>,
    /// How many hard links lead to it.
    pub links: u64,
    /// Why it cannot be whole.
    pub lost: Option<String>,
    /// Not even what can be had of it is written.
    pub skip: bool,
}

/// A further name of a file.
pub(super) struct Link {
    pub path: Vec<u8>,
    pub to: Vec<u8>,
}

pub(super) struct Chunk {
    /// Which of the plan's packs.
    pub pack: u32,
    pub piece: Piece,
}

/// Where one chunk goes, or a part of it.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub chunk: u32,
    pub file: u32,
    pub at: u64,
    /// What of the chunk.
    pub from: u32,
    pub length: u32,
}

/// Places, one after another, that together have a digest of their own.
pub(super) struct Group {
    pub places: Range<usize>,
    pub id: Id,
}

impl Plan {
    /// Those that this place is one of, if it is only a part of its chunk.
    pub fn group(&self, place: usize) -> Option<&Group> {
        let after = self.groups.partition_point(|group| group.places.start <= place);
        after.checked_sub(1).map(|at| &self.groups[at]).filter(|group| group.places.contains(&place))
    }
    /// There is nothing to be done, and nothing is lost either.
    pub fn is_nothing(&self) -> bool {
        self.folders.is_empty() && self.files.is_empty() && self.links.is_empty() && self.others.is_empty() && self.lost.is_empty()
    }
    /// Is this the path of something that is restored, or would be if it were not lost? A folder's ends with "/".
    pub fn has(&self, path: &[u8]) -> bool {
        if path.ends_with(b"/") {
            return self.folders.binary_search_by(|folder| folder.path.as_slice().cmp(path)).is_ok();
        }
        self.file(path).is_some()
            || self.links.binary_search_by(|link| link.path.as_slice().cmp(path)).is_ok()
            || self.others.binary_search_by(|other| other.path.as_slice().cmp(path)).is_ok()
    }
    pub fn file(&self, path: &[u8]) -> Option<usize> {
        self.files.binary_search_by(|file| file.path.as_slice().cmp(path)).ok()
    }
    /// What the last part of a path is called until it is whole: no name that anything else has.
    pub fn incomplete(&self, path: &[u8]) -> Vec<u8> {
        let (folder, name) = split(path);
        let mut end = INCOMPLETE.to_vec();
        loop {
            // A name has 255 bytes at most; what is cut off may have told two apart.
            let whole = if name.len() + end.len() <= 255 {
                [name, &end].concat()
            } else {
                let digest = Id::of(name).short();
                [&name[..200], b".", digest.as_bytes(), &end].concat()
            };
            let taken = || self.has(&[folder, &whole].concat()) || self.has(&[folder, &whole, b"/"].concat());
            if !self.suffixed || !taken() {
                return whole;
            }
            end.push(b'~');
        }
    }
    /// Looks for the chunks of these places in a newer index. What it does not have stays where it was.
    pub fn relocate(&mut self, places: &[u32], index: &Index) {
        let mut by_pack: ById<u32> = self.packs.iter().enumerate().map(|(number, pack)| (*pack, number as u32)).collect();
        for place in places {
            let chunk = &mut self.chunks[self.places[*place as usize].chunk as usize];
            if let Some((pack, piece)) = index.find(&chunk.piece.chunk).filter(|(_, piece)| piece.length == chunk.piece.length) {
                *chunk = Chunk { pack: pack_number(&mut self.packs, &mut by_pack, pack), piece };
            }
        }
    }
    /// Of all files that are restored.
    pub fn bytes(&self) -> u64 {
        self.files.iter().filter(|file| !file.skip).map(|file| file.size).sum()
    }
    pub(super) fn lose(&mut self, path: &[u8], why: impl Into<String>) {
        self.lost.push(Lost { path: shown(path), why: why.into() });
    }
}

/// The folder that a path lies in, with its "/", and the name in there.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1))
}

/// Why a path from a list must not be followed.
fn refused(path: &[u8], folder: bool) -> Option<&'static str> {
    if folder && path.is_empty() {
        return None;
    }
    let bare = if folder { path.strip_suffix(b"/") } else { Some(path) };
    let Some(bare) = bare else { return Some("it is a folder, and its path is not that of one") };
    let mut parts = bare.split(|byte| *byte == b'/');
    if parts.any(|part| part.is_empty() || part == b"." || part == b"..") {
        return Some("its path leads out of the target, or nowhere: it has a part that is empty, `.` or `..`");
    }
    bare.contains(&0).then_some("its path holds a zero byte, which no file system allows")
}

/// Makes a plan of entries that come in the order of a list.
pub(super) struct Planner<'a> {
    pub plan: Plan,
    pub index: Arc<Index>,
    include: &'a Globs,
    /// The folders that the list is in; the flag says that one is in the plan.
    within: Vec<(Folder, bool)>,
    last: Option<Vec<u8>>,
    by_chunk: ById<u32>,
    by_pack: ById<u32>,
    /// Links to files that are not chosen: by the path of the file.
    orphans: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
}

impl<'a> Planner<'a> {
    pub fn new(index: Arc<Index>, include: &'a Globs) -> Self {
        let (by_chunk, by_pack) = (ById::default(), ById::default());
        Self { plan: Plan::default(), index, include, within: Vec::new(), last: None, by_chunk, by_pack, orphans: BTreeMap::new() }
    }

    /// Is the content of this entry wanted at all?
    pub fn wants(&self, path: &[u8]) -> bool {
        self.include.chooses(path)
    }

    /// Takes the next entry. `extents` are those of a file: or why they cannot be had.
    pub fn add(&mut self, mut entry: Entry, extents: Result<Vec<Extent>, String>) {
        // How consoles of buckets make a folder: an empty object whose key ends with "/".
        let marker = matches!(&entry.node, Node::Object { content, .. } if content.size == 0) && entry.path.ends_with(b"/");
        if marker {
            entry.node = Node::Folder { meta: Meta::default() };
        }
        let folder = matches!(entry.node, Node::Folder { .. });
        if let Some(why) = refused(&entry.path, folder) {
            return self.plan.lose(&entry.path, why);
        }
        if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
            return self.plan.lose(&entry.path, "the list has it twice, or out of order");
        }
        self.last = Some(entry.path.clone());
        if let Node::Folder { meta } = entry.node {
            self.leave(&entry.path);
            let wanted = self.wants(&entry.path);
            self.within.push((Folder { path: entry.path, meta: (!marker).then_some(meta) }, false));
            if wanted {
                let path = self.within.last().map(|(folder, _)| folder.path.clone()).unwrap_or_default();
                self.enter(&path);
            }
        } else if self.wants(&entry.path) {
            self.leave(&entry.path);
            self.enter(split(&entry.path).0);
            self.leaf(entry, extents);
        }
    }

    /// Forgets the folders that this path is not in.
    fn leave(&mut self, path: &[u8]) {
        while self.within.pop_if(|(folder, _)| !path.starts_with(&folder.path)).is_some() {}
    }

    /// Plans this folder and those that it is in.
    fn enter(&mut self, path: &[u8]) {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at + 1);
        self.plan.suffixed |= path.windows(INCOMPLETE.len()).any(|part| part == INCOMPLETE);
        for (depth, end) in std::iter::once(0).chain(ends).enumerate() {
            // The list of a single file, of a bucket, or one that is damaged, does not have all of them.
            if self.within.get(depth).is_none_or(|(folder, _)| folder.path.len() != end) {
                self.within.insert(depth, (Folder { path: path[..end].to_vec(), meta: None }, false));
            }
            let (folder, planned) = &mut self.within[depth];
            if !mem::replace(planned, true) {
                self.plan.folders.push(Folder { path: folder.path.clone(), meta: folder.meta.take() });
            }
        }
    }

    fn leaf(&mut self, entry: Entry, extents: Result<Vec<Extent>, String>) {
        self.plan.suffixed |= entry.path.windows(INCOMPLETE.len()).any(|part| part == INCOMPLETE);
        match entry.node {
            Node::File { meta, content, .. } => self.file(entry.path, meta, false, content.size, extents),
            Node::Object { info, content } => {
                let meta = Meta { mode: OBJECT_MODE, mtime: info.mtime, ..Meta::default() };
                self.file(entry.path, meta, true, content.size, extents);
            }
            Node::HardLink { to, .. } => self.plan.links.push(Link { path: entry.path, to }),
            _ => self.plan.others.push(entry),
        }
    }

    fn file(&mut self, path: Vec<u8>, meta: Meta, object: bool, size: u64, extents: Result<Vec<Extent>, String>) {
        let (start, file) = (self.plan.places.len(), self.plan.files.len() as u32);
        let (mut at, mut lost) = (0, None);
        for extent in extents.unwrap_or_else(|why| {
            lost = Some(why);
            Vec::new()
        }) {
            let placed = match &extent {
                Extent::Zeros(_) => Ok(()),
                Extent::Chunk { id, length } => {
                    self.chunk(id, *length).map(|chunk| self.plan.places.push(Place { chunk, file, at, from: 0, length: *length }))
                }
                Extent::Patched(patched) => self.patched(patched, file, at),
            };
            lost = placed.err().or(lost);
            at += extent.length();
        }
        let places = start..self.plan.places.len();
        self.plan.files.push(File { path, meta, object, size, places, links: 0, lost, skip: false });
    }

    fn patched(&mut self, patched: &Patched, file: u32, mut at: u64) -> Result<(), String> {
        let start = self.plan.places.len();
        for (id, part) in patched.parts() {
            let id = id.ok_or("the list names a part of no chunk")?;
            let chunk = self.find(id)?;
            if part.offset + part.length > self.plan.chunks[chunk as usize].piece.length {
                return Err(format!("the list has a part beyond the end of chunk {}", id.short()));
            }
            self.plan.places.push(Place { chunk, file, at, from: part.offset, length: part.length });
            at += u64::from(part.length);
        }
        self.plan.groups.push(Group { places: start..self.plan.places.len(), id: patched.id });
        Ok(())
    }

    fn chunk(&mut self, id: &Id, length: u32) -> Result<u32, String> {
        let chunk = self.find(id)?;
        if self.plan.chunks[chunk as usize].piece.length != length {
            return Err(format!("the list and the index do not agree on the length of chunk {}", id.short()));
        }
        Ok(chunk)
    }

    fn find(&mut self, id: &Id) -> Result<u32, String> {
        let chunk = if let Some(chunk) = self.by_chunk.get(id) {
            *chunk
        } else {
            let place = self.index.find(id);
            let (pack, piece) = place.ok_or_else(|| format!("chunk {} is in no pack that the index names", id.short()))?;
            let pack = pack_number(&mut self.plan.packs, &mut self.by_pack, pack);
            self.plan.chunks.push(Chunk { pack, piece });
            let chunk = self.plan.chunks.len() as u32 - 1;
            self.by_chunk.insert(*id, chunk);
            chunk
        };
        Ok(chunk)
    }

    /// After the last entry: what contradicts something else is taken out. Gives the paths of files that are not
    /// chosen, but wanted by links that are.
    pub fn check(&mut self) -> Vec<Vec<u8>> {
        const TWIN: &str = "a folder of that name is in the snapshot too, and no file system has both";
        let plan = &mut self.plan;
        let is_folder = |path: &[u8]| {
            let path = [path, b"/"].concat();
            plan.folders.binary_search_by(|folder| folder.path.cmp(&path)).is_ok()
        };
        let mut twins: Vec<Vec<u8>> = Vec::new();
        for file in plan.files.iter_mut().filter(|file| is_folder(&file.path)) {
            (file.lost, file.skip) = (Some(TWIN.to_owned()), true);
        }
        twins.extend(plan.links.extract_if(.., |link| is_folder(&link.path)).map(|link| link.path));
        twins.extend(plan.others.extract_if(.., |other| is_folder(&other.path)).map(|other| other.path));
        for path in twins {
            plan.lose(&path, TWIN);
        }
        for link in mem::take(&mut plan.links) {
            if let Some(file) = plan.file(&link.to) {
                plan.files[file].links += 1;
                plan.links.push(link);
            } else if plan.others.binary_search_by(|other| other.path.cmp(&link.to)).is_ok() {
                plan.links.push(link);
            } else {
                self.orphans.entry(link.to).or_default().push(link.path);
            }
        }
        self.orphans.keys().cloned().collect()
    }

    /// Does a link lead to this path, which is not chosen itself?
    pub fn awaits(&self, path: &[u8]) -> bool {
        self.orphans.contains_key(path)
    }

    /// An entry that only links lead to: the first of them becomes what it is.
    pub fn adopt(&mut self, entry: Entry, extents: Result<Vec<Extent>, String>) {
        let Some(mut paths) = self.orphans.remove(&entry.path) else { return };
        let first = paths.remove(0);
        let links = paths.len() as u64;
        if !matches!(entry.node, Node::Folder { .. } | Node::HardLink { .. }) {
            self.leaf(Entry { path: first.clone(), node: entry.node }, extents);
            if let Some(file) = self.plan.files.last_mut().filter(|file| file.path == first) {
                file.links = links;
            }
            self.plan.links.extend(paths.into_iter().map(|path| Link { path, to: first.clone() }));
        }
    }

    pub fn finish(mut self) -> Plan {
        for (to, paths) in mem::take(&mut self.orphans) {
            let why = format!("it is a link to `{}`, which the list does not have", shown(&to));
            for path in paths {
                self.plan.lose(&path, &why);
            }
        }
        let plan = &mut self.plan;
        plan.links.sort_by(|a, b| a.path.cmp(&b.path));
        plan.others.sort_by(|a, b| a.path.cmp(&b.path));
        // Adopted files stand at the end: places name files by number, so they are numbered anew.
        let mut order: Vec<usize> = (0..plan.files.len()).collect();
        order.sort_by(|a, b| plan.files[*a].path.cmp(&plan.files[*b].path));
        if !order.is_sorted() {
            let mut files: Vec<Option<File>> = mem::take(&mut plan.files).into_iter().map(Some).collect();
            plan.files = order.iter().filter_map(|old| files[*old].take()).collect();
            for (number, file) in plan.files.iter().enumerate() {
                plan.places[file.places.clone()].iter_mut().for_each(|place| place.file = number as u32);
            }
        }
        self.plan
    }
}

fn pack_number(packs: &mut Vec<Id>, by_pack: &mut ById<u32>, pack: Id) -> u32 {
    *by_pack.entry(pack).or_insert_with(|| {
        packs.push(pack);
        packs.len() as u32 - 1
    })
}

/// What is to be fetched of one pack, and where it goes.
pub(super) struct Job {
    pub pack: u32,
    /// Numbers of places: those of one chunk together, chunks in the order of the pack.
    pub places: Vec<u32>,
}

/// The jobs for these places.
pub(super) fn jobs(plan: &Plan, mut places: Vec<u32>) -> Vec<Job> {
    let chunk = |place: u32| &plan.chunks[plan.places[place as usize].chunk as usize];
    places.sort_unstable_by_key(|place| (chunk(*place).pack, chunk(*place).piece.offset, *place));
    let same = places.chunk_by(|a, b| chunk(*a).pack == chunk(*b).pack);
    let mut jobs: Vec<Job> = same.map(|places| Job { pack: chunk(places[0]).pack, places: places.to_vec() }).collect();
    // In the order of the files, so that folders are written one after another.
    jobs.sort_by_key(|job| job.places.iter().min().copied());
    jobs
}

/// Parts of a pack that lie closer than this are fetched as one.
const GAP: u64 = 256 * 1024;
/// So much at a time: enough for a request to be worth its while, little enough for each thread to hold it.
const AT_ONCE: u64 = 6 * 1024 * 1024;

/// What is asked for, so that all of these parts (in order) are had in few requests.
pub(super) fn coalesce(parts: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut asked: Vec<Range<u64>> = Vec::new();
    for part in parts {
        match asked.last_mut() {
            Some(last) if part.start < last.end + GAP && part.end <= last.start + AT_ONCE => last.end = last.end.max(part.end),
            _ => asked.push(part),
        }
    }
    asked
}

/// The newest time that a file system can be told.
pub(super) fn plausible(at: Instant) -> bool {
    at.seconds.abs() < 1 << 40
}
