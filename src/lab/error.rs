//! What can go wrong in the lab, said so that a person knows what to do next.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error(
        "PostgreSQL's server programs ({missing}) were not found under /usr/lib/postgresql/*/bin, in PATH or by pg_config: run `make deps`, or install the Debian package `postgresql`"
    )]
    NoPostgres { missing: String },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{program} failed ({how}); the end of its output: {output}")]
    Program { program: String, how: String, output: String },
    #[error("{role} in {place} did not answer within {seconds} s; the end of {log}: {output}", log = .log.display())]
    NotReady { role: String, place: String, seconds: u64, log: PathBuf, output: String },
    #[error("there is no lab in {}: start one with `muster lab up`", .0.display())]
    NoLab(PathBuf),
    #[error("the lab's record {} cannot be read ({cause}): run `muster lab down`, then `muster lab up`", .path.display())]
    Record { path: PathBuf, cause: String },
    #[error("the lab has no region `{0}`: it has east and west")]
    NoRegion(String),
    #[error("{0}")]
    Usage(String),
    #[error("database of {region}: {cause}")]
    Sql { region: String, cause: String },
    #[error("object store of {region}: {cause}")]
    Objects { region: String, cause: String },
    #[error("the model: {0}")]
    Model(String),
    #[error("{0} processes of the lab would not end; look at them with `muster lab status`")]
    Undead(usize),
    #[error("no free subnet 127.x.y.0/24 was found for the lab: end other labs with `muster lab down`")]
    NoSubnet,
    #[error("no free port was found for the lab: end other labs with `muster lab down`")]
    NoPort,
}

pub type LabResult<T> = Result<T, LabError>;

/// Names the thing that an I/O error happened to.
pub trait What<T> {
    /// # Errors
    /// The same one, with the name.
    fn what(self, what: impl Into<String>) -> LabResult<T>;
}

impl<T> What<T> for std::io::Result<T> {
    fn what(self, what: impl Into<String>) -> LabResult<T> {
        self.map_err(|source| LabError::Io { what: what.into(), source })
    }
}
