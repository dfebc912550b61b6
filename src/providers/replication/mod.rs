//! A session in PostgreSQL's own protocol, for what SQL clients do not offer: physical replication. Queries with
//! rows as text, copy-out (a base backup) and copy-both (the log as it is written).
//!
//! Every read has a time limit, `patience`, that the caller sets to what the question may take. A server's refusal
//! keeps its SQLSTATE, message and hint. The messages are those of the crate `postgres-protocol` where it has
//! them; it does not know copy-both, so frames are taken apart in [`wire`].
//!
//! Whatever waits inside this room may be dropped half-way (in a `select!`): bytes that came stay in the buffer.

pub mod commands;
pub mod error;
mod login;
pub mod stream;
pub mod target;
mod tls;
pub mod wire;

pub use commands::{Identity, SlotState};
pub use error::{PgError, PgResult, ServerError};
pub use login::Purpose;
pub use stream::{Event, Next, Started, WalStream};
pub use target::{Target, is_url};
pub use wire::{Archived, Progress, Row};

use bytes::{Buf, Bytes, BytesMut};
use login::Io;
use postgres_protocol::message::frontend;
use std::{collections::BTreeMap, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::Frame;

/// How long an ordinary question may take.
pub const QUERY: Duration = Duration::from_secs(20);
/// The same for what is sent: a server that takes nothing for so long is gone.
const SEND: Duration = Duration::from_secs(30);
/// How much is asked of the socket at once.
const READ: usize = 256 * 1024;

/// A server that sessions are opened with.
#[async_trait::async_trait]
pub trait Dial: Send + Sync {
    /// # Errors
    /// When it cannot be reached, or refuses.
    async fn dial(&self, purpose: Purpose) -> PgResult<Session>;
    /// Where it is, without a password.
    fn url(&self) -> String;
}

#[async_trait::async_trait]
impl Dial for Target {
    async fn dial(&self, purpose: Purpose) -> PgResult<Session> {
        Session::open(self, purpose).await
    }
    fn url(&self) -> String {
        Self::url(self)
    }
}

pub struct Session {
    io: Box<dyn Io>,
    at: String,
    buffer: BytesMut,
    parameters: BTreeMap<String, String>,
    patience: Duration,
    process: Option<i32>,
    /// The server waits for a query.
    ready: bool,
}

/// What the server answers to a query, piece by piece.
#[derive(Debug)]
pub enum Reply {
    /// A result begins; its columns' names are not needed.
    Columns,
    Row(Row),
    CopyOut,
    CopyBoth,
    Data(Bytes),
    CopyDone,
    /// A command is done: what it was.
    Complete,
    /// The whole query is.
    Ready,
}

impl Session {
    /// Where it is connected, for messages.
    #[must_use]
    pub fn at(&self) -> &str {
        &self.at
    }

    /// What the server told when the session began: `server_version`, `in_hot_standby`, …
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The server's process for this session, as in `pg_stat_activity`.
    #[must_use]
    pub fn process(&self) -> Option<i32> {
        self.process
    }

    /// The server's version as a number, `150018` say, from the text that it tells.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.parameter("server_version").map_or(0, version_number)
    }

    /// How long each read may take from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Asks, and has all rows of all results.
    /// # Errors
    /// When the server refuses, is silent or gone.
    pub async fn query(&mut self, text: &str) -> PgResult<Vec<Row>> {
        self.ask(text).await?;
        let mut rows = Vec::new();
        loop {
            match self.reply(text).await? {
                Reply::Row(row) => rows.push(row),
                Reply::Ready => return Ok(rows),
                Reply::CopyOut | Reply::CopyBoth => return Err(self.protocol(text, "a copy in place of rows")),
                Reply::Columns | Reply::Complete | Reply::Data(_) | Reply::CopyDone => {}
            }
        }
    }

    /// The same where exactly one row is the answer.
    /// # Errors
    /// As `query`, and when there is none or more than one.
    pub async fn one(&mut self, text: &str) -> PgResult<Row> {
        let mut rows = self.query(text).await?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => Ok(row),
            (_, n) => Err(self.protocol(text, format!("{n} rows in place of one"))),
        }
    }

    /// Sends a query; its answer is read with `reply`, up to `Ready`.
    /// # Errors
    /// When the connection is gone.
    pub async fn ask(&mut self, text: &str) -> PgResult<()> {
        if !self.ready {
            return Err(self.protocol(text, "an earlier query has not been read to its end"));
        }
        let mut out = BytesMut::new();
        frontend::query(text, &mut out).map_err(|e| self.protocol(text, e))?;
        self.ready = false;
        self.send(&out, text).await
    }

    /// The next piece of the answer. After a refusal the session takes queries again, unless it was fatal.
    /// # Errors
    /// When the server refuses, is silent or gone.
    pub async fn reply(&mut self, during: &str) -> PgResult<Reply> {
        loop {
            let frame = self.frame(during).await?;
            return Ok(match frame.tag {
                b'T' => Reply::Columns,
                b'D' => Reply::Row(wire::row(frame.body).map_err(|e| self.protocol(during, e))?),
                b'H' => Reply::CopyOut,
                b'W' => Reply::CopyBoth,
                b'd' => Reply::Data(frame.body),
                b'c' => Reply::CopyDone,
                b'C' | b'I' => Reply::Complete,
                b'Z' => {
                    self.ready = true;
                    Reply::Ready
                }
                b'N' | b'A' => continue,
                b'S' => {
                    self.heard_parameter(frame.body);
                    continue;
                }
                b'E' => return Err(self.refusal(frame.body, during).await),
                _ => return Err(self.unexpected(&frame, during)),
            });
        }
    }

    /// A refusal, once the server is ready again: only then may the session be asked something else.
    async fn refusal(&mut self, body: Bytes, during: &str) -> PgError {
        let error = self.refused(body);
        let fatal = error.server().is_some_and(|e| e.severity != "ERROR");
        while !fatal && !self.ready {
            match self.frame(during).await {
                Ok(frame) => self.ready = frame.tag == b'Z',
                Err(_) => break,
            }
        }
        error
    }

    /// Says good-bye. Dropping a session ends it as well, and has the server find out by itself.
    pub async fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        // Whether it was heard does not matter.
        let _ = self.send(&out, "closing").await;
    }

    async fn send(&mut self, bytes: &[u8], during: &str) -> PgResult<()> {
        let sent = tokio::time::timeout(SEND, async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        })
        .await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(self.lost(during, &e)),
            Err(_) => Err(PgError::Silent { at: self.at.clone(), during: short(during), wait: SEND }),
        }
    }

    async fn frame(&mut self, during: &str) -> PgResult<Frame> {
        let patience = self.patience;
        match tokio::time::timeout(patience, self.frame_at_leisure(during)).await {
            Ok(frame) => frame,
            Err(_) => Err(PgError::Silent { at: self.at.clone(), during: short(during), wait: patience }),
        }
    }

    async fn frame_at_leisure(&mut self, during: &str) -> PgResult<Frame> {
        loop {
            if let Some(frame) = wire::take_frame(&mut self.buffer).map_err(|e| self.protocol(during, e))? {
                return Ok(frame);
            }
            if self.buffer.capacity() - self.buffer.len() < READ / 4 {
                self.buffer.reserve(READ);
            }
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(self.lost(during, &"the server closed it")),
                Ok(_) => {}
                Err(e) => return Err(self.lost(during, &e)),
            }
        }
    }

    fn heard_parameter(&mut self, mut body: Bytes) {
        if let (Ok(name), Ok(value)) = (wire::text(&mut body), wire::text(&mut body)) {
            self.parameters.insert(name, value);
        }
    }

    fn refused(&self, body: Bytes) -> PgError {
        PgError::Server { at: self.at.clone(), server: Box::new(wire::server_error(body)) }
    }

    fn lost(&self, during: &str, why: &dyn std::fmt::Display) -> PgError {
        PgError::Lost { at: self.at.clone(), during: short(during), why: why.to_string() }
    }

    /// For who reads an answer that has another form than it must have.
    pub fn protocol(&self, during: &str, what: impl std::fmt::Display) -> PgError {
        PgError::Protocol { at: self.at.clone(), during: short(during), what: what.to_string() }
    }

    fn unexpected(&self, frame: &Frame, during: &str) -> PgError {
        self.protocol(during, format!("a message `{}` of {} bytes", char::from(frame.tag).escape_default(), frame.body.remaining()))
    }
}

/// What was asked, in a message: its first line, and not too long.
fn short(during: &str) -> String {
    let line = during.trim().lines().next().unwrap_or_default();
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// `15.18 (Debian 15.18-0+deb12u1)` is 150018; `18beta2` is 180000.
fn version_number(text: &str) -> u32 {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let major = parts.next().unwrap_or(0);
    let minor = if text[major.to_string().len().min(text.len())..].starts_with('.') { parts.next().unwrap_or(0) } else { 0 };
    major.saturating_mul(10_000).saturating_add(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_number() {
        for (text, number) in [("15.18 (Debian 15.18-0+deb12u1)", 150_018), ("18.4", 180_004), ("18beta2", 180_000), ("", 0)] {
            assert_eq!(version_number(text), number, "{text}");
        }
    }
}
