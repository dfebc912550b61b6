//! `wal receive`: the log of a running server streams into the repository, by way of a replication slot, piece by piece
//! while a segment fills, so that the loss of the server costs less than a second.
//!
//! The server is told that log is flushed only when it is durable in the repository; so it keeps all that is not, and may
//! even take this for its synchronous standby. Nothing is remembered here: where to go on is read from the repository and
//! from the slot, each time. A connection that breaks, and a repository that does not answer, are tried again with growing
//! patience. What ends it: a server that is another cluster or has another history than the repository, log that the
//! server has removed before it came here, and whatever the server refuses for good.

use super::{
    super::{Muster, ServiceError, backup::place::Where},
    inflow::{Inflow, Part},
};
use crate::model::time::Span;
use crate::providers::{
    port::{Lsn, PortError},
    replication::{Event, Next, PgError, Progress, Purpose, Session, Started, Target, WalStream},
};
use crate::repository::{
    RepositoryError,
    wal::WalStore,
    wal_history::History,
    wal_line,
    wal_name::{Segment, SegmentName},
};
use futures::{StreamExt, stream::FuturesOrdered};
use serde::Serialize;
use std::time::Duration;
use tokio::task::JoinHandle;

/// So many parts are on their way into the repository at a time.
const UNDER_WAY: usize = 4;
/// The server hears at least so often how far we are.
const REPORT: Duration = Duration::from_secs(5);
const TELL: Duration = Duration::from_secs(10);
/// How long to wait before the second try; it doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// What was under way when the end was asked for.
const LAST_PUTS: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Receive {
    pub at: Where,
    pub url: String,
    pub slot: String,
    pub create_slot: bool,
    /// The longest that log waits before it is written.
    pub every: Span,
    /// The server has removed log that never came: go on from what it has.
    pub accept_gap: bool,
}

/// What is told while it goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Heard {
    SlotCreated {
        slot: String,
    },
    Streaming {
        server: String,
        system_identifier: String,
        timeline: u32,
        from: Lsn,
    },
    /// How far it has come.
    Flushed {
        timeline: u32,
        position: Lsn,
        server_position: Lsn,
        lag_bytes: u64,
    },
    Timeline {
        timeline: u32,
        from: Lsn,
    },
    Gap {
        from: Lsn,
        to: Lsn,
    },
    Trouble {
        why: String,
        again_in_ms: u64,
    },
    Stopped {
        position: Lsn,
    },
}

/// Why a stream ended.
enum End {
    Passing(String),
    /// The server has removed the log that was asked for.
    Removed(String),
    Lasting(ServiceError),
}

impl From<PgError> for End {
    fn from(error: PgError) -> Self {
        let text = error.to_string();
        match &error {
            PgError::Unreachable { .. } | PgError::Silent { .. } | PgError::Lost { .. } => Self::Passing(text),
            // Starting, stopping, out of connections; the slot is still held by a connection that is dying.
            PgError::Server { server, .. } if ["57P", "53", "55006"].iter().any(|code| server.code.starts_with(code)) => {
                Self::Passing(text)
            }
            PgError::Server { server, .. } if server.code == "58P01" => Self::Removed(text),
            _ => Self::Lasting(PortError::from(error).into()),
        }
    }
}

impl From<RepositoryError> for End {
    fn from(error: RepositoryError) -> Self {
        match &error {
            RepositoryError::Store { .. } | RepositoryError::Interrupted(_) => Self::Passing(error.to_string()),
            _ => Self::Lasting(error.into()),
        }
    }
}

type Tell<'a> = &'a (dyn Fn(&Heard) + Send + Sync);

/// One stream, from connecting to its end.
struct Receiver<'a> {
    muster: &'a Muster,
    ask: &'a Receive,
    target: Target,
    tell: Tell<'a>,
    /// The cluster, once one has answered: it stays that one.
    system: Option<String>,
    made_slot: bool,
    flushed: Lsn,
    /// This stream has brought something: the next trouble is a new one.
    went_well: bool,
}

impl Muster {
    /// Goes on until it is interrupted or cannot.
    pub async fn wal_receive(&self, ask: &Receive, tell: Tell<'_>) -> Result<Lsn, ServiceError> {
        let target = Target::parse(&ask.url).map_err(|e| ServiceError::Port(e.into()))?;
        let mut receiver = Receiver { muster: self, ask, target, tell, system: None, made_slot: false, flushed: Lsn(0), went_well: false };
        let mut wait = FIRST_WAIT;
        loop {
            let why = match receiver.stream().await {
                Ok(()) => {
                    tell(&Heard::Stopped { position: receiver.flushed });
                    return Ok(receiver.flushed);
                }
                Err(End::Lasting(error)) => return Err(error),
                Err(End::Passing(why) | End::Removed(why)) => why,
            };
            if std::mem::take(&mut receiver.went_well) {
                wait = FIRST_WAIT;
            }
            tell(&Heard::Trouble { why, again_in_ms: wait.as_millis() as u64 });
            let mut interrupt = self.interrupt.clone();
            tokio::select! {
                () = self.clock.sleep(wait) => {}
                () = interrupted(&mut interrupt) => {
                    tell(&Heard::Stopped { position: receiver.flushed });
                    return Ok(receiver.flushed);
                }
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

async fn interrupted(interrupt: &mut tokio::sync::watch::Receiver<bool>) {
    // A sender that is gone never interrupts.
    if interrupt.wait_for(|asked| *asked).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Receiver<'_> {
    /// `Ok`: it was asked to stop.
    async fn stream(&mut self) -> Result<(), End> {
        let opened = self.muster.backup_open(&self.ask.at).await.map_err(|error| match error {
            ServiceError::Repository(error) => End::from(error),
            error => End::Lasting(error),
        })?;
        let mut session = Session::open(&self.target, Purpose::Replication).await?;
        let identity = session.identify().await?;
        if let Some(before) = self.system.as_ref().filter(|before| **before != identity.system_identifier) {
            let why = format!("{} is the cluster {} now, and was {before}", session.at(), identity.system_identifier);
            return Err(End::Lasting(RepositoryError::Refused(why).into()));
        }
        let size = u32::try_from(session.segment_size().await?).unwrap_or(0);
        let wal = WalStore::new(opened.repository.clone(), opened.store, identity.system_identifier.clone())?;
        self.system = Some(identity.system_identifier.clone());
        let restart = self.slot(&mut session).await?;
        let history = self.histories(&mut session, &wal, identity.timeline).await?;
        let line = wal_line::look(&opened.repository, wal.system_identifier(), size).await?;
        let kept = restart.unwrap_or(identity.position);
        let (mut timeline, mut from) = begin(&line, &history, kept);
        loop {
            match self.follow(session, &wal, timeline, from, size, kept).await? {
                Followed::Stopped => return Ok(()),
                Followed::Next(back, next) => {
                    session = back;
                    self.histories(&mut session, &wal, next.timeline).await?;
                    (timeline, from) = (next.timeline, Segment::at(next.timeline, next.from, size).start(size));
                    (self.tell)(&Heard::Timeline { timeline, from: next.from });
                }
            }
        }
    }

    /// From where the slot has the server keep its log, if that is known.
    async fn slot(&mut self, session: &mut Session) -> Result<Option<Lsn>, End> {
        let name = &self.ask.slot;
        // Before 15 a server cannot be asked; then starting to stream tells.
        let known = if session.version() >= 150_000 { session.read_slot(name).await? } else { None };
        let missing = session.version() >= 150_000 && known.is_none();
        if self.ask.create_slot && !self.made_slot && known.is_none() {
            match session.create_slot(name, false).await {
                Ok(()) => (self.tell)(&Heard::SlotCreated { slot: name.clone() }),
                // It is there already.
                Err(error) if error.code() == Some("42710") => {}
                Err(error) => return Err(error.into()),
            }
            self.made_slot = true;
            if session.version() >= 150_000 {
                return Ok(session.read_slot(name).await?.and_then(|slot| slot.restart).map(|(position, _)| position));
            }
            return Ok(None);
        }
        self.made_slot = true;
        if missing {
            let why = format!(
                "{} has no replication slot `{name}`: --create-slot makes it. If there was one, log may have been removed since; then a new base \
                 backup is due",
                session.at()
            );
            return Err(End::Lasting(RepositoryError::Refused(why).into()));
        }
        if known.as_ref().is_some_and(|slot| !slot.physical) {
            let why = format!("the slot `{name}` of {} is a logical one: the log takes a physical one", session.at());
            return Err(End::Lasting(RepositoryError::Refused(why).into()));
        }
        Ok(known.and_then(|slot| slot.restart).map(|(position, _)| position))
    }

    /// Where this timeline came from; the history goes into the repository as well.
    async fn histories(&mut self, session: &mut Session, wal: &WalStore, timeline: u32) -> Result<History, End> {
        if timeline == 1 {
            return Ok(History::none(1));
        }
        let (_, content) = session.timeline_history(timeline).await?;
        let history = History::parse(timeline, &content).map_err(|why| {
            End::Lasting(RepositoryError::Refused(format!("{}: the history of timeline {timeline}: {why}", session.at())).into())
        })?;
        wal.put(&SegmentName::History(timeline), content.into()).await?;
        Ok(history)
    }

    /// Streams one timeline to its end. What the server has removed before it came here is a gap: it ends this, or is
    /// passed over if that was asked for.
    async fn follow(&mut self, session: Session, wal: &WalStore, timeline: u32, from: Lsn, size: u32, kept: Lsn) -> Result<Followed, End> {
        let to = Segment::at(timeline, kept, size).start(size);
        match self.follow_from(session, wal, timeline, from, size).await {
            Err(End::Removed(_)) if self.ask.accept_gap && from < to => {
                (self.tell)(&Heard::Gap { from, to });
                let session = Session::open(&self.target, Purpose::Replication).await?;
                self.follow_from(session, wal, timeline, to, size).await
            }
            Err(End::Removed(error)) => {
                let why = format!(
                    "{error}. From {from} on the log is lost to the repository, and no base backup from before can be led past it: make a new one \
                     (`muster backup create`), and go on with --accept-gap"
                );
                Err(End::Lasting(RepositoryError::Refused(why).into()))
            }
            other => other,
        }
    }

    async fn follow_from(&mut self, session: Session, wal: &WalStore, timeline: u32, from: Lsn, size: u32) -> Result<Followed, End> {
        let at = session.at().to_owned();
        let stream = match session.stream(Some(&self.ask.slot), from, timeline).await? {
            Started::Streaming(stream) => stream,
            Started::Ended(session, next) => return next_of(session, next),
        };
        (self.tell)(&Heard::Streaming { server: at, system_identifier: wal.system_identifier().to_owned(), timeline, from });
        self.flushed = from;
        let inflow = Inflow::new(Segment::at(timeline, from, size), size);
        Pump { receiver: self, stream, wal, inflow, under_way: FuturesOrdered::new(), server: from }.run().await
    }
}

fn next_of(session: Session, next: Option<Next>) -> Result<Followed, End> {
    match next {
        Some(next) => Ok(Followed::Next(session, next)),
        None => Err(End::Passing(format!("{} ended the stream and did not say what goes on", session.at()))),
    }
}

enum Followed {
    Stopped,
    /// The timeline has ended, and another goes on.
    Next(Session, Next),
}

/// From where to stream, by what is in the repository already: on the newest timeline of the server's history of which there
/// is something, from the first segment that is not whole; else from where the slot keeps the log.
fn begin(line: &wal_line::Line, history: &History, kept: Lsn) -> (u32, Lsn) {
    let size = u64::from(line.size.max(1));
    let floor = |position: Lsn| Lsn(position.0 / size * size);
    let path = history.path();
    for (at, (timeline, begun)) in path.iter().enumerate().rev() {
        let Some(have) = line.timelines.get(timeline).filter(|have| !have.whole.is_empty() || !have.pieces.is_empty()) else { continue };
        let last_whole = have.whole.last().map(|number| number + 1);
        let first_piece = have.pieces.keys().find(|number| last_whole.is_none_or(|whole| **number >= whole)).copied();
        let next = last_whole.or(first_piece).unwrap_or(0);
        let here = Lsn(next * size).max(floor(*begun));
        return match path.get(at + 1) {
            // The next timeline took over in this segment or before: it has the rest.
            Some((following, left)) if floor(*left) < here => (*following, floor(*left)),
            _ => (*timeline, here),
        };
    }
    // Nothing yet: what the slot keeps, on the timeline that it belongs to.
    let timeline = path.iter().rev().find(|(_, begun)| *begun <= kept).map_or(history.timeline, |(timeline, _)| *timeline);
    (timeline, floor(kept))
}

/// What comes is cut up and written, a few parts at a time, and the server hears what is durable.
struct Pump<'a, 'b> {
    receiver: &'a mut Receiver<'b>,
    stream: WalStream,
    wal: &'a WalStore,
    inflow: Inflow,
    under_way: FuturesOrdered<JoinHandle<Result<Lsn, RepositoryError>>>,
    server: Lsn,
}

impl Pump<'_, '_> {
    async fn run(mut self) -> Result<Followed, End> {
        let clock = self.receiver.muster.clock.clone();
        let every = Duration::from_millis(self.receiver.ask.every.ms);
        let mut interrupt = self.receiver.muster.interrupt.clone();
        // When the oldest byte that was not cut off yet came.
        let mut waiting_since: Option<Duration> = None;
        let (mut reported, mut told) = (clock.monotonic(), clock.monotonic());
        loop {
            let now = clock.monotonic();
            let full = self.under_way.len() >= UNDER_WAY;
            if let Some(since) = waiting_since.filter(|since| now >= *since + every && !full) {
                let _ = since;
                let part = self.inflow.cut();
                self.write(part);
                waiting_since = None;
            }
            if now >= reported + REPORT {
                self.report().await?;
                reported = now;
            }
            if now >= told + TELL {
                self.tell_lag();
                told = now;
            }
            let soon = waiting_since.map_or(REPORT, |since| (since + every).saturating_sub(now)).min(REPORT);
            let soon = if full { REPORT } else { soon.max(Duration::from_millis(1)) };
            tokio::select! {
                () = interrupted(&mut interrupt) => {
                    self.settle().await?;
                    // That the server does not hear it any more changes nothing: it keeps what it need not.
                    let _ = self.report().await;
                    let _ = self.stream.finish().await;
                    return Ok(Followed::Stopped);
                }
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.durable(done)?;
                    self.report().await?;
                    reported = clock.monotonic();
                }
                event = self.stream.next(soon), if !full => match event? {
                    None => {}
                    Some(Event::Wal { start, server_end, data }) => {
                        self.server = server_end.max(Lsn(start.0 + data.len() as u64));
                        self.take(start, &data)?;
                        waiting_since = match self.inflow.has_more() {
                            true => waiting_since.or(Some(clock.monotonic())),
                            false => None,
                        };
                    }
                    Some(Event::Keepalive { server_end, reply }) => {
                        self.server = self.server.max(server_end);
                        if reply {
                            self.write_now().await?;
                            (reported, waiting_since) = (clock.monotonic(), None);
                        }
                    }
                    Some(Event::End) => {
                        self.settle().await?;
                        self.report().await?;
                        let (session, next) = self.stream.finish().await?;
                        return next_of(session, next);
                    }
                },
            }
        }
    }

    fn take(&mut self, start: Lsn, data: &[u8]) -> Result<(), End> {
        let full = self.inflow.add(start, data).map_err(|why| End::Passing(format!("{}: {why}", self.stream.at())))?;
        for part in full {
            self.write(Some(part));
        }
        Ok(())
    }

    fn write(&mut self, part: Option<Part>) {
        let Some(Part { segment, from, content, end }) = part else { return };
        let wal = self.wal.clone();
        self.under_way.push_back(tokio::spawn(async move {
            match from {
                Some(from) => wal.put_piece(segment, from, content).await?,
                None => wal.put(&SegmentName::Whole(segment), content).await?,
            };
            Ok(end)
        }));
    }

    /// A server that is shut down asks how far we are, and ends only when it hears that all of it is flushed.
    async fn write_now(&mut self) -> Result<(), End> {
        let part = self.inflow.cut();
        self.write(part);
        self.report().await
    }

    /// A part is in the repository, and all before it.
    fn durable(&mut self, done: Result<Result<Lsn, RepositoryError>, tokio::task::JoinError>) -> Result<(), End> {
        self.receiver.flushed = done.map_err(|e| End::Passing(e.to_string()))??;
        self.receiver.went_well = true;
        Ok(())
    }

    /// Writes all that came, and waits until it is durable.
    async fn settle(&mut self) -> Result<(), End> {
        let part = self.inflow.cut();
        self.write(part);
        let all = async {
            while let Some(done) = self.under_way.next().await {
                self.durable(done)?;
            }
            Ok(())
        };
        match tokio::time::timeout(LAST_PUTS, all).await {
            Ok(done) => done,
            Err(_) => Err(End::Passing("the repository did not take the last of the log in time".to_owned())),
        }
    }

    async fn report(&mut self) -> Result<(), End> {
        let progress = Progress { written: self.inflow.end(), flushed: self.receiver.flushed, applied: Lsn(0) };
        let now = self.receiver.muster.clock.now();
        Ok(self.stream.report(progress, now, false).await?)
    }

    fn tell_lag(&self) {
        let (position, server) = (self.receiver.flushed, self.server);
        (self.receiver.tell)(&Heard::Flushed {
            timeline: self.inflow.timeline(),
            position,
            server_position: server,
            lag_bytes: server.0.saturating_sub(position.0),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::wal_line::Line;

    const MIB: u32 = 1 << 20;
    const AT: u64 = MIB as u64;

    fn line(names: &[&str]) -> Line {
        let mut line = Line::new(MIB);
        names.iter().for_each(|name| line.add(&name.parse().unwrap()));
        line
    }

    #[test]
    fn it_goes_on_where_the_repository_ends() {
        let one = History::none(1);
        let two = History::parse(2, format!("1\t{}\tx", Lsn(4 * AT + 100)).as_bytes()).unwrap();
        let there = ["000000010000000000000002", "000000010000000000000003", "000000010000000000000004.00000000-00001000"];
        assert_eq!(begin(&line(&[]), &one, Lsn(7 * AT + 5)), (1, Lsn(7 * AT)));
        assert_eq!(begin(&line(&there), &one, Lsn(7 * AT)), (1, Lsn(4 * AT)));
        assert_eq!(begin(&line(&there[2..]), &one, Lsn(7 * AT)), (1, Lsn(4 * AT)));
        // The rest of timeline 1 first.
        assert_eq!(begin(&line(&there), &two, Lsn(7 * AT)), (1, Lsn(4 * AT)));
        // The old primary went on beyond where the new one took over.
        let beyond = [&there[..], &["000000010000000000000004", "000000010000000000000005"]].concat();
        assert_eq!(begin(&line(&beyond), &two, Lsn(7 * AT)), (2, Lsn(4 * AT)));
        let begun = [&there[..], &["000000020000000000000004"]].concat();
        assert_eq!(begin(&line(&begun), &two, Lsn(7 * AT)), (2, Lsn(5 * AT)));
        // On nothing, the slot decides.
        assert_eq!(begin(&line(&[]), &two, Lsn(3 * AT + 9)), (1, Lsn(3 * AT)));
        assert_eq!(begin(&line(&[]), &two, Lsn(5 * AT + 9)), (2, Lsn(5 * AT)));
    }
}
