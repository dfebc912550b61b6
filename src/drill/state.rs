//! What is known of a drill: the fold of its events, so that any process can go on with it.

use crate::model::{drill::*, event::*, ids::*, objective::*, status::*};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub struct DrillState {
    pub id: RunId,
    pub drill: Drill,
    pub file: String,
    pub digest: String,
    pub context: DrillContext,
    pub scheduled_for: Option<jiff::Timestamp>,
    pub started_at: jiff::Timestamp,
    pub finished_at: Option<jiff::Timestamp>,
    pub seq: u64,
    pub head: String,
    pub steady: Option<(bool, String)>,
    /// Faults whose injection was begun, and those that are known to be done.
    pub injecting: usize,
    pub injected: usize,
    /// When that was injected which loses something.
    pub fault_at: Option<jiff::Timestamp>,
    only_delayed: bool,
    pub detected: Option<jiff::Timestamp>,
    pub runs: BTreeMap<RunRole, (RunId, Option<RunStatus>)>,
    pub measured: BTreeMap<RunRole, Measurement>,
    pub healed: Option<String>,
    pub as_found: Option<(bool, Vec<String>)>,
    pub holes: Vec<String>,
    pub skipped: Option<String>,
    /// It made way for a live failover; nothing of it goes on but its healing.
    pub preempted: Option<String>,
    pub verdict: Option<(Verdict, Vec<String>)>,
}

/// What was measured over one of the drill's runs.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub instants: Instants,
    pub rto: Rto,
    pub rpo: Rpo,
    pub ledger: Option<LedgerDigest>,
    pub notes: BTreeMap<String, serde_json::Value>,
}

impl DrillState {
    /// The state after a drill's first event; `None` when it is not one.
    #[must_use]
    pub fn new(first: &Event, head: &str) -> Option<Self> {
        let Body::DrillCreated { drill, file, digest, scheduled_for, context } = &first.body else { return None };
        Some(Self {
            id: first.run.clone(),
            drill: (**drill).clone(),
            file: file.clone(),
            digest: digest.clone(),
            context: (**context).clone(),
            scheduled_for: *scheduled_for,
            started_at: first.at,
            finished_at: None,
            seq: first.seq,
            head: head.to_owned(),
            steady: None,
            injecting: 0,
            injected: 0,
            fault_at: None,
            only_delayed: false,
            detected: None,
            runs: BTreeMap::new(),
            measured: BTreeMap::new(),
            healed: None,
            as_found: None,
            holes: Vec::new(),
            skipped: None,
            preempted: None,
            verdict: None,
        })
    }

    #[must_use]
    pub fn of(events: &[crate::journal::Stored]) -> Option<Self> {
        let (first, rest) = events.split_first()?;
        let mut state = Self::new(&first.event, &first.hash)?;
        for one in rest {
            state.fold(&one.event, &one.hash);
        }
        Some(state)
    }

    /// Takes one more event in.
    pub fn fold(&mut self, event: &Event, hash: &str) {
        self.seq = event.seq;
        hash.clone_into(&mut self.head);
        match &event.body {
            Body::SteadyState { good, note } => self.steady = Some((*good, note.clone())),
            Body::Injecting { fault } => {
                self.injecting += 1;
                // Held-up replication loses nothing yet: the moment of loss is that of the fault after it.
                let only_delays = matches!(fault, Fault::DelayReplication(_));
                if self.fault_at.is_none() || (self.only_delayed && !only_delays) {
                    self.fault_at = Some(event.at);
                    self.only_delayed = only_delays;
                }
            }
            Body::Injected { .. } => self.injected += 1,
            Body::Healed { note } => self.healed = Some(note.clone()),
            Body::Hole { reason } => self.holes.push(reason.clone()),
            Body::Detected { at, .. } => self.detected = Some(*at),
            Body::RunStarted { run, role } => {
                self.runs.insert(*role, (run.clone(), None));
            }
            Body::RunEnded { run, role, status } => {
                self.runs.insert(*role, (run.clone(), Some(*status)));
            }
            Body::Measured { phase, instants, rto, rpo, ledger, notes } => {
                let measurement = Measurement {
                    instants: instants.clone(),
                    rto: rto.clone(),
                    rpo: rpo.clone(),
                    ledger: ledger.clone(),
                    notes: notes.clone(),
                };
                self.measured.insert(*phase, measurement);
            }
            Body::AsFound { same, differences } => self.as_found = Some((*same, differences.clone())),
            Body::DrillPreempted { reason, .. } => self.preempted = Some(reason.clone()),
            Body::DrillSkipped { reason } => {
                self.skipped = Some(reason.clone());
                self.finished_at = Some(event.at);
            }
            Body::DrillFinished { verdict, reasons, .. } => {
                self.verdict = Some((*verdict, reasons.clone()));
                self.finished_at = Some(event.at);
            }
            _ => {}
        }
    }

    /// How a run of the drill ended, if it has.
    #[must_use]
    pub fn ended(&self, role: RunRole) -> Option<RunStatus> {
        self.runs.get(&role).and_then(|(_, status)| *status)
    }
}
