//! The log that goes along with a base backup: streamed on a connection of its own from the segment in which the backup
//! begins, and put into the repository segment by segment, until the position at which it is complete is here.

use crate::providers::{
    clock::Clock,
    port::Lsn,
    replication::{Event, Progress, Session, Started, WalStream},
};
use crate::repository::{
    RepositoryError, Result,
    wal::WalStore,
    wal_name::{Segment, SegmentName},
};
use bytes::{Bytes, BytesMut};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How long nothing need come before the server is asked whether it lives.
const QUIET: Duration = Duration::from_secs(1);
/// A server that says nothing for so long, not even when asked, is gone.
const SILENT: Duration = Duration::from_secs(60);
/// How long a primary takes at most to fill up the last segment, once it has been told to.
const FILL_UP: Duration = Duration::from_secs(10);

/// Where the log begins and how it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub timeline: u32,
    pub segment_size: u32,
    /// A primary begins a new segment at the end of a backup, so that the last one is filled up.
    pub fills_up: bool,
}

/// What has come of the log and is not stored yet.
struct Receiver {
    wal: WalStore,
    line: Line,
    /// Where the segment that is being filled begins.
    start: Lsn,
    filled: BytesMut,
    /// All of the log before is stored.
    stored: Lsn,
    clock: Arc<dyn Clock>,
}

/// Streams from the segment that holds `from`, until what `stop` says is here. The log is durable when this returns.
pub async fn receive(
    session: Session,
    slot: &str,
    wal: WalStore,
    line: Line,
    from: Lsn,
    mut stop: watch::Receiver<Option<Lsn>>,
    clock: Arc<dyn Clock>,
) -> Result<()> {
    let start = Segment::at(line.timeline, from, line.segment_size).start(line.segment_size);
    let mut stream = match session.stream(Some(slot), start, line.timeline).await? {
        Started::Streaming(stream) => stream,
        Started::Ended(..) => return Err(promoted()),
    };
    let mut receiver = Receiver { wal, line, start, filled: BytesMut::new(), stored: start, clock };
    let (mut heard, mut since) = (receiver.clock.monotonic(), None);
    loop {
        let wanted = *stop.borrow_and_update();
        let now = receiver.clock.monotonic();
        if let Some(wanted) = wanted.filter(|wanted| receiver.end() >= *wanted) {
            let since = *since.get_or_insert(now);
            if receiver.stored >= wanted || !line.fills_up || now.saturating_sub(since) > FILL_UP {
                receiver.rest(wanted).await?;
                // Whether the server hears the good-bye does not matter.
                let _ = tokio::time::timeout(QUIET, stream.finish()).await;
                return Ok(());
            }
        }
        let event = tokio::select! {
            event = stream.next(QUIET) => event?,
            // Without a sender there is nobody any more who waits for the log.
            changed = stop.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Err(RepositoryError::Interrupted("the backup that the log belongs to has ended".to_owned())),
            },
        };
        match event {
            None if now.saturating_sub(heard) > SILENT => {
                return Err(RepositoryError::Refused(format!("{}: no log has come for {} s", stream.at(), SILENT.as_secs())));
            }
            None => receiver.report(&mut stream, true).await?,
            Some(event) => {
                heard = now;
                receiver.take(event, &mut stream).await?;
            }
        }
    }
}

fn promoted() -> RepositoryError {
    RepositoryError::Refused("the server's timeline has ended during the backup (a promotion): back up again".to_owned())
}

impl Receiver {
    /// How far the log is here.
    fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.filled.len() as u64)
    }

    async fn take(&mut self, event: Event, stream: &mut WalStream) -> Result<()> {
        match event {
            Event::End => Err(promoted()),
            Event::Keepalive { reply, .. } => {
                if reply {
                    self.report(stream, false).await
                } else {
                    Ok(())
                }
            }
            Event::Wal { start, .. } if start != self.end() => Err(RepositoryError::Refused(format!(
                "{}: the log goes on at {start}, and what is here ends at {}",
                stream.at(),
                self.end()
            ))),
            Event::Wal { mut data, .. } => {
                while !data.is_empty() {
                    let room = self.line.segment_size as usize - self.filled.len();
                    self.filled.extend_from_slice(&data.split_to(room.min(data.len())));
                    if self.filled.len() == self.line.segment_size as usize {
                        self.segment().await?;
                        self.report(stream, false).await?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Stores a segment that is full.
    async fn segment(&mut self) -> Result<()> {
        let segment = Segment::at(self.line.timeline, self.start, self.line.segment_size);
        let content = std::mem::take(&mut self.filled).freeze();
        self.start = Lsn(self.start.0 + content.len() as u64);
        self.wal.put(&SegmentName::Whole(segment), content).await?;
        self.stored = self.start;
        Ok(())
    }

    /// Stores what there is of a segment that is not full.
    async fn rest(&mut self, wanted: Lsn) -> Result<()> {
        if self.stored >= wanted || self.filled.is_empty() {
            return Ok(());
        }
        let segment = Segment::at(self.line.timeline, self.start, self.line.segment_size);
        self.wal.put_piece(segment, 0, Bytes::from(std::mem::take(&mut self.filled))).await.map(drop)
    }

    async fn report(&self, stream: &mut WalStream, reply: bool) -> Result<()> {
        let progress = Progress { written: self.end(), flushed: self.stored, applied: Lsn(0) };
        Ok(stream.report(progress, self.clock.now(), reply).await?)
    }
}
