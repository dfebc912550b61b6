//! The demo's own `muster wal receive`: the database's log goes into the repository while everything else happens, so that the
//! second drill shows what the database loses when no region is left. It comes from the server in the west, which outlives the
//! loss of the east, is promoted in it and is rejoined in the end: one server through all of that.
//!
//! It runs within the demo's process and ends with it, however that ends.

use super::output::Output;
use crate::lab::{
    pg::USER,
    plan::{LabPlan, Servers},
};
use crate::model::time::Span;
use crate::service::{Muster, ServiceError, backup::place::Where, wal::receive::Receive};
use secrecy::ExposeSecret;
use std::time::Duration;
use tokio::{sync::watch, task::JoinHandle};

const SLOT: &str = "muster_log";
/// As `muster wal receive` has it unless told otherwise.
const EVERY_MS: u64 = 200;
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(200);
/// For what is under way when it is told to end.
const LAST: Duration = Duration::from_secs(10);

pub struct Log {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), ServiceError>>,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Log {
    /// Begins to receive, where the servers are one's own; Amazon's give their log to nobody.
    pub fn receive(muster: &Muster, plan: &LabPlan, output: &Output) -> Result<Option<Self>, ServiceError> {
        if plan.servers != Servers::Own {
            return Ok(None);
        }
        let place = plan.region("west")?;
        let password = plan.secret("database_password")?;
        let ask = Receive {
            at: Where {
                repo: Some(plan.home.join("vault").display().to_string()),
                password_file: Some(plan.secret_file("repository_password")),
                key_file: None,
                compression: None,
            },
            url: format!("postgres://{USER}:{}@{}/?sslmode=disable", password.expose_secret(), place.at(place.postgres)),
            slot: SLOT.to_owned(),
            create_slot: true,
            every: Span::from_ms(EVERY_MS),
            accept_gap: false,
        };
        let (stop, interrupt) = watch::channel(false);
        let mut own = muster.clone();
        own.interrupt = interrupt;
        output.say("receiving the database's log into the repository, from here on");
        let task = tokio::spawn(async move {
            loop {
                match own.wal_receive(&ask, &|_| {}).await {
                    // The server was rejoined, which leaves it no slot: it gets another, and if log is missing between the two, that is told.
                    Err(_) if !*own.interrupt.borrow() => tokio::time::sleep(AGAIN).await,
                    ended => return ended.map(drop),
                }
            }
        });
        Ok(Some(Self { stop, task }))
    }

    /// What came is written; that it came to its end too soon is said.
    pub async fn end(mut self, output: &Output) {
        let _ = self.stop.send(true);
        match tokio::time::timeout(LAST, &mut self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => output.say(format!("the database's log was not received to the end: {error}")),
            Ok(Err(_)) | Err(_) => output.say("the database's log was not received to the end"),
        }
    }
}
