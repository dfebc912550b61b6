//! From content to packs, in parallel: chunks come in from one thread that reads, a few threads name, compare, encode
//! and encrypt them, and finished packs are stored while the next are filled.
//!
//! How much is in memory at once is bounded by the buffers that there are: the reader waits for a free one. So it does
//! not matter how large the data are.

use super::{
    RepositoryError, Result,
    codec::{Encoder, Hint},
    entry::Extent,
    index::{Index, PackEntry},
    list::Sink,
    names::{Id, PACKS},
    open::{Repository, put, put_index, put_sealed},
    pack::{Pack, Packer},
    pages::{self, Gather, PageCheck},
    seal::Kind,
};
use crate::providers::port::ObjectWrite;
use std::{
    collections::HashSet,
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

/// So many packs are on their way to the store at once.
const IN_FLIGHT: usize = 3;
/// An index object is written for every so many packs, so that an interrupted backup need not store them again.
const PER_INDEX: usize = 64;
/// Chunks that wait for a worker.
const QUEUE: usize = 64;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chunks that are in the index and were found damaged while others were read: they are stored anew, since a list that has
/// not changed would be the very same chunk.
#[derive(Clone, Default)]
pub struct Suspect(Arc<Mutex<HashSet<Id>>>);

impl Suspect {
    pub fn add(&self, chunk: Id) {
        lock(&self.0).insert(chunk);
    }
    fn has(&self, chunk: &Id) -> bool {
        lock(&self.0).contains(chunk)
    }
}

/// What all threads of one writing share.
pub struct Writer {
    pub repository: Arc<Repository>,
    pub store: Arc<dyn ObjectWrite>,
    /// What is held already and may be relied on.
    held: Arc<Index>,
    suspect: Suspect,
    fresh: Mutex<HashSet<Id>>,
    /// Changed pages of databases that wait for their chunk to be full.
    gathering: Mutex<Gather>,
    uploads: Mutex<Vec<JoinHandle<()>>>,
    permits: Arc<Semaphore>,
    done: Arc<Done>,
    handle: Handle,
}

/// What is stored so far, and what went wrong first.
#[derive(Default)]
struct Done {
    /// Stored, and not named by an index object yet.
    packs: Mutex<Vec<PackEntry>>,
    /// All that were stored, and their sizes.
    all: Mutex<Vec<(Id, u64)>>,
    failure: Mutex<Option<RepositoryError>>,
    failed: AtomicBool,
    new_bytes: AtomicU64,
    new_chunks: AtomicU64,
    stored: AtomicU64,
}

impl Done {
    fn fail(&self, error: RepositoryError) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Relaxed);
    }
}

/// What a writing came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// Content that was not held, before compression, list and index excluded.
    pub new_bytes: u64,
    pub new_chunks: u64,
    /// Everything stored so far.
    pub stored: u64,
}

impl Writer {
    /// `held` is what need not be stored. Must be made inside a runtime.
    pub fn new(repository: Arc<Repository>, store: Arc<dyn ObjectWrite>, held: Arc<Index>) -> Self {
        Self {
            repository,
            store,
            held,
            suspect: Suspect::default(),
            fresh: Mutex::default(),
            gathering: Mutex::default(),
            uploads: Mutex::default(),
            permits: Arc::new(Semaphore::new(IN_FLIGHT)),
            done: Arc::default(),
            handle: Handle::current(),
        }
    }
    /// What is found damaged while it writes does not count as held.
    #[must_use]
    pub fn without(self, suspect: Suspect) -> Self {
        Self { suspect, ..self }
    }
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.done.failed.load(Relaxed)
    }
    pub fn fail(&self, error: RepositoryError) {
        self.done.fail(error);
    }
    #[must_use]
    pub fn written(&self) -> Written {
        Written {
            new_bytes: self.done.new_bytes.load(Relaxed),
            new_chunks: self.done.new_chunks.load(Relaxed),
            stored: self.done.stored.load(Relaxed),
        }
    }
    /// The packs that it has stored so far, and their sizes.
    #[must_use]
    pub fn packs(&self) -> Vec<(Id, u64)> {
        lock(&self.done.all).clone()
    }
    /// Was it there before, and may be relied on?
    pub fn holds(&self, chunk: &Id) -> bool {
        self.held.contains(chunk) && !self.suspect.has(chunk)
    }
    /// Was it there, or is it stored by now, or about to be?
    pub fn knows(&self, chunk: &Id) -> bool {
        self.holds(chunk) || lock(&self.fresh).contains(chunk)
    }
    /// The content of something that is held. From a thread of its own.
    pub fn fetch(&self, extent: &Extent) -> Result<Vec<u8>> {
        self.handle.block_on(self.repository.extent(&self.held, extent))
    }
    pub fn gather<T>(&self, with: impl FnOnce(&mut Gather) -> T) -> T {
        with(&mut lock(&self.gathering))
    }
    /// Whoever waits for changed pages to be stored need not wait for more of them.
    pub fn store_gathered(&self, filler: &mut Filler) -> Result<()> {
        let gathered = self.gather(std::mem::take);
        let new = gathered.store(self, filler)?;
        self.count_new(new);
        Ok(())
    }
    fn count_new(&self, bytes: u64) {
        self.done.new_bytes.fetch_add(bytes, Relaxed);
        self.done.new_chunks.fetch_add(u64::from(bytes > 0), Relaxed);
    }
    /// After a failure that is told elsewhere: nothing more is stored.
    pub fn stop(&self) {
        self.done.failed.store(true, Relaxed);
    }
    /// Must the caller store this chunk? True once for each.
    fn claim(&self, chunk: &Id) -> bool {
        !self.holds(chunk) && lock(&self.fresh).insert(*chunk)
    }

    /// Hands a full pack over to be stored. Waits while too many are on their way. From a thread of its own.
    fn ship(&self, pack: Pack) {
        let permit = self.handle.block_on(self.permits.clone().acquire_owned());
        let Ok(permit) = permit else { return };
        let task = self.handle.spawn(store_pack(self.repository.clone(), self.store.clone(), self.done.clone(), pack, permit));
        lock(&self.uploads).push(task);
    }

    /// Waits until all packs are stored and named by an index object. What was stored in all is then durable.
    pub async fn finish(&self) -> Result<()> {
        let uploads = std::mem::take(&mut *lock(&self.uploads));
        for upload in uploads {
            upload.await.map_err(|e| RepositoryError::Interrupted(e.to_string()))?;
        }
        write_index(&self.repository, &*self.store, &self.done, 1).await?;
        match lock(&self.done.failure).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Writes the object that makes all of it count.
    pub async fn commit(&self, kind: Kind, plain: &[u8]) -> Result<Id> {
        let (id, size) = put_sealed(&*self.store, &self.repository.keyring, kind, plain).await?;
        self.done.stored.fetch_add(size, Relaxed);
        Ok(id)
    }
}

async fn store_pack(repository: Arc<Repository>, store: Arc<dyn ObjectWrite>, done: Arc<Done>, pack: Pack, permit: OwnedSemaphorePermit) {
    let (id, pieces, size) = (pack.id, pack.pieces, pack.bytes.len() as u64);
    let stored = match put(&*store, &id.key(PACKS), pack.bytes.into()).await {
        Ok(()) => {
            done.stored.fetch_add(size, Relaxed);
            lock(&done.all).push((id, size));
            lock(&done.packs).push(PackEntry { pack: id, size, pieces });
            write_index(&repository, &*store, &done, PER_INDEX).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = stored {
        done.fail(error);
    }
    drop(permit);
}

/// Has the index name the packs that it does not name yet, if there are at least so many.
async fn write_index(repository: &Repository, store: &dyn ObjectWrite, done: &Done, at_least: usize) -> Result<()> {
    let packs = {
        let mut packs = lock(&done.packs);
        if packs.len() < at_least {
            return Ok(());
        }
        std::mem::take(&mut *packs)
    };
    let (_, size) = put_index(store, &repository.keyring, &packs).await?;
    done.stored.fetch_add(size, Relaxed);
    Ok(())
}

/// One thread's own pack in the making.
pub struct Filler<'w> {
    writer: &'w Writer,
    encoder: Encoder,
    packer: Option<Packer>,
}

impl<'w> Filler<'w> {
    pub fn new(writer: &'w Writer) -> Self {
        Self { writer, encoder: Encoder::of(writer.repository.compression), packer: None }
    }

    /// Stores a chunk, held or not.
    pub fn add_again(&mut self, chunk: Id, content: &[u8], hint: Hint) -> Result<()> {
        let mut packer = self.packer()?;
        packer.add(chunk, content, hint, &mut self.encoder)?;
        self.keep(packer)
    }

    /// The same for one in its stored form.
    pub fn move_in(&mut self, chunk: Id, stored: &[u8], length: u32) -> Result<()> {
        let mut packer = self.packer()?;
        packer.add_stored(chunk, stored, length)?;
        self.keep(packer)
    }

    fn packer(&mut self) -> Result<Packer> {
        self.packer.take().map_or_else(|| Packer::new(&self.writer.repository.keyring), Ok)
    }

    fn keep(&mut self, packer: Packer) -> Result<()> {
        if packer.is_full() {
            self.writer.ship(packer.finish()?);
        } else {
            self.packer = Some(packer);
        }
        Ok(())
    }

    /// Stores a chunk unless it is held. Gives its name, and whether it was new.
    pub fn add(&mut self, content: &[u8], hint: Hint) -> Result<(Id, bool)> {
        self.add_named(self.writer.repository.keyring.chunk_id(content), content, hint)
    }

    /// The same for one whose name is known.
    pub fn add_named(&mut self, chunk: Id, content: &[u8], hint: Hint) -> Result<(Id, bool)> {
        if !self.writer.claim(&chunk) {
            return Ok((chunk, false));
        }
        self.add_again(chunk, content, hint)?;
        Ok((chunk, true))
    }

    /// Hands over what is left.
    pub fn finish(mut self) -> Result<()> {
        if let Some(packer) = self.packer.take() {
            self.writer.ship(packer.finish()?);
        }
        Ok(())
    }
}

/// Chunks of a list are content like any other, and counted apart.
impl Sink for Filler<'_> {
    fn chunk(&mut self, content: Vec<u8>) -> Result<Id> {
        self.add(&content, Hint::None).map(|(id, _)| id)
    }
}

/// A buffer that goes back to where it came from when the last chunk in it is stored.
pub struct Buffer {
    pub bytes: Vec<u8>,
    home: Option<SyncSender<Vec<u8>>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            // Its home has room for all, or is gone.
            let _ = home.try_send(std::mem::take(&mut self.bytes));
        }
    }
}

/// The buffers that there are.
pub struct Buffers {
    free: Receiver<Vec<u8>>,
    home: SyncSender<Vec<u8>>,
}

impl Buffers {
    #[must_use]
    pub fn new(count: usize, size: usize) -> Self {
        let (home, free) = sync_channel(count);
        (0..count).for_each(|_| drop(home.try_send(vec![0; size])));
        Self { free, home }
    }
    /// Waits for a free one.
    pub fn take(&self) -> Result<Buffer> {
        let bytes = self.free.recv().map_err(|_| RepositoryError::Interrupted("the buffers are gone".to_owned()))?;
        Ok(Buffer { bytes, home: Some(self.home.clone()) })
    }
    /// One of its own size for something small.
    #[must_use]
    pub fn small(bytes: Vec<u8>) -> Buffer {
        Buffer { bytes, home: None }
    }
}

/// The extents of one file, as its chunks get done in any order.
#[derive(Default)]
pub struct Slot {
    state: Mutex<(Vec<Option<Extent>>, usize)>,
    ready: Condvar,
}

impl Slot {
    /// A place for one more extent.
    pub fn reserve(&self, known: Option<Extent>) -> usize {
        let mut state = lock(&self.state);
        state.1 += usize::from(known.is_none());
        state.0.push(known);
        state.0.len() - 1
    }
    pub fn set(&self, at: usize, extent: Extent) {
        let mut state = lock(&self.state);
        // Who was told once, before a failure say, stays with that.
        if let Some(place @ None) = state.0.get_mut(at) {
            *place = Some(extent);
            state.1 -= 1;
        }
        if state.1 == 0 {
            self.ready.notify_all();
        }
    }
    #[must_use]
    pub fn is_ready(&self) -> bool {
        lock(&self.state).1 == 0
    }
    /// Waits so long for them to be known.
    pub fn is_ready_within(&self, limit: std::time::Duration) -> bool {
        let state = lock(&self.state);
        self.ready.wait_timeout_while(state, limit, |state| state.1 > 0).unwrap_or_else(PoisonError::into_inner).0.1 == 0
    }
    /// Waits until all are known, and gives them, runs of zeros put together.
    #[must_use]
    pub fn extents(&self) -> Vec<Extent> {
        let mut state = lock(&self.state);
        while state.1 > 0 {
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut extents: Vec<Extent> = Vec::with_capacity(state.0.len());
        for extent in std::mem::take(&mut state.0).into_iter().flatten() {
            match (extents.last_mut(), extent) {
                (Some(Extent::Zeros(before)), Extent::Zeros(more)) => *before += more,
                (_, extent) => extents.push(extent),
            }
        }
        extents
    }
}

/// One chunk on its way to a worker.
pub struct Job {
    pub buffer: Arc<Buffer>,
    pub range: Range<usize>,
    pub hint: Hint,
    pub slot: Arc<Slot>,
    pub at: usize,
    /// What the parent has at the same place, if that is to be compared page by page.
    pub before: Option<Extent>,
    /// What looks at its pages, and where in the file it stands.
    pub check: Option<(PageCheck, u64)>,
}

pub type Jobs = SyncSender<Job>;

#[must_use]
pub fn queue() -> (Jobs, Mutex<Receiver<Job>>) {
    let (send, receive) = sync_channel(QUEUE);
    (send, Mutex::new(receive))
}

/// What each worker does until there are no more jobs.
pub fn work(writer: &Writer, jobs: &Mutex<Receiver<Job>>) {
    let mut filler = Filler::new(writer);
    loop {
        let next = lock(jobs).recv();
        let Ok(job) = next else { break };
        let content = job.buffer.bytes.get(job.range.clone()).unwrap_or_default();
        if let Some((check, offset)) = &job.check {
            check(*offset, content);
        }
        // After a failure nothing more is stored, but everybody who waits for an extent gets one.
        let zeros = Extent::Zeros(content.len() as u64);
        let stored =
            if writer.has_failed() || is_zero(content) { Ok(Some((zeros.clone(), 0))) } else { store(writer, &mut filler, content, &job) };
        let extent = stored.unwrap_or_else(|error| {
            writer.fail(error);
            Some((zeros, 0))
        });
        let Job { buffer, slot, at, .. } = job;
        drop(buffer);
        if let Some((extent, new)) = extent {
            writer.count_new(new);
            slot.set(at, extent);
        }
    }
    if !writer.has_failed()
        && let Err(error) = filler.finish()
    {
        writer.fail(error);
    }
}

/// Stores one chunk. Gives its extent, and how much of it was new; nothing, if its slot is or will be told otherwise.
fn store(writer: &Writer, filler: &mut Filler, content: &[u8], job: &Job) -> Result<Option<(Extent, u64)>> {
    let length = content.len() as u32;
    if let Some(before) = &job.before {
        writer.count_new(pages::store(writer, filler, content, before, (&job.slot, job.at))?);
        return Ok(None);
    }
    let (id, new) = filler.add(content, job.hint)?;
    Ok(Some((Extent::Chunk { id, length }, if new { u64::from(length) } else { 0 })))
}

/// Almost every content tells in its first bytes that it is not.
fn is_zero(content: &[u8]) -> bool {
    let (words, rest) = content.as_chunks::<64>();
    rest.iter().all(|b| *b == 0) && words.iter().all(|word| *word == [0; 64])
}
