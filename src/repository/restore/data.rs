//! The content of files: packs are fetched by several workers, each chunk is opened once, checked against its name and
//! written to every place where it goes. Until a file is whole it has another name, so that whatever has its own name
//! is what was backed up, also after a crash.

use super::{
    Lost,
    place::{FILE, Near, Target, dress, is_fatal, text},
    plan::{Job, Plan, coalesce},
};
use crate::repository::{
    RepositoryError, Result,
    attributes::Attributes,
    entry::shown,
    index::Index,
    names::{Id, PACKS},
    open::Repository,
    pack::{Opener, Piece},
    places::{Detours, Places},
    progress::Progress,
    seal::{self, HEADER, Kind, ObjectKey},
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{FallocateFlags, Mode, OFlags, fallocate, ftruncate, openat, renameat, syncfs, unlinkat},
    io::{Errno, pwrite},
};
use std::{
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
        },
    },
};
use tokio::{runtime::Handle, sync::OnceCell};

/// So many files are held open at most.
const OPEN: usize = 256;
/// After so many bytes the disk is set to work, while we go on decoding.
const FLUSH: u64 = 64 * 1024 * 1024;

/// What there is of a file before anything is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Basis {
    /// Nothing that could be used.
    #[default]
    New,
    /// What an interrupted restore left behind.
    Incomplete,
    /// A file under its own name.
    There,
    /// The same, and it is what it should be.
    Whole,
}

#[derive(Default)]
pub(super) struct State {
    pub basis: Basis,
    /// What holds something, and should be zeros.
    pub clear: Vec<Range<u64>>,
    /// How many places are to be written.
    pub left: AtomicU32,
    pub lost: OnceLock<String>,
    begun: AtomicBool,
}

pub(super) struct Work {
    pub repository: Arc<Repository>,
    pub plan: Plan,
    pub states: Vec<State>,
    pub target: Target,
    pub progress: Arc<Progress>,
    pub handle: Handle,
    /// What stands in a file's way may go, also a folder with all that is in it.
    pub delete: bool,
    pub written: AtomicU64,
    /// Files are whole, but without these.
    pub without: Mutex<Vec<Lost>>,
    /// Places whose pack is no longer there.
    pub moved: Mutex<Vec<u32>>,
    /// Everywhere that chunks lie: asked for at the first that is damaged.
    everywhere: OnceCell<Places>,
    open: Vec<Mutex<Option<(usize, Arc<OwnedFd>)>>>,
    failed: Mutex<Option<RepositoryError>>,
    unflushed: Mutex<u64>,
    enough: Condvar,
}

pub(super) enum Task {
    /// These files need no chunk.
    Settle(Vec<usize>),
    Pack(Job),
}

/// What each thread has of its own.
#[derive(Default)]
pub(super) struct Worker {
    pub near: Near,
    pub attributes: Attributes,
    opener: Opener,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    pub fn new(repository: Arc<Repository>, plan: Plan, target: Target, progress: Arc<Progress>, handle: Handle, delete: bool) -> Self {
        let lost = |why: &Option<String>| why.clone().map_or_else(OnceLock::new, OnceLock::from);
        let states = plan.files.iter().map(|file| State { lost: lost(&file.lost), ..State::default() });
        Self {
            repository,
            states: states.collect(),
            plan,
            target,
            progress,
            handle,
            delete,
            written: AtomicU64::new(0),
            without: Mutex::default(),
            moved: Mutex::default(),
            everywhere: OnceCell::new(),
            open: std::iter::repeat_with(Mutex::default).take(OPEN).collect(),
            failed: Mutex::default(),
            unflushed: Mutex::default(),
            enough: Condvar::new(),
        }
    }

    /// Does all tasks, with so many threads.
    pub fn run(&self, tasks: &[Task], threads: usize) -> Result<()> {
        let (next, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.work(tasks, &next))).collect();
            scope.spawn(|| self.flush(&ended));
            let panicked = workers.into_iter().map(std::thread::ScopedJoinHandle::join).filter(std::result::Result::is_err).count();
            ended.store(true, Relaxed);
            self.enough.notify_all();
            if panicked > 0 {
                self.fail(RepositoryError::Interrupted("a worker broke down".to_owned()));
            }
        });
        lock(&self.failed).take().map_or(Ok(()), Err)
    }

    fn work(&self, tasks: &[Task], next: &AtomicUsize) {
        let mut worker = Worker::default();
        while let Some(task) = tasks.get(next.fetch_add(1, Relaxed)) {
            let done = match task {
                Task::Settle(files) => files.iter().try_for_each(|file| self.settle(&mut worker, *file)),
                Task::Pack(job) => self.pack(&mut worker, job),
            };
            if let Err(why) = done {
                return self.fail(why);
            }
        }
    }

    pub fn fail(&self, why: RepositoryError) {
        lock(&self.failed).get_or_insert(why);
    }

    /// Ends when somebody else has failed, or everybody should stop.
    pub fn go_on(&self) -> Result<()> {
        if self.progress.is_stopped() || lock(&self.failed).is_some() {
            let why = "run the same with --in-place: it goes on where it is".to_owned();
            return Err(RepositoryError::Interrupted(why));
        }
        Ok(())
    }

    /// Has the disk write while the processors decode: at the end there is little left to wait for.
    fn flush(&self, ended: &AtomicBool) {
        let mut unflushed = lock(&self.unflushed);
        while !ended.load(Relaxed) {
            if *unflushed < FLUSH {
                let limit = std::time::Duration::from_millis(100);
                unflushed = self.enough.wait_timeout(unflushed, limit).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            *unflushed = 0;
            drop(unflushed);
            // The last one, at the end, is the one that counts.
            let _ = syncfs(&self.target.root);
            unflushed = lock(&self.unflushed);
        }
    }

    // ---------------------------------------------------------------- packs

    fn pack(&self, worker: &mut Worker, job: &Job) -> Result<()> {
        let chunk_of = |place: &u32| self.plan.places[*place as usize].chunk;
        let piece_of = |group: &[u32]| self.plan.chunks[chunk_of(&group[0]) as usize].piece;
        let groups: Vec<&[u32]> = job.places.chunk_by(|a, b| chunk_of(a) == chunk_of(b)).collect();
        let wanted: Vec<Range<u64>> = std::iter::once(HEADER_AT).chain(groups.iter().map(|group| range(&piece_of(group)))).collect();
        let pack = &self.plan.packs[job.pack as usize];
        let key = pack.key(PACKS);
        let (mut object, mut next) = (Err("its pack is cut short"), groups.as_slice());
        for asked in coalesce(wanted.iter().cloned()) {
            self.go_on()?;
            let inside = |one: &&Range<u64>| asked.start <= one.start && one.end <= asked.end;
            let fetched = self.handle.block_on(fetch(&self.repository, &key, asked.clone(), wanted.iter().filter(inside)));
            let mut parts = match fetched {
                Err(RepositoryError::Missing { .. }) => {
                    lock(&self.moved).extend(next.iter().copied().flatten());
                    return Ok(());
                }
                other => other?,
            };
            if asked.start == 0
                && let Some(header) = parts.slice(HEADER_AT)
            {
                object = seal::unlock(&self.repository.keyring, Kind::Pack, header);
            }
            while let Some((group, rest)) = next.split_first().filter(|(group, _)| inside(&&range(&piece_of(group)))) {
                self.chunk(worker, group, &piece_of(group), object.as_ref(), &mut parts, pack)?;
                next = rest;
            }
        }
        Ok(())
    }

    /// Opens one chunk and puts it wherever it goes. One that is damaged may be whole in another pack.
    fn chunk(
        &self,
        worker: &mut Worker,
        places: &[u32],
        piece: &Piece,
        object: std::result::Result<&ObjectKey, &&'static str>,
        parts: &mut Parts,
        pack: &Id,
    ) -> Result<()> {
        self.go_on()?;
        let opened = object.map_err(|why| *why).and_then(|object| {
            let sealed = parts.slice(range(piece)).ok_or("it is cut short")?;
            worker.opener.open(&self.repository.keyring, object, piece, sealed)
        });
        let lost = match opened {
            Ok(()) => None,
            Err(_) if self.elsewhere(worker, &piece.chunk, pack)? => None,
            Err(why) => Some(format!("chunk {} in {} is damaged: {why}", piece.chunk.short(), pack.key(PACKS))),
        };
        places.iter().try_for_each(|place| self.put(worker, *place, lost.as_deref()))
    }

    /// Has the worker hold a chunk that is not whole in this pack, from any other that has it. False: there is none.
    pub fn elsewhere(&self, worker: &mut Worker, chunk: &Id, but: &Id) -> Result<bool> {
        let nothing = Index::default();
        let content = self.handle.block_on(async {
            let everywhere = self.everywhere.get_or_try_init(|| Places::load(&self.repository, &nothing)).await?;
            everywhere.content(&self.repository, chunk, &[*but]).await
        })?;
        let found = content.is_some();
        if let Some(content) = content {
            worker.opener.content = content;
        }
        Ok(found)
    }

    pub fn detours(&self) -> Detours {
        self.everywhere.get().map_or_else(Detours::default, Places::detours)
    }

    /// Puts what the worker has just opened where it goes; `lost` is why there is nothing.
    pub fn put(&self, worker: &mut Worker, place: u32, lost: Option<&str>) -> Result<()> {
        let place = self.plan.places[place as usize];
        let (number, length) = (place.file as usize, u64::from(place.length));
        if let Some(why) = lost {
            let _ = self.states[number].lost.set(why.to_owned());
        } else {
            let file = self.file(&mut worker.near, number);
            let part = place.from as usize..place.from as usize + place.length as usize;
            let content = worker.opener.content.get(part).ok_or(Errno::INVAL);
            let put = file.and_then(|file| write(&file, content?, place.at));
            if self.unless_fatal(number, put)?.is_some() {
                self.written.fetch_add(length, Relaxed);
                self.wrote(length);
            }
        }
        self.progress.add(0, length);
        if self.states[number].left.fetch_sub(1, AcqRel) == 1 {
            self.complete(worker, number)?;
        }
        Ok(())
    }

    fn wrote(&self, length: u64) {
        let mut unflushed = lock(&self.unflushed);
        *unflushed += length;
        if *unflushed >= FLUSH {
            self.enough.notify_one();
        }
    }

    // ---------------------------------------------------------------- files

    fn settle(&self, worker: &mut Worker, number: usize) -> Result<()> {
        self.go_on()?;
        self.complete(worker, number)
    }

    /// An error of one file costs that file; one of the disk ends all.
    fn unless_fatal<T>(&self, number: usize, done: std::result::Result<T, Errno>) -> Result<Option<T>> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(why) if is_fatal(why) => Err(self.target.wrong(&self.plan.files[number].path, why)),
            Err(why) => {
                let _ = self.states[number].lost.set(format!("it cannot be written: {}", text(why)));
                Ok(None)
            }
        }
    }

    /// The file, open for writing, under its name for the time being; the first time it is made.
    fn file(&self, near: &mut Near, number: usize) -> std::result::Result<Arc<OwnedFd>, Errno> {
        // Whoever comes second waits here until the first has made it.
        let mut slot = lock(&self.open[number % OPEN]);
        if let Some((open, file)) = &*slot
            && *open == number
        {
            return Ok(file.clone());
        }
        *slot = None;
        let path = &self.plan.files[number].path;
        let (within, name) = self.target.near(near, path)?;
        let unfinished = self.plan.incomplete(path);
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let state = &self.states[number];
        let begun = state.begun.load(Acquire);
        let file =
            match state.basis {
                Basis::New if !begun => {
                    let make = || openat(within, &unfinished, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR);
                    make().or_else(|why| {
                        if why == Errno::EXIST { unlinkat(within, &unfinished, FILE).and_then(|()| make()) } else { Err(why) }
                    })?
                }
                Basis::There | Basis::Whole if !begun => {
                    renameat(within, name, within, &unfinished)?;
                    openat(within, &unfinished, flags, Mode::empty())?
                }
                _ => openat(within, &unfinished, flags, Mode::empty())?,
            };
        if !begun {
            self.shape(&file, number)?;
            state.begun.store(true, Release);
        }
        let file = Arc::new(file);
        *slot = Some((number, file.clone()));
        Ok(file)
    }

    /// Gives a file its size, and makes holes of what should be zeros.
    fn shape(&self, file: &OwnedFd, number: usize) -> std::result::Result<(), Errno> {
        ftruncate(file, self.plan.files[number].size)?;
        for range in &self.states[number].clear {
            let length = range.end - range.start;
            if fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range.start, length).is_err() {
                let zeros = vec![0; length.min(1 << 20) as usize];
                for at in range.clone().step_by(1 << 20) {
                    write(file, &zeros[..(range.end - at).min(1 << 20) as usize], at)?;
                }
            }
        }
        Ok(())
    }

    /// Nothing more is to be written: metadata, and the name; or it is lost.
    fn complete(&self, worker: &mut Worker, number: usize) -> Result<()> {
        let done = if self.states[number].lost.get().is_none() {
            let done = self.finish(worker, number);
            self.unless_fatal(number, done)?
        } else {
            None
        };
        if done.is_none() {
            // What is there under its name is not what was backed up.
            if matches!(self.states[number].basis, Basis::There | Basis::Whole) {
                let _ = self.file(&mut worker.near, number);
            }
        }
        lock(&self.open[number % OPEN]).take_if(|(open, _)| *open == number);
        self.progress.add(1, 0);
        Ok(())
    }

    fn finish(&self, worker: &mut Worker, number: usize) -> std::result::Result<(), Errno> {
        let file = &self.plan.files[number];
        let whole = self.states[number].basis == Basis::Whole;
        let open = if whole {
            let (within, name) = self.target.near(&mut worker.near, &file.path)?;
            // It may be left from a restore that was interrupted.
            let _ = unlinkat(within, self.plan.incomplete(&file.path), FILE);
            Arc::new(openat(within, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
        } else {
            self.file(&mut worker.near, number)?
        };
        let without = dress(&self.target, open.as_fd(), &file.meta, file.object, &mut worker.attributes)?;
        self.tell(&file.path, &without);
        if !whole {
            let (within, name) = self.target.near(&mut worker.near, &file.path)?;
            super::finish::rename(within, &self.plan.incomplete(&file.path), name, self.delete)?;
        }
        Ok(())
    }

    pub fn tell(&self, path: &[u8], without: &[String]) {
        if !without.is_empty() {
            lock(&self.without).push(Lost { path: shown(path), why: without.join(", ") });
        }
    }
}

pub(super) fn write(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> std::result::Result<(), Errno> {
    while !bytes.is_empty() {
        match pwrite(file, bytes, at) {
            Err(Errno::INTR) => {}
            Err(why) => return Err(why),
            Ok(0) => return Err(Errno::IO),
            Ok(length) => {
                bytes = &bytes[length..];
                at += length as u64;
            }
        }
    }
    Ok(())
}

/// Parts of a pack, as they were fetched.
struct Parts(Vec<(u64, Vec<u8>)>);

impl Parts {
    fn slice(&mut self, range: Range<u64>) -> Option<&mut [u8]> {
        let inside = |(start, bytes): &&mut (u64, Vec<u8>)| *start <= range.start && range.end <= *start + bytes.len() as u64;
        let (start, bytes) = self.0.iter_mut().find(inside)?;
        bytes.get_mut((range.start - *start) as usize..(range.end - *start) as usize)
    }
}

const HEADER_AT: Range<u64> = 0..HEADER as u64;

fn range(piece: &Piece) -> Range<u64> {
    u64::from(piece.offset)..u64::from(piece.offset) + u64::from(piece.stored)
}

/// Fetches a part of a pack. What a pack that is cut short does not have of what is wanted in there is left out.
async fn fetch(repository: &Repository, key: &str, asked: Range<u64>, wanted: impl Iterator<Item = &Range<u64>>) -> Result<Parts> {
    if let Some(bytes) = part(repository, key, asked.clone()).await? {
        return Ok(Parts(vec![(asked.start, bytes)]));
    }
    let mut parts = Vec::new();
    for one in wanted {
        if let Some(bytes) = part(repository, key, one.clone()).await? {
            parts.push((one.start, bytes));
        }
    }
    Ok(Parts(parts))
}

/// `None`: the object ends before.
async fn part(repository: &Repository, key: &str, range: Range<u64>) -> Result<Option<Vec<u8>>> {
    match repository.range(key, range.start, range.end - range.start).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(RepositoryError::Damaged { .. }) => Ok(None),
        Err(why) => Err(why),
    }
}
