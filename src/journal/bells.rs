//! One look into the inbox for all runs of a process: who owns a run hangs up a bell, and sleeps.
//!
//! Ten thousand owners that each looked five times a second would do nothing else.

use super::Bell;
use crate::model::ids::RunId;
use futures::future::BoxFuture;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// How often the inbox is looked into.
const LOOK: Duration = Duration::from_millis(200);

/// The runs for which letters wait, as the store says. One in trouble says nothing: whoever writes to it tells, and the
/// next look is soon.
pub type Waiting = Box<dyn Fn() -> BoxFuture<'static, Vec<String>> + Send + Sync>;

pub struct Bells {
    waiting: Waiting,
    hung: Mutex<Hung>,
}

#[derive(Default)]
struct Hung {
    /// Usually one for a run; an owner that was deposed may still have its own.
    bells: HashMap<RunId, Vec<Arc<Notify>>>,
    looking: bool,
}

impl Bells {
    pub fn new(waiting: Waiting) -> Self {
        Self { waiting, hung: Mutex::default() }
    }

    fn hung(&self) -> MutexGuard<'_, Hung> {
        self.hung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn hang(this: &Arc<Self>, run: &RunId) -> Bell {
        let rung = Arc::new(Notify::new());
        let mut hung = this.hung();
        hung.bells.entry(run.clone()).or_default().push(rung.clone());
        if !std::mem::replace(&mut hung.looking, true) {
            tokio::spawn(look(this.clone()));
        }
        let hook = Hook { bells: this.clone(), run: run.clone(), rung: rung.clone() };
        Bell { rung, _hung: Box::new(hook) }
    }

    fn ring<'a>(&self, runs: impl Iterator<Item = &'a str>) {
        let hung = self.hung();
        runs.filter_map(|run| hung.bells.get(run)).flatten().for_each(|bell| bell.notify_one());
    }

    /// Does anybody listen? If not, the looking ends; the next bell begins it again.
    fn heard(&self) -> bool {
        let mut hung = self.hung();
        hung.looking = !hung.bells.is_empty();
        hung.looking
    }
}

struct Hook {
    bells: Arc<Bells>,
    run: RunId,
    rung: Arc<Notify>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        let mut hung = self.bells.hung();
        if let Some(bells) = hung.bells.get_mut(&self.run) {
            bells.retain(|bell| !Arc::ptr_eq(bell, &self.rung));
            if bells.is_empty() {
                hung.bells.remove(&self.run);
            }
        }
    }
}

async fn look(bells: Arc<Bells>) {
    while bells.heard() {
        let found = (bells.waiting)().await;
        bells.ring(found.iter().map(String::as_str));
        tokio::time::sleep(LOOK).await;
    }
}
