//! The figures of a restore drill, read from the record of its run: what was brought back, from when, how long it
//! took until it was proven. No probe and no ledger: nothing that serves is touched, and nothing is lost.

use super::conduct::{DrillError, Underway};
use crate::model::{event::*, ids::*, status::RunStatus};
use crate::plan::measure_restore::{Recovered, StepSeen, restore_instants, restore_rpo, restore_rto};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What the outputs of the restoring steps add up to.
const COUNTED: [&str; 2] = ["files", "bytes"];

impl Underway {
    /// Journals what was measured over the restore.
    pub(super) async fn measure_restore(&mut self) -> Result<(), DrillError> {
        let hole = !self.state.holes.is_empty();
        let objectives = self.state.drill.objectives.clone();
        let (steps, mut notes) = self.steps_seen().await?;
        // Half a recovery is none: what the other half would have taken is not known.
        let succeeded = self.state.ended(RunRole::Main) == Some(RunStatus::Succeeded);
        let steps = if succeeded { steps } else { Vec::new() };
        let found = restore_instants(&steps, self.state.started_at);
        let loss = restore_rpo(&steps, self.state.started_at, objectives.rpo);
        let time = restore_rto(&found, objectives.rto, hole);
        if found.recovered_point.is_some_and(|point| point > self.state.started_at) && loss.actual_ms.is_none() {
            let why = "the recovered point is later than the moment of loss: the drill made it itself";
            notes.insert("loss_not_measured".to_owned(), json!(why));
        }
        let phase = RunRole::Main;
        self.append(vec![Body::Measured { phase, instants: found, rto: time, rpo: loss, ledger: None, notes }]).await
    }

    /// Each step that succeeded, as the run's own record has it; and what the restoring ones say of what came back.
    async fn steps_seen(&self) -> Result<(Vec<StepSeen>, BTreeMap<String, Value>), DrillError> {
        let mut steps: BTreeMap<StepId, (StepSeen, Option<Value>)> = BTreeMap::new();
        let mut accepted: BTreeMap<StepId, Recovered> = BTreeMap::new();
        let Some((run, _)) = self.state.runs.get(&RunRole::Main) else { return Ok((Vec::new(), BTreeMap::new())) };
        for stored in self.conductor.engine.journal.load(run, 0).await? {
            let at = stored.event.at;
            match stored.event.body {
                Body::Applying { step, .. } => {
                    steps.entry(step).or_default().0.first_applying.get_or_insert(at);
                }
                Body::Applied { step, output, .. } => {
                    steps.entry(step.clone()).or_default().0.applied = Some(at);
                    accepted.insert(step, Recovered::of(&output));
                }
                // What was seen counts; what only its first answer told goes with it.
                Body::Verified { step, output, .. } => {
                    let entry = steps.entry(step.clone()).or_default();
                    entry.0.said = Recovered::of(&output).or(accepted.get(&step).copied().unwrap_or_default());
                    entry.1 = Some(output);
                }
                _ => {}
            }
        }
        let restoring: Vec<(&StepId, &Value)> = steps
            .iter()
            .filter(|(_, (seen, _))| seen.said.point.is_some())
            .filter_map(|(id, (_, output))| Some((id, output.as_ref()?)))
            .collect();
        let mut notes = BTreeMap::from([("restoring".to_owned(), json!(restoring.iter().map(|(id, _)| id).collect::<Vec<_>>()))]);
        for field in COUNTED {
            let each: Option<Vec<u64>> = restoring.iter().map(|(_, output)| output.get(field)?.as_u64()).collect();
            let sum = each.filter(|each| !each.is_empty()).map(|each| each.iter().sum::<u64>());
            notes.insert(field.to_owned(), json!(sum));
        }
        // Whole, as each step told it: what the figure is made of, and why it may be no more than a bound.
        let losses = restoring.iter().filter_map(|(id, output)| Some((id.to_string(), output.get("loss")?.clone())));
        notes.insert("losses".to_owned(), losses.collect::<serde_json::Map<_, _>>().into());
        Ok((steps.into_values().map(|(seen, _)| seen).collect(), notes))
    }
}
