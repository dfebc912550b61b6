//! Why a conversation with PostgreSQL ended: where, what the server said (SQLSTATE, message, detail, hint), and
//! what to do about the troubles that a replication connection meets most.

use crate::providers::port::PortError;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// The URL, a password file or a certificate is not right: nothing was asked.
    #[error("{0}")]
    Config(String),
    #[error("{at} cannot be reached: {why}")]
    Unreachable { at: String, why: String },
    #[error("{at} did not answer within {} s ({during})", wait.as_secs())]
    Silent { at: String, during: String, wait: Duration },
    #[error("the connection to {at} was lost ({during}): {why}")]
    Lost { at: String, during: String, why: String },
    #[error("{at}: {server}{}", remedy(server).map(|r| format!("; {r}")).unwrap_or_default())]
    Server { at: String, server: Box<ServerError> },
    /// What came is not what the protocol says.
    #[error("{at} answered what was not expected ({during}): {what}")]
    Protocol { at: String, during: String, what: String },
}

pub type PgResult<T> = Result<T, PgError>;

/// An error as the server tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR` or `FATAL`: after the latter the session is over.
    pub severity: String,
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        self.detail.iter().try_for_each(|detail| write!(f, ": {detail}"))?;
        self.hint.iter().try_for_each(|hint| write!(f, " (hint: {hint})"))
    }
}

impl PgError {
    /// What the server said, if it was the server.
    #[must_use]
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server { server, .. } => Some(server.as_ref()),
            _ => None,
        }
    }

    /// The SQLSTATE, if the server gave one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.server().map(|server| server.code.as_str())
    }
}

impl From<PgError> for PortError {
    fn from(e: PgError) -> Self {
        let text = e.to_string();
        match e {
            PgError::Config(_) => Self::Config(text),
            PgError::Server { server, .. } if server.code.starts_with("53") || server.code.starts_with("57P") => {
                Self::Throttled { after: Duration::from_secs(5), message: text }
            }
            PgError::Server { .. } | PgError::Protocol { .. } => Self::Refused(text),
            PgError::Unreachable { .. } | PgError::Silent { .. } => Self::Unreachable(text),
            PgError::Lost { .. } => Self::Unreachable(text),
        }
    }
}

/// What helps, for the refusals that are met most.
fn remedy(e: &ServerError) -> Option<&'static str> {
    let said = |words: &str| e.message.contains(words);
    Some(match e.code.as_str() {
        "28P01" => "check the user, and where its password comes from (the URL, PGPASSWORD, the password file)",
        "28000" if said("pg_hba.conf") => {
            "add a line for this user and address to the server's pg_hba.conf (`host replication USER ADDRESS scram-sha-256`, for SQL \
             the database's name in place of `replication`) and reload it"
        }
        "28000" => "name a role that exists and may log in",
        "42501" if said("replication") || said("WAL sender") || said("walsender") => {
            "give the role the privilege: ALTER ROLE … REPLICATION LOGIN"
        }
        "53300" if said("max_wal_senders") || said("standby connections") => {
            "every WAL sender is taken (a backup needs two): end one that is not needed, or raise max_wal_senders and restart the server"
        }
        "53300" => "every connection is taken: end some, or raise max_connections and restart the server",
        "53400" => "every replication slot is taken: drop one that nobody uses, or raise max_replication_slots and restart the server",
        "55006" => "the slot is in use by another connection: end that one first",
        "58P01" if said("WAL segment") => {
            "the server has removed the log that is asked for: keep more of it (a replication slot, or wal_keep_size)"
        }
        "57P03" => "the server is starting or stopping: try again when it accepts connections",
        "3D000" => "name a database that exists in the URL",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str, message: &str) -> PgError {
        let server =
            ServerError { code: code.to_owned(), message: message.to_owned(), hint: Some("look".to_owned()), ..Default::default() };
        PgError::Server { at: "db:5432".to_owned(), server: Box::new(server) }
    }

    #[test]
    fn a_refusal_says_where_what_and_the_remedy() {
        let e = refused("53300", "number of requested standby connections exceeds max_wal_senders (currently 2)");
        let text = e.to_string();
        for part in ["db:5432", "(53300)", "hint: look", "raise max_wal_senders"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(e.code(), Some("53300"));
        assert!(matches!(PortError::from(e), PortError::Throttled { .. }));
        assert!(matches!(PortError::from(refused("28P01", "no")), PortError::Refused(_)));
    }
}
