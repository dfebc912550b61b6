//! The log as it is written: `START_REPLICATION`, what comes, what is told back, and how it ends.

use super::{
    PgResult, Reply, Session, commands,
    wire::{self, Progress, Streamed},
};
use crate::providers::port::Lsn;
use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;
use std::time::Duration;

/// A session on which the log streams. Drop it, or `finish` it to have the session back.
pub struct WalStream {
    session: Session,
    /// The server has said that no more will come.
    ended: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of the log that begins at `start`; the server's own ends at `server_end`.
    Wal { start: Lsn, server_end: Lsn, data: Bytes },
    /// The server lives; with `reply` it wants to hear at once how far we are.
    Keepalive { server_end: Lsn, reply: bool },
    /// The timeline ends here: `finish` tells which one goes on from where.
    End,
}

/// What became of the wish to stream.
pub enum Started {
    Streaming(WalStream),
    /// The timeline ends at that very position: nothing streams, and this one goes on.
    Ended(Session, Option<Next>),
}

/// Where the log goes on after a timeline's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    pub timeline: u32,
    pub from: Lsn,
}

impl Session {
    /// Has the log stream from here on. The position is best the start of a segment.
    /// # Errors
    /// When the server refuses: it has removed that log (SQLSTATE 58P01), or the slot is in use (55006).
    pub async fn stream(mut self, slot: Option<&str>, from: Lsn, timeline: u32) -> PgResult<Started> {
        let slot = slot.map(|name| format!("SLOT {} ", commands::identifier(name))).unwrap_or_default();
        let ask = format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {timeline}");
        self.ask(&ask).await?;
        match self.reply(&ask).await? {
            Reply::CopyBoth => Ok(Started::Streaming(WalStream { session: self, ended: false })),
            Reply::Columns => {
                let (session, next) = self.goes_on().await?;
                Ok(Started::Ended(session, next))
            }
            other => Err(self.protocol(&ask, format!("{other:?}"))),
        }
    }

    /// Reads to the end of the answer: which timeline goes on, if the one that streamed has ended.
    async fn goes_on(mut self) -> PgResult<(Self, Option<Next>)> {
        const DURING: &str = "ending the stream of the log";
        let mut next = None;
        loop {
            match self.reply(DURING).await? {
                Reply::Row(row) => {
                    let read = row.get(0).and_then(|timeline| Ok(Next { timeline, from: row.get(1)? }));
                    next = Some(read.map_err(|e| self.protocol(DURING, e))?);
                }
                Reply::Ready => return Ok((self, next)),
                // What was on its way when we had enough.
                Reply::Data(_) | Reply::CopyDone | Reply::Columns | Reply::Complete => {}
                other => return Err(self.protocol(DURING, format!("{other:?}"))),
            }
        }
    }
}

impl WalStream {
    /// The next that comes; `None` when nothing did for so long. May be dropped while it waits.
    /// # Errors
    /// When the server refuses or is gone.
    pub async fn next(&mut self, wait: Duration) -> PgResult<Option<Event>> {
        const DURING: &str = "streaming the log";
        if self.ended {
            return Ok(Some(Event::End));
        }
        // What comes first here decides; the session's own limit must not.
        self.session.set_patience(wait + Duration::from_secs(60));
        let Ok(reply) = tokio::time::timeout(wait, self.session.reply(DURING)).await else { return Ok(None) };
        match reply? {
            Reply::Data(data) => match wire::streamed(data).map_err(|e| self.session.protocol(DURING, e))? {
                Streamed::Wal { start, server_end, data } => Ok(Some(Event::Wal { start, server_end, data })),
                Streamed::Keepalive { server_end, reply } => Ok(Some(Event::Keepalive { server_end, reply })),
            },
            Reply::CopyDone => {
                self.ended = true;
                Ok(Some(Event::End))
            }
            // A server that is shut down says so, once all of its log is flushed here, and goes. It may come back.
            Reply::Complete => Err(self.session.lost(DURING, &"the server was shut down, and has sent all of its log")),
            other => Err(self.session.protocol(DURING, format!("{other:?}"))),
        }
    }

    /// Tells the server how far we are; with `reply` it answers at once.
    /// # Errors
    /// When the connection is gone.
    pub async fn report(&mut self, progress: Progress, now: jiff::Timestamp, reply: bool) -> PgResult<()> {
        let message = progress.message(now, reply);
        let mut out = BytesMut::new();
        let data = frontend::CopyData::new(message.as_slice()).map_err(|e| self.session.protocol("reporting", e))?;
        data.write(&mut out);
        self.session.send(&out, "reporting how far the log is here").await
    }

    /// Ends the stream: the session is an ordinary one again. If the timeline had ended, which one goes on.
    /// # Errors
    /// When the server refuses or is gone.
    pub async fn finish(mut self) -> PgResult<(Session, Option<Next>)> {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.session.set_patience(super::QUERY);
        self.session.send(&out, "ending the stream of the log").await?;
        self.session.goes_on().await
    }

    /// Where it is connected, for messages.
    #[must_use]
    pub fn at(&self) -> &str {
        self.session.at()
    }
}
