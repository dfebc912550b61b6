//! From a target to a session: the socket, TLS, and who we are (SCRAM-SHA-256, MD5, a password in clear, or trust).
//!
//! A password goes in clear only over TLS or a socket of this machine: a server that asks for one otherwise is
//! refused, as it may not be the one that is meant.

use super::{
    Session,
    error::{PgError, PgResult},
    target::{SslMode, Target},
    tls,
    wire::{self, Frame},
};
use bytes::{Buf, BytesMut};
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::frontend,
};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Physical replication: base backups and the log as it stands.
    Replication,
    /// Ordinary SQL.
    Sql,
}

/// How long one step of a login may take once the server has answered.
const STEP: Duration = Duration::from_secs(20);

impl Session {
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn open(target: &Target, purpose: Purpose) -> PgResult<Self> {
        let wait = target.connect_timeout;
        let late = || PgError::Silent { at: target.at(), during: "connecting".to_owned(), wait };
        let (io, private) = tokio::time::timeout(wait, connect(target)).await.map_err(|_| late())??;
        Self::begin(io, private, target, target.at(), purpose).await
    }

    /// Over something else than a socket, with a server that trusts whoever is there.
    pub(in crate::providers) async fn over(io: Box<dyn Io>, at: String, user: &str, purpose: Purpose) -> PgResult<Self> {
        let target = Target::new(at.clone(), 0, user.to_owned(), None, None);
        Self::begin(io, true, &target, at, purpose).await
    }

    async fn begin(io: Box<dyn Io>, private: bool, target: &Target, at: String, purpose: Purpose) -> PgResult<Self> {
        let (buffer, parameters) = (BytesMut::with_capacity(64 * 1024), BTreeMap::new());
        let mut session = Self { io, at, buffer, parameters, patience: STEP, process: None, ready: false };
        session.start(target, purpose).await?;
        session.authenticate(target, private).await?;
        session.settle().await?;
        Ok(session)
    }

    async fn start(&mut self, target: &Target, purpose: Purpose) -> PgResult<()> {
        let mut parameters = vec![("user", target.user.as_str()), ("application_name", "muster"), ("client_encoding", "UTF8")];
        match purpose {
            Purpose::Replication => parameters.push(("replication", "true")),
            Purpose::Sql => {}
        }
        // A physical replication connection belongs to no database.
        if let (Purpose::Sql, Some(name)) = (purpose, &target.database) {
            parameters.push(("database", name));
        }
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|e| self.protocol("starting", e))?;
        self.send(&out, "starting").await
    }

    async fn authenticate(&mut self, target: &Target, private: bool) -> PgResult<()> {
        loop {
            let mut frame = self.login_frame(target).await?;
            if frame.tag != b'R' {
                return Err(self.unexpected(&frame, "logging in"));
            }
            match frame.body.try_get_i32().map_err(|e| self.protocol("logging in", e))? {
                0 => return Ok(()),
                3 if private => {
                    let word = self.password(target)?.as_bytes().to_vec();
                    self.say_password(&word).await?;
                }
                3 => {
                    return Err(PgError::Config(format!(
                        "{} asks for the password in clear over a connection that anyone can read: use sslmode=require, or scram-sha-256 \
                         in its pg_hba.conf",
                        self.at
                    )));
                }
                5 => {
                    let mut salt = [0; 4];
                    frame.body.try_copy_to_slice(&mut salt).map_err(|e| self.protocol("logging in", e))?;
                    let word = md5_hash(target.user.as_bytes(), self.password(target)?.as_bytes(), salt);
                    self.say_password(word.as_bytes()).await?;
                }
                10 => self.scram(target, &frame.body).await?,
                other => {
                    return Err(PgError::Config(format!(
                        "{} asks for a way to log in that is not spoken here (number {other}): scram-sha-256, md5, password and trust are",
                        self.at
                    )));
                }
            }
        }
    }

    async fn scram(&mut self, target: &Target, offered: &[u8]) -> PgResult<()> {
        if !offered.split(|b| *b == 0).any(|name| name == SCRAM_SHA_256.as_bytes()) {
            return Err(PgError::Config(format!("{} offers no SCRAM-SHA-256 without channel binding", self.at)));
        }
        let mut scram = ScramSha256::new(self.password(target)?.as_bytes(), ChannelBinding::unsupported());
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out).map_err(|e| self.protocol("SCRAM", e))?;
        self.send(&out, "logging in").await?;
        let first = self.sasl(target, 11).await?;
        scram.update(&first).map_err(|e| self.protocol("SCRAM", e))?;
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).map_err(|e| self.protocol("SCRAM", e))?;
        self.send(&out, "logging in").await?;
        let last = self.sasl(target, 12).await?;
        // It is the server that shows here that it knows the password.
        scram.finish(&last).map_err(|e| self.protocol("SCRAM", e))
    }

    async fn sasl(&mut self, target: &Target, want: i32) -> PgResult<bytes::Bytes> {
        let mut frame = self.login_frame(target).await?;
        if frame.tag != b'R' {
            return Err(self.unexpected(&frame, "logging in"));
        }
        let got = frame.body.try_get_i32().map_err(|e| self.protocol("logging in", e))?;
        if got == want { Ok(frame.body) } else { Err(self.protocol("SCRAM", format!("step {got} in place of {want}"))) }
    }

    /// Past what the server tells about itself, to where it takes the first query.
    async fn settle(&mut self) -> PgResult<()> {
        loop {
            let mut frame = self.frame("logging in").await?;
            match frame.tag {
                b'Z' => break,
                b'K' => self.process = frame.body.try_get_i32().ok(),
                b'S' => self.heard_parameter(frame.body),
                b'N' => {}
                b'E' => return Err(self.refused(frame.body)),
                _ => return Err(self.unexpected(&frame, "logging in")),
            }
        }
        self.ready = true;
        Ok(())
    }

    async fn login_frame(&mut self, target: &Target) -> PgResult<Frame> {
        loop {
            let frame = self.frame("logging in").await?;
            match frame.tag {
                b'E' => {
                    let mut error = wire::server_error(frame.body);
                    if error.code == "28P01" {
                        error.detail = Some(format!("the password came from {}", target.password_from));
                    }
                    return Err(PgError::Server { at: self.at.clone(), server: Box::new(error) });
                }
                // A notice, or negotiation of the protocol's minor version: nothing hangs on either here.
                b'N' | b'v' => {}
                _ => return Ok(frame),
            }
        }
    }

    fn password<'a>(&self, target: &'a Target) -> PgResult<&'a str> {
        target.password().ok_or_else(|| {
            PgError::Config(format!(
                "{} asks {} for a password, and none is known: give it by PGPASSWORD or in ~/.pgpass (mode 0600)",
                self.at, target.user
            ))
        })
    }

    async fn say_password(&mut self, word: &[u8]) -> PgResult<()> {
        let mut out = BytesMut::new();
        frontend::password_message(word, &mut out).map_err(|e| self.protocol("logging in", e))?;
        self.send(&out, "logging in").await
    }
}

/// The connection, and whether nobody can listen to it.
async fn connect(target: &Target) -> PgResult<(Box<dyn Io>, bool)> {
    let fail = |why: &dyn std::fmt::Display| PgError::Unreachable { at: target.at(), why: why.to_string() };
    if target.is_socket() {
        let socket = UnixStream::connect(target.at()).await.map_err(|e| fail(&e))?;
        return Ok((Box::new(socket), true));
    }
    let mut socket = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(|e| fail(&e))?;
    socket.set_nodelay(true).map_err(|e| fail(&e))?;
    if target.ssl == SslMode::Disable {
        return Ok((Box::new(socket), false));
    }
    let mut ask = BytesMut::new();
    frontend::ssl_request(&mut ask);
    socket.write_all(&ask).await.map_err(|e| fail(&e))?;
    match socket.read_u8().await.map_err(|e| fail(&e))? {
        b'S' => {
            let stream = tls::connector(target)?.connect(tls::server_name(target)?, socket).await;
            let stream = stream.map_err(|e| fail(&format!("its TLS is not accepted: {e}")))?;
            Ok((Box::new(stream), true))
        }
        b'N' if target.ssl == SslMode::Prefer => Ok((Box::new(socket), false)),
        b'N' => Err(fail(&"it offers no TLS, and sslmode asks for it: turn `ssl` on there, or say sslmode=prefer")),
        // An error may come in place of either answer; it would be unauthenticated text.
        _ => Err(fail(&"it answers the question for TLS with an error: is it PostgreSQL, and are its connections used up?")),
    }
}
