//! THE DOOR. The use cases, and all that `cli` (and later `api`) may call.
//!
//! [`Muster`] holds what a command was pointed at: the state directory and the estate. [`files`] finds and
//! reads what people wrote, [`runs`] begins and resumes runs and takes operators' commands, [`approvals`] is
//! who signs what, [`drills`] does the same for drills, [`bench`] loads the engine, [`serve`] fires them on
//! schedule, [`takeover`] goes on with what other nodes left, [`heartbeat`] says that it does, [`view`] is the
//! JSON that machines read, [`notices`] tells people, [`next`] is what they can do, [`evidence`] verifies,
//! [`portable`] carries the record from one journal to another, [`backup`] is the repository's, [`replica`] compares a
//! replica with its primary.

pub mod approvals;
pub mod backup;
pub mod bench;
pub mod doctor;
pub mod drills;
pub mod evidence;
pub mod files;
pub mod heartbeat;
pub mod next;
pub mod notices;
pub mod portable;
mod preempt;
pub mod readiness;
pub mod replica;
pub mod report;
pub mod runs;
pub mod serve;
pub mod shared;
mod takeover;
pub mod view;
pub mod wal;

use crate::drill::conduct::DrillError;
use crate::engine::EngineError;
use crate::journal::{
    Journal, JournalError, Stored,
    sqlite::{self, SqliteJournal},
};
use crate::model::{ids::RunId, status::RunStatus};
use crate::providers::{
    clock::{Clock, SystemClock},
    port::Faults,
    who,
};
use crate::repository::RepositoryError;
use crate::runbook::diagnostic::Diagnostic;
use std::{path::PathBuf, sync::Arc};
use tokio::sync::watch;

#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Diagnostic>),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Drill(#[from] DrillError),
    /// A run that goes no further, because what happens can no longer be put on record.
    #[error("run {run} stopped: {why}. Nothing was begun that is not on record; when that is mended: {program} resume {run}")]
    Stopped { run: RunId, why: JournalError, program: String },
    #[error("{0}")]
    Port(#[from] crate::providers::port::PortError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl ServiceError {
    /// Could not run: 2. Stopped, and a person must act: 3.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Drill(DrillError::Interrupted(_) | DrillError::NeedsAPerson { .. }) | Self::Stopped { .. } => 3,
            Self::Repository(RepositoryError::Interrupted(_)) => 3,
            _ => 2,
        }
    }
    /// A stable word for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Usage(_) => "usage",
            Self::Journal(_) | Self::Stopped { .. } => "journal",
            Self::Engine(_) => "engine",
            Self::Drill(_) => "drill",
            Self::Port(_) => "port",
            Self::Repository(_) => "repository",
        }
    }
}

/// The exit code that a run's status amounts to.
#[must_use]
pub fn run_exit_code(status: RunStatus) -> u8 {
    match status {
        RunStatus::Succeeded => 0,
        RunStatus::Failed | RunStatus::Aborted => 1,
        _ => 3,
    }
}

pub type Listener = Arc<dyn Fn(&Stored) + Send + Sync>;

/// What a command was pointed at.
#[derive(Clone)]
pub struct Muster {
    pub state: PathBuf,
    pub estate_file: PathBuf,
    pub clock: Arc<dyn Clock>,
    /// Every event as it becomes durable.
    pub listener: Listener,
    /// Set by Ctrl-C.
    pub interrupt: watch::Receiver<bool>,
    /// Who can inject faults, when a lab is up.
    pub faults: Option<Arc<dyn Faults>>,
    /// The journal once it is open, with its state directory: all that a process writes goes through one.
    opened: Arc<tokio::sync::Mutex<Option<(PathBuf, Arc<dyn Journal>)>>>,
    /// The journal, if it is not the state directory's own.
    pub shared: Option<shared::Shared>,
}

impl Muster {
    #[must_use]
    pub fn new(state: PathBuf, estate_file: PathBuf) -> Self {
        // A receiver whose sender is gone keeps its last value: never interrupted.
        let interrupt = watch::channel(false).1;
        Self {
            state,
            estate_file,
            clock: Arc::new(SystemClock::new()),
            listener: Arc::new(|_| {}),
            interrupt,
            faults: None,
            opened: Arc::default(),
            shared: None,
        }
    }

    pub async fn journal(&self) -> Result<Arc<dyn Journal>, ServiceError> {
        if let Some(shared) = &self.shared {
            return Ok(self.shared_journal(shared, true).await?);
        }
        let mut opened = self.opened.lock().await;
        match &*opened {
            Some((state, journal)) if *state == self.state => Ok(journal.clone()),
            _ => {
                let journal: Arc<dyn Journal> = Arc::new(SqliteJournal::open(&self.state).await?);
                #[cfg(debug_assertions)]
                let journal = crate::journal::failpoint::wrap(journal)?;
                *opened = Some((self.state.clone(), journal.clone()));
                Ok(journal)
            }
        }
    }

    /// Opens the journal if there is one: reading commands make nothing.
    pub async fn existing_journal(&self) -> Result<Arc<dyn Journal>, ServiceError> {
        if let Some(shared) = &self.shared {
            return Ok(self.shared_journal(shared, false).await?);
        }
        if !sqlite::exists(&self.state) {
            let place = self.state.display();
            return Err(ServiceError::Usage(format!("there is no journal in {place}; point --state at the directory that the run used")));
        }
        self.journal().await
    }

    /// Who acts when Muster does: the process.
    #[must_use]
    pub fn actor(&self) -> String {
        format!("muster@{}:{}", who::host(), std::process::id())
    }

    /// Who acts when a person does.
    #[must_use]
    pub fn person() -> String {
        who::person()
    }

    /// The run or drill that a person named, by the beginning of its identifier.
    pub async fn find(&self, journal: &dyn Journal, prefix: &str) -> Result<RunId, ServiceError> {
        Ok(journal.find(prefix).await?)
    }
}
