//! The server's messages, read from bytes: what a session, a copy and a replication stream need of them. Nothing
//! here does I/O, and no byte that comes can make it panic.

use super::error::ServerError;
use crate::providers::port::Lsn;
use bytes::{Buf, Bytes, BytesMut};

/// The largest message that is believed: a row or a piece of log is far smaller.
const LARGEST: usize = 256 * 1024 * 1024;

/// One message: its tag, and what follows its length.
#[derive(Debug)]
pub struct Frame {
    pub tag: u8,
    pub body: Bytes,
}

/// Takes the next message off the buffer, if it is there whole.
pub fn take_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, String> {
    if buffer.len() < 5 {
        return Ok(None);
    }
    let length = u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]) as usize;
    if !(4..=LARGEST).contains(&length) {
        return Err(format!("a message `{}` of {length} bytes", char::from(buffer[0]).escape_default()));
    }
    if buffer.len() < length + 1 {
        buffer.reserve(length + 1 - buffer.len());
        return Ok(None);
    }
    let mut body = buffer.split_to(length + 1).freeze();
    let tag = body[0];
    body.advance(5);
    Ok(Some(Frame { tag, body }))
}

/// One row as text: simple queries answer in nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(pub Vec<Option<String>>);

impl Row {
    /// A column that must be there and not null.
    pub fn text(&self, column: usize) -> Result<&str, String> {
        self.maybe(column).ok_or_else(|| format!("a row without column {}: {:?}", column + 1, self.0))
    }

    #[must_use]
    pub fn maybe(&self, column: usize) -> Option<&str> {
        self.0.get(column).and_then(Option::as_deref)
    }

    /// The same, read as something else than text.
    pub fn get<T: std::str::FromStr>(&self, column: usize) -> Result<T, String> {
        let text = self.text(column)?;
        text.parse().map_err(|_| format!("column {} is `{text}`", column + 1))
    }
}

pub fn row(mut body: Bytes) -> Result<Row, String> {
    let short = || "a row that ends too soon".to_owned();
    let columns = body.try_get_u16().map_err(|_| short())?;
    let mut values = Vec::with_capacity(usize::from(columns));
    for _ in 0..columns {
        values.push(match body.try_get_i32().map_err(|_| short())? {
            -1 => None,
            length => {
                let length = usize::try_from(length).ok().filter(|n| *n <= body.len()).ok_or_else(short)?;
                Some(String::from_utf8_lossy(&body.split_to(length)).into_owned())
            }
        });
    }
    Ok(Row(values))
}

/// A text that ends with a zero byte.
pub fn text(body: &mut Bytes) -> Result<String, String> {
    let end = body.iter().position(|b| *b == 0).ok_or("a text without an end")?;
    let text = String::from_utf8_lossy(&body.split_to(end)).into_owned();
    body.advance(1);
    Ok(text)
}

pub fn server_error(mut body: Bytes) -> ServerError {
    let mut error = ServerError::default();
    while body.has_remaining() {
        let field = body.get_u8();
        let Some(value) = (field != 0).then(|| text(&mut body).ok()).flatten() else { break };
        match field {
            // `V` is never translated; servers before 9.6 had only `S`.
            b'V' => error.severity = value,
            b'S' if error.severity.is_empty() => error.severity = value,
            b'C' => error.code = value,
            b'M' => error.message = value,
            b'D' => error.detail = Some(value),
            b'H' => error.hint = Some(value),
            _ => {}
        }
    }
    error
}

/// What comes on a replication stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Streamed {
    /// A piece of the log that begins here; the server's log ends at `server_end`.
    Wal { start: Lsn, server_end: Lsn, data: Bytes },
    /// The server lives. `reply`: it wants to hear at once how far we are.
    Keepalive { server_end: Lsn, reply: bool },
}

pub fn streamed(mut data: Bytes) -> Result<Streamed, String> {
    let short = |_| "a message on the stream that ends too soon".to_owned();
    match data.try_get_u8().map_err(short)? {
        b'w' => {
            let (start, server_end) = (data.try_get_u64().map_err(short)?, data.try_get_u64().map_err(short)?);
            // When the server sent it, by its clock: nobody here goes by that.
            data.try_get_i64().map_err(short)?;
            Ok(Streamed::Wal { start: Lsn(start), server_end: Lsn(server_end), data })
        }
        b'k' => {
            let server_end = data.try_get_u64().map_err(short)?;
            data.try_get_i64().map_err(short)?;
            Ok(Streamed::Keepalive { server_end: Lsn(server_end), reply: data.try_get_u8().map_err(short)? != 0 })
        }
        other => Err(format!("a message `{}` on the stream", char::from(other).escape_default())),
    }
}

/// How far the log is here, for the server: written, on stable storage, and replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub written: Lsn,
    pub flushed: Lsn,
    pub applied: Lsn,
}

impl Progress {
    /// `reply`: the server shall answer at once.
    #[must_use]
    pub fn message(self, now: jiff::Timestamp, reply: bool) -> Vec<u8> {
        /// Microseconds between 1970 and 2000, from which PostgreSQL counts.
        const EPOCH: i64 = 946_684_800_000_000;
        let mut out = Vec::with_capacity(34);
        out.push(b'r');
        for position in [self.written, self.flushed, self.applied] {
            out.extend(position.0.to_be_bytes());
        }
        out.extend((now.as_microsecond() - EPOCH).to_be_bytes());
        out.push(u8::from(reply));
        out
    }
}

/// What comes in a base backup's one stream (PostgreSQL 15 and later).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Archived {
    /// A tar archive begins: of the data directory (no path), or of a tablespace that stands at this path.
    New {
        name: String,
        tablespace: Option<String>,
    },
    Manifest,
    /// Of the archive or manifest that began last.
    Data(Bytes),
    /// So many bytes of the whole are done.
    Progress(u64),
}

pub fn archived(mut data: Bytes) -> Result<Archived, String> {
    match data.try_get_u8().map_err(|_| "an empty message in the backup")? {
        b'n' => {
            let name = text(&mut data)?;
            let tablespace = Some(text(&mut data)?).filter(|path| !path.is_empty());
            Ok(Archived::New { name, tablespace })
        }
        b'm' => Ok(Archived::Manifest),
        b'd' => Ok(Archived::Data(data)),
        b'p' => Ok(Archived::Progress(data.try_get_u64().map_err(|_| "a report of progress that ends too soon")?)),
        other => Err(format!("a message `{}` in the backup", char::from(other).escape_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag][..], &u32::try_from(body.len() + 4).unwrap().to_be_bytes(), body].concat()
    }

    #[test]
    fn messages_are_taken_as_they_become_whole() {
        let bytes = [framed(b'C', b"SELECT 1\0"), framed(b'Z', b"I")].concat();
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for byte in &bytes {
            buffer.extend_from_slice(&[*byte]);
            seen.extend(take_frame(&mut buffer).unwrap().map(|f| (f.tag, f.body.to_vec())));
        }
        assert_eq!(seen, [(b'C', b"SELECT 1\0".to_vec()), (b'Z', b"I".to_vec())]);
        let wrong = take_frame(&mut BytesMut::from(&b"T\xff\xff\xff\xff"[..])).unwrap_err();
        assert!(wrong.contains("4294967295"), "{wrong}");
    }

    #[test]
    fn rows_and_errors_are_read() {
        let body = [&2u16.to_be_bytes()[..], &3i32.to_be_bytes(), b"abc", &(-1i32).to_be_bytes()].concat();
        let read = row(body.into()).unwrap();
        assert_eq!(read, Row(vec![Some("abc".to_owned()), None]));
        assert_eq!(read.text(0), Ok("abc"));
        assert!(read.text(1).is_err() && read.get::<u32>(0).is_err());
        let error = server_error(Bytes::from_static(b"SERREUR\0VERROR\0C28P01\0Mno\0Hthink\0\0"));
        assert_eq!((error.severity.as_str(), error.code.as_str(), error.hint.as_deref()), ("ERROR", "28P01", Some("think")));
    }

    #[test]
    fn the_stream_and_the_backup_are_read() {
        let wal = [&b"w"[..], &16u64.to_be_bytes(), &32u64.to_be_bytes(), &[0; 8], b"log"].concat();
        let want = Streamed::Wal { start: Lsn(16), server_end: Lsn(32), data: Bytes::from_static(b"log") };
        assert_eq!(streamed(wal.into()), Ok(want));
        let alive = [&b"k"[..], &32u64.to_be_bytes(), &[0; 8], &[1]].concat();
        assert_eq!(streamed(alive.into()), Ok(Streamed::Keepalive { server_end: Lsn(32), reply: true }));
        let new = Archived::New { name: "16384.tar".to_owned(), tablespace: Some("/ts".to_owned()) };
        assert_eq!(archived(Bytes::from_static(b"n16384.tar\0/ts\0")), Ok(new));
        let base = Archived::New { name: "base.tar".to_owned(), tablespace: None };
        assert_eq!(archived(Bytes::from_static(b"nbase.tar\0\0")), Ok(base));

        let at = Lsn(0x1_0000_0002);
        let message = Progress { written: at, flushed: at, applied: Lsn(0) }.message("2000-01-01T00:00:01Z".parse().unwrap(), true);
        assert_eq!((message.len(), message[0], &message[25..33], message[33]), (34, b'r', &1_000_000u64.to_be_bytes()[..], 1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _ = take_frame(&mut BytesMut::from(&bytes[..]));
            let _ = (row(bytes.clone()), streamed(bytes.clone()), archived(bytes.clone()));
            let _ = server_error(bytes);
        }
    }
}
