//! One backup: a source is read, what is new is stored, the list is written, and the snapshot last.

use super::{
    RepositoryError, Result,
    codec::Hint,
    cut::{Cutter, Layout, MAX_CHUNK},
    entry::{Content, Entry, Extent, Extents, Node, shown},
    index::Index,
    list::Lister,
    marks,
    names::Id,
    open::Repository,
    pages::{self, PageCheck},
    progress::Progress,
    rescue::secure,
    seal::Kind,
    snapshot::{Snapshot, Source as Origin, Stats},
    source::{Body, Item, Parent, Reading, Source, Unreadable},
    write::{Buffer, Buffers, Filler, Job, Jobs, Slot, Suspect, Writer, queue, work},
};
use crate::providers::{clock::Clock, port::ObjectWrite};
use std::{
    collections::{HashSet, VecDeque},
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use tokio::runtime::Handle;

/// Files are read into buffers of this size: twice the longest chunk, so that little is moved from one to the next.
const BUFFER: usize = 2 * MAX_CHUNK;
/// What is read whole, into a buffer of its own.
const SMALL: u64 = 256 * 1024;
/// Entries whose chunks are not all stored yet.
const WAITING: usize = 4096;
/// Extents of a file that waits for all others, before they are put into chunks of their own.
const KEPT: usize = 1024;
/// How long changed pages may wait for more of them when everybody waits for them.
const GATHERED: std::time::Duration = std::time::Duration::from_millis(10);

/// What a snapshot says of itself beside what is in it.
#[derive(Clone, Debug)]
pub struct About {
    pub origin: Origin,
    pub host: String,
    pub user: String,
    pub tags: Vec<String>,
    pub run: Option<String>,
}

pub struct Created {
    pub id: Id,
    pub snapshot: Snapshot,
    /// All that was written, the snapshot itself included: `stats` cannot say that of itself.
    pub stored: u64,
    /// What could not be read, and is therefore not in the snapshot.
    pub unreadable: Vec<Unreadable>,
    /// Files that changed while they were read.
    pub changed: Vec<Vec<u8>>,
    /// Pages of a database that are not what the database wrote.
    pub corrupt: Vec<String>,
}

/// What is known only once everything is read.
pub struct Ended {
    pub origin: Origin,
    pub corrupt: Vec<String>,
}

/// What a backup goes on from: the index, and the last snapshot of the same source if there is one.
pub struct Base {
    pub parent: Option<(Id, Snapshot)>,
    /// What need not be stored.
    held: Arc<Index>,
    /// What can be read: also what lies in marked packs.
    all: Arc<Index>,
    /// If packs are missing: what is not. What they held is read anew.
    whole: Option<Arc<Index>>,
    /// What was found damaged meanwhile.
    suspect: Suspect,
    began: jiff::Timestamp,
}

impl Base {
    /// `parent`: the snapshot to compare with.
    pub async fn load(repository: &Repository, parent: Option<(Id, Snapshot)>, clock: &dyn Clock) -> Result<Self> {
        let began = clock.now();
        // Marks before packs: with those of a mark that is deleted in between, it is seen that they are gone.
        let marked = marks::packs(&marks::load(repository).await?.whole, None);
        // What is damaged in the index or missing is as if it were not held: it is stored anew.
        let present = repository.present().await?;
        let packs = present.packs.whole;
        let whole = if present.gone.is_empty() { None } else { Some(Arc::new(Index::of(&packs))) };
        let all = Arc::new(Index::of(&packs));
        let held = if marked.is_empty() { all.clone() } else { Arc::new(Index::without(&packs, &marked)) };
        Ok(Self { parent, held, all, whole, suspect: Suspect::default(), began })
    }

    /// The parent's entries, for the source.
    #[must_use]
    pub fn entries(&self, repository: &Arc<Repository>) -> Parent {
        let Some((_, snapshot)) = &self.parent else { return Parent::none() };
        let (repository, index, handle) = (repository.clone(), self.all.clone(), Handle::current());
        let suspect = self.suspect.clone();
        let fetch = move |chunk: &Id| {
            let content = handle.block_on(repository.chunk(&index, chunk));
            if matches!(content, Err(RepositoryError::Damaged { .. })) {
                suspect.add(*chunk);
            }
            content
        };
        let parent = Parent::new(snapshot.list.clone(), snapshot.time, Box::new(fetch));
        match &self.whole {
            Some(whole) => parent.but_for_what_is_lost(whole.clone()),
            None => parent,
        }
    }
}

/// Reads the source and stores it. Long, parallel, and stopped by `progress.stop()`.
pub async fn create(
    repository: Arc<Repository>,
    store: Arc<dyn ObjectWrite>,
    source: Box<dyn Source>,
    base: Base,
    about: About,
    progress: Arc<Progress>,
    clock: Arc<dyn Clock>,
) -> Result<Created> {
    let origin = about.origin.clone();
    let end = async { Ok(Ended { origin, corrupt: Vec::new() }) };
    create_then(repository, store, source, base, about, progress, clock, end).await
}

/// The same, and before the snapshot is written `end` must have come: what it gives stands in the snapshot.
#[allow(clippy::too_many_arguments)]
pub async fn create_then(
    repository: Arc<Repository>,
    store: Arc<dyn ObjectWrite>,
    source: Box<dyn Source>,
    base: Base,
    about: About,
    progress: Arc<Progress>,
    clock: Arc<dyn Clock>,
    end: impl Future<Output = Result<Ended>>,
) -> Result<Created> {
    let started = clock.monotonic();
    // What lies in marked packs is relied on too, by way of the parent.
    let relied: Vec<(Id, u64)> = base.all.packs().copied().collect();
    drop(base.all);
    let writer = Arc::new(Writer::new(repository.clone(), store, base.held).without(base.suspect));
    let (threads, watch) = (writer.clone(), progress.clone());
    let read = tokio::task::spawn_blocking(move || read_all(&threads, source, &watch));
    let read = read.await.map_err(|e| RepositoryError::Interrupted(e.to_string()))?;
    let stored = writer.finish().await;
    // A failure to store ends the reading too (which is then interrupted): it is the reason, and comes first.
    let read = match (read, stored) {
        (Err(RepositoryError::Interrupted(_)), Err(reason)) => return Err(reason),
        (Err(reason), _) | (Ok(_), Err(reason)) => return Err(reason),
        (Ok(read), Ok(())) => read,
    };
    let Outcome { list, mut stats, unreadable, changed } = read;
    // Ctrl-C ends the program at the other end of a pipe as well: what came is then no whole.
    if progress.is_stopped() {
        return Err(stopped());
    }
    let Ended { origin, corrupt } = end.await?;
    secure(&writer, &relied, &list, &*clock).await?;
    let written = writer.written();
    (stats.bytes_new, stats.chunks_new, stats.bytes_stored) = (written.new_bytes, written.new_chunks, written.stored);
    stats.unreadable = unreadable.len() as u64;
    stats.changed_while_read = changed.len() as u64;
    stats.corrupt_pages = corrupt.len() as u64;
    let snapshot = Snapshot {
        time: base.began,
        duration_ms: (clock.monotonic().saturating_sub(started)).as_millis() as u64,
        host: about.host,
        user: about.user,
        program: concat!("muster ", env!("CARGO_PKG_VERSION")).to_owned(),
        source: origin,
        tags: about.tags,
        parent: base.parent.map(|(id, _)| id),
        run: about.run,
        list,
        stats,
    };
    let plain = serde_json::to_vec(&snapshot).map_err(|e| RepositoryError::Refused(e.to_string()))?;
    let id = writer.commit(Kind::Snapshot, &plain).await?;
    Ok(Created { id, snapshot, stored: writer.written().stored, unreadable, changed, corrupt })
}

fn stopped() -> RepositoryError {
    RepositoryError::Interrupted("the backup was stopped; what is stored already is used by the next one".to_owned())
}

/// What reading a source gives.
struct Outcome {
    list: Vec<Id>,
    stats: Stats,
    unreadable: Vec<Unreadable>,
    changed: Vec<Vec<u8>>,
}

/// Reads on this thread, stores on as many others as the machine has processors.
fn read_all(writer: &Writer, source: Box<dyn Source>, progress: &Progress) -> Result<Outcome> {
    let (send, receive) = queue();
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| work(writer, &receive));
        }
        // The queue ends with this: the workers store what they have left and end.
        let reader = Reader::new(writer, send, progress);
        let done = reader.run(source);
        if let Err(error) = &done {
            // Whatever waits is let go.
            writer.fail(RepositoryError::Interrupted(error.to_string()));
        }
        done
    })
}

/// An entry whose content is on its way.
struct Waiting {
    entry: Entry,
    slot: Option<Arc<Slot>>,
}

struct Reader<'w> {
    writer: &'w Writer,
    jobs: Jobs,
    progress: &'w Progress,
    cutter: Cutter,
    buffers: Buffers,
    waiting: VecDeque<Waiting>,
    lister: Lister<Filler<'w>>,
    /// Complete, of a source that does not give them in order.
    unsorted: Option<Vec<Entry>>,
    /// For changed pages, when nobody else stores them.
    filler: Filler<'w>,
    stats: Stats,
    changed: Vec<Vec<u8>>,
    /// Files that could not be read: what is another name of one has no content either.
    lost: HashSet<Vec<u8>>,
}

impl<'w> Reader<'w> {
    fn new(writer: &'w Writer, jobs: Jobs, progress: &'w Progress) -> Self {
        Self {
            writer,
            jobs,
            progress,
            cutter: Cutter::new(writer.repository.keyring.cut_seed()),
            buffers: Buffers::new(5, BUFFER),
            waiting: VecDeque::new(),
            lister: Lister::new(Filler::new(writer)),
            unsorted: None,
            filler: Filler::new(writer),
            stats: Stats::default(),
            changed: Vec::new(),
            lost: HashSet::new(),
        }
    }

    fn run(mut self, mut source: Box<dyn Source>) -> Result<Outcome> {
        let mut unreadable = Vec::new();
        self.unsorted = (!source.in_order()).then(Vec::new);
        while let Some(item) = source.next() {
            self.look_up()?;
            match item? {
                Ok(item) => match self.take(item)? {
                    None => {}
                    Some(lost) => unreadable.push(lost),
                },
                Err(lost) => unreadable.push(lost),
            }
            self.settle(WAITING)?;
        }
        self.settle(0)?;
        let mut unsorted = self.unsorted.take().unwrap_or_default();
        unsorted.sort_by(|a, b| a.path.cmp(&b.path));
        unsorted.into_iter().try_for_each(|entry| self.lister.add(entry))?;
        self.filler.finish()?;
        // Before the list counts, everything in it must be stored; that is what `Writer::finish` waits for.
        let (list, filler) = self.lister.finish()?;
        filler.finish()?;
        Ok(Outcome { list, stats: self.stats, unreadable, changed: self.changed })
    }

    /// Should it go on?
    fn look_up(&self) -> Result<()> {
        if self.progress.is_stopped() {
            return Err(stopped());
        }
        if self.writer.has_failed() {
            return Err(RepositoryError::Interrupted("storing failed".to_owned()));
        }
        Ok(())
    }

    /// Takes one entry in. Gives it back by name if it turns out that it cannot be read.
    fn take(&mut self, item: Item) -> Result<Option<Unreadable>> {
        let Item { mut entry, reading } = item;
        if let Node::HardLink { to, .. } = &entry.node
            && self.lost.contains(to)
        {
            let why = format!("it is another name of {}, which cannot be read", shown(to));
            return Ok(Some(Unreadable { path: entry.path, why }));
        }
        let slot = match reading {
            Reading::Nothing => None,
            Reading::Same => {
                // What need not be read is done.
                self.progress.done_bytes.fetch_add(entry.node.content().map_or(0, |c| c.size), Relaxed);
                None
            }
            Reading::Read(_) | Reading::Pages(..) => {
                let (mut body, before) = match reading {
                    Reading::Pages(body, before, check) => (body, Some(Before::new(before, check))),
                    Reading::Read(body) => (body, None),
                    Reading::Nothing | Reading::Same => return Ok(None),
                };
                let slot = Arc::new(Slot::default());
                let guess = entry.node.content().map_or(0, |c| c.size);
                match self.read(&mut *body, &slot, guess, before) {
                    Ok(Read { size, holes, digest, changed }) => {
                        if let Node::File { content, .. } | Node::Object { content, .. } = &mut entry.node {
                            *content = Content { size, changed, digest, extents: Extents::Here(Vec::new()) };
                        }
                        if changed {
                            self.changed.push(entry.path.clone());
                        }
                        self.stats.bytes_read += size - holes;
                        Some(slot)
                    }
                    Err(Broken::Storing(error)) => return Err(error),
                    Err(Broken::Reading(why)) => {
                        self.lost.insert(entry.path.clone());
                        return Ok(Some(Unreadable { path: entry.path, why: why.to_string() }));
                    }
                }
            }
        };
        self.count(&entry);
        if self.waiting.is_empty() && slot.is_none() {
            self.list(entry)?;
        } else {
            self.waiting.push_back(Waiting { entry, slot });
        }
        Ok(None)
    }

    fn count(&mut self, entry: &Entry) {
        let size = entry.node.content().map_or(0, |c| c.size);
        match &entry.node {
            Node::File { .. } | Node::Object { .. } | Node::HardLink { .. } => self.stats.files += 1,
            Node::Folder { .. } => self.stats.folders += 1,
            _ => self.stats.others += 1,
        }
        self.stats.bytes += size;
        self.progress.done_files.fetch_add(u64::from(entry.node.content().is_some()), Relaxed);
    }

    /// Puts entries that are complete on the list, in order, until at most so many are waiting.
    fn settle(&mut self, most: usize) -> Result<()> {
        while let Some(first) = self.waiting.front() {
            if first.slot.as_ref().is_some_and(|slot| !slot.is_ready()) && self.waiting.len() <= most {
                break;
            }
            let Some(Waiting { mut entry, slot }) = self.waiting.pop_front() else { break };
            // The chunk that its changed pages are gathered in may never be full.
            while slot.as_ref().is_some_and(|slot| !slot.is_ready_within(GATHERED)) {
                self.writer.store_gathered(&mut self.filler)?;
            }
            if let (Some(slot), Node::File { content, .. } | Node::Object { content, .. }) = (slot, &mut entry.node) {
                content.extents = Extents::Here(slot.extents());
            }
            self.look_up()?;
            self.list(entry)?;
        }
        Ok(())
    }

    /// A complete entry. One that has to wait for the others takes little memory, however large its file is.
    fn list(&mut self, mut entry: Entry) -> Result<()> {
        let Some(unsorted) = &mut self.unsorted else { return self.lister.add(entry) };
        if let Node::File { content, .. } = &mut entry.node {
            self.lister.shorten(content, KEPT)?;
        }
        unsorted.push(entry);
        Ok(())
    }

    /// Reads one file to its end and sends its chunks to the workers.
    fn read(&self, body: &mut dyn Body, slot: &Arc<Slot>, guess: u64, before: Option<Before>) -> std::result::Result<Read, Broken> {
        let mut digest = blake3::Hasher::new();
        let mut file = Feed { reader: self, slot, offset: 0, layout: None, size: guess, before };
        // Room for one byte more: its end is seen without asking for another buffer.
        let mut buffer = if guess <= SMALL { Buffers::small(vec![0; guess as usize + 1]) } else { self.buffers.take()? };
        let (mut filled, mut holes) = (0, 0);
        loop {
            let free = buffer.bytes.get_mut(filled..).unwrap_or_default();
            let got = body.read(free)?;
            digest.update(free.get(..got).unwrap_or_default());
            self.progress.done_bytes.fetch_add(got as u64, Relaxed);
            filled += got;
            if got > 0 && filled < buffer.bytes.len() {
                continue;
            }
            self.look_up()?;
            if got > 0 {
                (buffer, filled) = file.cut(buffer, filled)?;
                continue;
            }
            // Its data end here; after a hole more may follow.
            file.cut_all(buffer, filled)?;
            let hole = body.hole()?;
            if hole == 0 {
                break;
            }
            file.skip(hole);
            holes += hole;
            update_zeros(&mut digest, hole);
            self.progress.done_bytes.fetch_add(hole, Relaxed);
            (buffer, filled) = (self.buffers.take()?, 0);
        }
        let changed = body.changed()?;
        Ok(Read { size: file.offset, holes, digest: Id(*digest.finalize().as_bytes()), changed })
    }
}

/// What reading one file came to.
struct Read {
    size: u64,
    /// What of it was known to be zeros without being read.
    holes: u64,
    digest: Id,
    changed: bool,
}

/// Why reading one file ended early.
enum Broken {
    /// The file cannot be read: the others can.
    Reading(std::io::Error),
    Storing(RepositoryError),
}
impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::Reading(error)
    }
}
impl From<RepositoryError> for Broken {
    fn from(error: RepositoryError) -> Self {
        Self::Storing(error)
    }
}

/// One file while it is cut.
struct Feed<'a, 'w> {
    reader: &'a Reader<'w>,
    slot: &'a Arc<Slot>,
    /// How far it is cut.
    offset: u64,
    /// Where to cut, once its beginning has been seen.
    layout: Option<Layout>,
    size: u64,
    /// It is cut into chunks of one length, and this is what it was.
    before: Option<Before>,
}

/// The extents that a file had.
struct Before {
    extents: Vec<Extent>,
    starts: Vec<u64>,
    check: Option<PageCheck>,
}

impl Before {
    fn new(extents: Vec<Extent>, check: Option<PageCheck>) -> Self {
        Self { starts: pages::starts(&extents), extents, check }
    }
    /// What it had where a chunk begins.
    fn at(&self, offset: u64) -> Extent {
        let found = self.starts.binary_search(&offset).ok().and_then(|number| self.extents.get(number));
        found.cloned().unwrap_or(Extent::Zeros(0))
    }
}

impl Feed<'_, '_> {
    /// Cuts what is in the buffer as far as it can, and gives the next buffer with what is left at its beginning.
    fn cut(&mut self, buffer: Buffer, filled: usize) -> Result<(Buffer, usize)> {
        let (cuts, at) = self.cuts(buffer.bytes.get(..filled).unwrap_or_default(), false);
        let rest = buffer.bytes.get(at..filled).unwrap_or_default();
        let mut next = self.reader.buffers.take()?;
        // With a full buffer the cutter always finds an end; a small one that was too small moves as it is.
        next.bytes.get_mut(..rest.len()).unwrap_or_default().copy_from_slice(rest);
        let left = rest.len();
        self.send(buffer, cuts)?;
        Ok((next, left))
    }

    /// Cuts all of it: nothing follows, or a hole.
    fn cut_all(&mut self, buffer: Buffer, filled: usize) -> Result<()> {
        let (cuts, _) = self.cuts(buffer.bytes.get(..filled).unwrap_or_default(), true);
        self.send(buffer, cuts)
    }

    /// The chunks at the beginning of `data`, and where they end.
    fn cuts(&mut self, data: &[u8], last: bool) -> (Vec<(Range<usize>, Hint)>, usize) {
        if self.before.is_some() {
            return self.fixed(data, last);
        }
        let cutter = &self.reader.cutter;
        let layout = self.layout.get_or_insert_with(|| cutter.layout(data, self.size));
        let (mut cuts, mut at) = (Vec::new(), 0);
        while at < data.len()
            && let Some((length, hint)) = cutter.next(layout, self.offset, data.get(at..).unwrap_or_default(), last)
        {
            cuts.push((at..at + length, hint));
            at += length;
            self.offset += length as u64;
        }
        (cuts, at)
    }

    /// The same for what is cut into chunks of one length.
    fn fixed(&mut self, data: &[u8], last: bool) -> (Vec<(Range<usize>, Hint)>, usize) {
        let end = if last { data.len() } else { data.len() / pages::CHUNK * pages::CHUNK };
        let cuts = (0..end).step_by(pages::CHUNK).map(|at| (at..(at + pages::CHUNK).min(end), Hint::Pages));
        self.offset += end as u64;
        (cuts.collect(), end)
    }

    fn send(&self, buffer: Buffer, cuts: Vec<(Range<usize>, Hint)>) -> Result<()> {
        let buffer = Arc::new(buffer);
        let mut offset = self.offset - cuts.iter().map(|(range, _)| range.len() as u64).sum::<u64>();
        for (range, hint) in cuts {
            let before = self.before.as_ref().map(|before| before.at(offset));
            let check = self.before.as_ref().and_then(|before| before.check.clone()).map(|check| (check, offset));
            offset += range.len() as u64;
            let job = Job { buffer: buffer.clone(), range, hint, slot: self.slot.clone(), at: self.slot.reserve(None), before, check };
            self.reader.jobs.send(job).map_err(|_| RepositoryError::Interrupted("the workers are gone".to_owned()))?;
        }
        Ok(())
    }

    fn skip(&mut self, hole: u64) {
        self.slot.reserve(Some(Extent::Zeros(hole)));
        self.offset += hole;
    }
}

fn update_zeros(digest: &mut blake3::Hasher, mut length: u64) {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    while length > 0 {
        let part = length.min(ZEROS.len() as u64) as usize;
        digest.update(&ZEROS[..part]);
        length -= part as u64;
    }
}
